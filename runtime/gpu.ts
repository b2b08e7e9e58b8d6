import { WeftError } from "./errors.ts";

/** Dot products of four bytes, a part of the language that not all have. */
export const PACKED = "packed_4x8_integer_dot_product";
export type Gpu = Pick<GPU, "requestAdapter" | "wgslLanguageFeatures">;
/** What gave the last adapter: its language is that of all kernels. */
let asked: Gpu | null = null;
export const hasFeature = (name: string): boolean => asked?.wgslLanguageFeatures.has(name) ?? false;

/**
 * An adapter of what `open` gives; null where there is none. Throws WEFT_DEVICE when it cannot be asked
 * for.
 */
export async function askAdapter(
  kind: "hardware" | "software",
  open: () => Promise<Gpu | null>,
): Promise<GPUAdapter | null> {
  try {
    const gpu = await open();
    asked = gpu;
    return (
      (await gpu?.requestAdapter(kind === "hardware" ? { powerPreference: "high-performance" } : {})) ?? null
    );
  } catch (cause) {
    throw cause instanceof WeftError ? cause : (await import("./refused.ts")).noAdapter(cause);
  }
}
