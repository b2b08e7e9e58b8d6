/**
 * Hugging Face folder → tensor table: one or sharded safetensors. Headers first; bytes move once, tensor by
 * tensor.
 */
import { join } from "node:path";
import {
  type Dtype,
  decode,
  dtypeBytes,
  type Format,
  headerEnd,
  parseHeader,
  type TensorInfo,
  transpose,
  WeftError,
} from "../runtime/bundle.ts";
import { shardsOf } from "./config.ts";
import { exists, readJson, readRange, sizeOf } from "./files.ts";
import type { Names } from "./models/model.ts";
import type { WeightSource } from "./source.ts";

const nearest: Readonly<Partial<Record<Dtype, Format>>> = { F32: "f32", F16: "f16", BF16: "bf16" };

/** Throws WEFT_WEIGHTS, also where a shard is missing. */
export function openWeights(folder: string, names: Names): WeightSource {
  const files: string[] = [];
  const index = join(folder, "model.safetensors.index.json");
  if (exists(join(folder, "model.safetensors"))) files.push("model.safetensors");
  else if (exists(index)) {
    files.push(...shardsOf(readJson(index, "WEFT_WEIGHTS"), index));
  } else
    throw new WeftError({
      code: "WEFT_WEIGHTS",
      where: folder,
      expected: "model.safetensors or model.safetensors.index.json",
      found: exists(join(folder, "manifest.json")) ? "a bundle" : "neither",
    });
  const table = new Map<string, { file: string; info: TensorInfo }>();
  for (const f of files) {
    const path = join(folder, f);
    if (!exists(path))
      throw new WeftError({
        code: "WEFT_WEIGHTS",
        where: path,
        expected: "a shard named in the index",
        found: "no such file",
      });
    const size = sizeOf(path);
    const end = headerEnd(readRange(path, 0, Math.min(8, size)), size, path);
    for (const info of parseHeader(readRange(path, 0, end), size, path).tensors)
      table.set(info.name, { file: path, info });
  }
  const { prefix = "", transposed = [] } = names;
  const find = (name: string) =>
    table.get(name) ?? (name.startsWith(prefix) ? table.get(name.slice(prefix.length)) : undefined);
  const read: WeightSource["read"] = (name, shape, from = 0, to = shape[0]!) => {
    const t = find(name);
    if (!t)
      throw new WeftError({
        code: "WEFT_WEIGHTS",
        where: `${folder}: ${name}`,
        expected: `a tensor ${JSON.stringify(shape)}`,
        found: "no such tensor",
      });
    if (JSON.stringify(t.info.shape) !== JSON.stringify(shape))
      throw new WeftError({
        code: "WEFT_WEIGHTS",
        where: `${folder}: ${name}`,
        expected: JSON.stringify(shape),
        found: JSON.stringify(t.info.shape),
      });
    const { start, end, dtype } = t.info;
    const row = (end - start) / shape[0]!;
    const raw = readRange(t.file, start + from * row, start + to * row);
    return decode(raw, dtype, `${folder}: ${name}`, from * (row / dtypeBytes[dtype]));
  };
  return {
    has: (name) => find(name) !== undefined,
    nearest: (name) => nearest[find(name)?.info.dtype ?? "F32"] ?? "f32",
    planes: () => null,
    read: (name, shape, from = 0, to = shape[0]!) => {
      if (!transposed.some((end) => name.endsWith(`.${end}`))) return read(name, shape, from, to);
      const [n, k] = shape as [number, number];
      return transpose(read(name, [k, n]), k, n).subarray(from * k, to * k);
    },
  };
}
