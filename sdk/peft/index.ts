/** Adapters as files, all that it takes: imported when the first is read or written. */
import { type Manifest, WeftError } from "../../runtime/bundle.ts";
import type { AdapterContent } from "../../runtime/content.ts";
import type { Folder } from "../../runtime/folders.ts";
import { SMALL_FILE } from "../../runtime/schema.ts";
import { parseJson } from "../files.ts";
import { expandTernary } from "../ternary.ts";
import { numbersAtMost } from "./folder.ts";
import { readAdapter } from "./read.ts";

export { compressTernary } from "../ternary.ts";
export { onParameters } from "./parameters.ts";
export { writeAdapter, writeAsLora } from "./write.ts";

/**
 * Read a folder of Hugging Face PEFT, or one that `compress` wrote. `warnings` say what is near and not the
 * same. Throws WEFT_ADAPTER, or WEFT_ADAPTER_MISMATCH for another base than the manifest's.
 */
export async function readAdapterFolder(
  folder: Pick<Folder, "where" | "read">,
  manifest: Manifest,
): Promise<{ content: AdapterContent; warnings: string[] }> {
  // Not more than the whole model in f32, and what describes it.
  const limit = 4 * manifest.model.parameters + SMALL_FILE;
  const names = ["adapter_config.json", "adapter_model.ternary", "adapter_model.safetensors"];
  const { where: dir } = folder;
  const files = await folder.read(names, limit, "WEFT_ADAPTER");
  const needed = (name: string): Uint8Array => {
    const bytes = files.get(name);
    if (bytes) return bytes;
    throw new WeftError({
      code: "WEFT_ADAPTER",
      where: dir,
      expected: `a folder with ${name}`,
      found: "none",
    });
  };
  const config = parseJson(needed("adapter_config.json"), `${dir}/adapter_config.json`);
  const ternary = (): Uint8Array =>
    expandTernary(needed("adapter_model.ternary"), `${dir}/adapter_model.ternary`, numbersAtMost(manifest));
  const file = config.weft_ternary === true ? ternary() : needed("adapter_model.safetensors");
  const content = await readAdapter(config, file, manifest, dir);
  const { format } = manifest.model;
  const its = config.weft_format;
  const warnings =
    typeof its === "string" && its !== format
      ? [`trained on ${its} weights, used on ${format}: near, and not the same numbers`]
      : [];
  return { content, warnings };
}
