import { WeftError } from "./errors.ts";

export type Gpu = Pick<GPU, "requestAdapter" | "wgslLanguageFeatures">;
/** What gave the last adapter: its language is that of all kernels. */
export let asked: Gpu | null = null;

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
