/**
 * Launches as AssemblyScript: SIMD bodies with scalar tails, over addresses the compiler assigned. One
 * exported function a launch.
 */
import { readFileSync } from "node:fs";
import type { KernelEnv } from "../kernel.ts";
import { type AnyBody, kernelOf, libraries } from "../kernels/index.ts";
import { head, passed } from "../kernels/text/assemblyscript.ts";
import { productText } from "../kernels/text/assemblyscript_tiles.ts";

/** What emitted kernels call: hand-written inner loops, the tiles of products, and what one kernel has. */
const assembly = (name: string): string =>
  readFileSync(new URL(`./assembly/${name}`, import.meta.url), "utf8");
export const prelude = (): string =>
  [assembly("exp.ts").replace("export ", ""), assembly("kernels.ts"), productText(), ...libraries()].join(
    "\n",
  );

/** One function for a launch: its bodies in turn. */
export function emitLaunchAs(name: string, bodies: readonly AnyBody[], env: KernelEnv): string {
  const parts = bodies.map((b, i) => kernelOf(b).assembly(`${name}_${i}`, b, env));
  const calls = bodies.map((_, i) => `  ${name}_${i}(${passed});`).join("\n");
  return `${parts.join("\n")}\nexport ${head(name)}\n${calls}\n}\n`;
}

/** Launches in turn under another name: on a CPU one kernel serves few rows and many. */
export const emitAlias = (name: string, of: readonly string[]): string =>
  `export ${head(name)}\n${of.map((one) => `  ${one}(${passed});\n`).join("")}}\n`;

/** Bytes of scratch that a thread needs for a body. */
export const scratchBytes = (b: AnyBody, env: KernelEnv): number => kernelOf(b).scratch?.(b, env) ?? 0;
