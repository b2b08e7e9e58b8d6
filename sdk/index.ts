/** weft: serve and fine-tune one base model from one process. */
import type { CompileOptions } from "../compiler/compile.ts";
import type { Manifest } from "../runtime/bundle.ts";

export { type ErrorCode, encode as encodeSafetensors, type Manifest, WeftError } from "../runtime/bundle.ts";
export type { TokenEvent } from "../runtime/engine.ts";
export type { LoadProgress } from "../runtime/load.ts";
export type { DeviceChoice } from "../runtime/open.ts";
export * from "./engine.ts";
export type { CompileOptions };

/** Compile a Hugging Face model folder into a bundle folder. The compiler is only loaded when this is called. */
export async function compile(folder: string, out: string, options: CompileOptions = {}): Promise<Manifest> {
  const { compileTo } = await import("../compiler/compile.ts");
  return compileTo(folder, out, options);
}
