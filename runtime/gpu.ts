import { WeftError } from "./errors.ts";

export type Gpu = Pick<GPU, "requestAdapter">;
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
    return (
      (await gpu?.requestAdapter(kind === "hardware" ? { powerPreference: "high-performance" } : {})) ?? null
    );
  } catch (cause) {
    if (cause instanceof WeftError) throw cause;
    throw new WeftError({
      code: "WEFT_DEVICE",
      where: "webgpu adapter",
      expected: "an answer to requestAdapter",
      found: (cause as Error)?.message ?? String(cause),
      cause,
    });
  }
}
