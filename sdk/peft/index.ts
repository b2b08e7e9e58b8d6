/** Adapters as files, all that it takes: imported when the first is read or written. */
import { type Manifest, WeftError } from "../../runtime/bundle.ts";
import type { AdapterContent } from "../../runtime/content.ts";
import type { Folder, Place } from "../../runtime/folders.ts";
import type { Remote } from "../../runtime/remote.ts";
import { SMALL_FILE } from "../../runtime/schema.ts";
import { isGguf, parseJson } from "../files.ts";
import type { SaveOptions } from "../options.ts";
import { compressTernary, expandTernary } from "../ternary.ts";
import { numbersAtMost } from "./folder.ts";
import { onParameters } from "./parameters.ts";
import { readAdapter } from "./read.ts";
import { writeAdapter, writeAsLora } from "./write.ts";

/** Read an adapter from wherever it is: a folder, or a LoRA of llama.cpp. */
export async function readAdapterAt(
  place: Place,
  remote: Remote,
  manifest: Manifest,
  config: Readonly<Record<string, unknown>>,
): Promise<{ content: AdapterContent; warnings: string[] }> {
  if (isGguf(place)) return (await import("../gguf.ts")).readAdapterGguf(place, manifest, config);
  const { folderAt } = await import("../../runtime/folders.ts");
  return readAdapterFolder(await folderAt(place, remote), manifest);
}
/** Files of a folder, in the order in which they are written. */
type FolderFiles = [name: string, data: Uint8Array | string][];

/** An adapter as the files of a PEFT folder: as it is, or as `save` says. Throws WEFT_ADAPTER. */
export function filesOf(content: AdapterContent, manifest: Manifest, as: SaveOptions["as"]): FolderFiles {
  const written = (as === "lora" ? writeAsLora : writeAdapter)(content, manifest);
  const { config, weights } = as === "target_parameters" ? onParameters(written, content, manifest) : written;
  return [
    ["adapter_model.safetensors", weights],
    ["adapter_config.json", config],
  ];
}
/** The same as signs of the `density` of its largest numbers. */
export function compressed(
  content: AdapterContent,
  manifest: Manifest,
  density = 0.1,
): { files: FolderFiles; bytes: number; ratio: number; error: number } {
  const { config, weights } = writeAdapter(content, manifest);
  const { bytes, ratio, error } = compressTernary(weights, density);
  const said = { ...(JSON.parse(config) as object), weft_ternary: true };
  const files: FolderFiles = [
    ["adapter_model.ternary", bytes],
    ["adapter_config.json", JSON.stringify(said, null, 2)],
  ];
  return { files, bytes: bytes.length, ratio, error };
}

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
