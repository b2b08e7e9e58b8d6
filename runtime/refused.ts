/** What devices and those who open them refuse, as errors: fetched by who meets one. */
import { type Manifest, showBytes, WeftError } from "./bundle.ts";
import type { Families } from "./device.ts";
import { asked } from "./gpu.ts";

const refused = (where: string, expected: string, found: string, hint?: string): WeftError =>
  new WeftError({ code: "WEFT_DEVICE", where, expected, found, ...(hint && { hint }) });

/** What was asked for by name is not here. */
export const noDevice = (choice: "webgpu" | "software"): WeftError =>
  choice === "webgpu"
    ? refused("device: webgpu", "a WebGPU adapter on hardware", "none", 'use device "wasm", or "software"')
    : refused(
        "device: software",
        "a software WebGPU adapter",
        "none",
        "install the webgpu and @sparticuz/chromium packages",
      );

/** Kernels with relaxed SIMD were asked for: the bundle, or who runs it, has none. */
export const notRelaxed = (there: boolean): WeftError =>
  there
    ? refused(
        "relaxed",
        "an engine with relaxed SIMD",
        "one without",
        "Node 20 has it behind --experimental-wasm-relaxed-simd",
      )
    : refused("relaxed", "a bundle with kernels.relaxed.wasm", "none", "compile with --relaxed");

/** Adapters cannot be asked for. */
export const noAdapter = (cause: unknown): WeftError =>
  new WeftError({
    code: "WEFT_DEVICE",
    where: "webgpu adapter",
    expected: "an answer to requestAdapter",
    found: (cause as Error)?.message ?? String(cause),
    cause,
  });
/** The adapter gives no device. */
export const notGiven = (where: string, cause: Error): WeftError =>
  new WeftError({ code: "WEFT_DEVICE", where, expected: "a device", found: cause.message, cause });

/** There is no clock where a bundle would be played. */
export const untimed = (where: string): WeftError =>
  refused(where, "a WebGPU device with timestamp-query", "none", "load without `timestamps`");

/** Dot products of four bytes, a part of the language that not all have. */
const PACKED = "packed_4x8_integer_dot_product";
/** Products of integers of few rows and of tiles take four in an instruction. Throws where there is none. */
export function multipliesBytes(where: string, { fewRows }: Families): void {
  if (fewRows !== null && !asked?.wgslLanguageFeatures.has(PACKED))
    throw refused(
      where,
      `WGSL with ${PACKED}, for products of integers`,
      "none",
      "compile without --products integers",
    );
}

/** A layer's weights are more bytes than the numbers that kernels count in an i32. */
export const tooMany = (where: string, { model }: Manifest, bytes: number, fits: number): WeftError =>
  new WeftError({
    code: "WEFT_CAPACITY",
    where,
    expected: `${model.format} weights of at most ${showBytes(fits, Math.floor)} a layer`,
    found: showBytes(bytes, Math.ceil),
    hint: "compile with --format f16",
  });

export const noMemory = (bytes: readonly number[], full: boolean, found: string): WeftError =>
  new WeftError({
    code: full ? "WEFT_CAPACITY" : "WEFT_DEVICE",
    where: "webgpu device",
    expected: `${bytes.reduce((a, b) => a + b, 0)} bytes of buffers`,
    found,
  });

/** Of a kernel: with what the device says of its text. */
export async function noKernel(label: string, module: GPUShaderModule, cause: Error): Promise<WeftError> {
  const { messages } = await module.getCompilationInfo();
  const found = messages.map((m) => `line ${m.lineNum}: ${m.message}`).join("; ");
  return new WeftError({
    code: "WEFT_DEVICE",
    where: `kernel ${label}`,
    expected: "WGSL that this adapter compiles",
    found: found || cause.message,
    cause,
  });
}
