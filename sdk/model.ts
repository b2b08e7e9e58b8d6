/** Matrices of a Hugging Face model folder: safetensors, one file or sharded. */
import {
  decode,
  headerEnd,
  type Manifest,
  parseHeader,
  type SiteEntry,
  WeftError,
} from "../runtime/bundle.ts";
import { parseJson, readFileOr } from "./files.ts";

/** config.json of a saved model: as the bundle has it, of weights that are float32. */
export function savedConfig(config: Readonly<Record<string, unknown>>): Record<string, unknown> {
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
