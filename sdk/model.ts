/** Hugging Face model folders: what is saved, and matrices of others (safetensors, one file or sharded). */
import { type Manifest, type SiteEntry, WeftError } from "../runtime/bundle.ts";
import { folderAt, type Place } from "../runtime/folders.ts";
import { readVerified } from "../runtime/load.ts";
import { decode, encode, headerEnd, parseHeader } from "../runtime/safetensors.ts";
import type { Engine } from "./engine.ts";
import { isGguf, parseJson, readFileOr } from "./files.ts";

/** `Engine.saveModel`: a folder, or a GGUF file, whose notes say what is not quite as it was. */
export async function saveModel(place: Place, engine: Engine): Promise<string[]> {
  if (isGguf(place)) return (await import("./gguf.ts")).saveModelAsGguf(place, engine);
  await saveModelAsFolder(place, engine);
  return [];
}
/** The base as it is now, as a folder that transformers loads. */
async function saveModelAsFolder(place: Place, engine: Engine): Promise<void> {
  const { manifest, core, reader } = engine;
  const folder = await folderAt(place);
  await folder.claim("model");
  const tensors = (await core.baseTensors()).map((t) => ({ ...t, dtype: "F32" as const }));
  const files: [string, Uint8Array | string][] = [["model.safetensors", encode(tensors)]];
  for (const name of ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja"])
    if (manifest.files[name]) files.push([name, await readVerified(reader, manifest, name)]);
  files.push(["config.json", JSON.stringify(savedConfig(engine.modelConfig), null, 2)]);
  await folder.write("model", files);
}
/** config.json of a saved model: as the bundle has it, of weights that are float32. */
function savedConfig(config: Readonly<Record<string, unknown>>): Record<string, unknown> {
  const { torch_dtype: _, dtype: __, quantization_config: ___, ...rest } = config;
  return { ...rest, torch_dtype: "float32" };
}

/**
 * A function that reads a layer's matrix [out, in] of a site. Throws WEFT_WEIGHTS for a model of another
 * shape.
 */
export async function openMatrices(
  folder: string,
  manifest: Manifest,
): Promise<(layer: number, site: SiteEntry) => Promise<Float32Array>> {
  const index = await readFileOr(`${folder}/model.safetensors.index.json`, "WEFT_IO").then(
    (bytes) =>
      parseJson(bytes, `${folder}/model.safetensors.index.json`).weight_map as Readonly<
        Record<string, string>
      >,
    () => null,
  );
  const files = new Map<string, Uint8Array>();
  return async (layer, site) => {
    const name = manifest.checkpoint.layer[`${site.module}.weight`]!.replace("{l}", String(layer));
    const file = index ? index[name] : "model.safetensors";
    if (!file)
      throw new WeftError({
        code: "WEFT_WEIGHTS",
        where: folder,
        expected: `a tensor ${name}`,
        found: "none of that name",
      });
    const path = `${folder}/${file}`;
    const bytes = files.get(file) ?? (await readFileOr(path, "WEFT_IO"));
    files.set(file, bytes);
    headerEnd(bytes, bytes.length, path);
    const info = parseHeader(bytes, bytes.length, path).tensors.find((t) => t.name === name);
    const shape = [site.outFeatures, site.inFeatures];
    if (!info || JSON.stringify(info.shape) !== JSON.stringify(shape))
      throw new WeftError({
        code: "WEFT_WEIGHTS",
        where: `${path}: ${name}`,
        expected: JSON.stringify(shape),
        found: info ? JSON.stringify(info.shape) : "no such tensor",
      });
    return decode(bytes.subarray(info.start, info.end), info.dtype, `${path}: ${name}`);
  };
}
