/**
 * A GGUF file as a model folder: config, weights and tokenizer under Hugging Face's names, as the family of
 * its `general.architecture` maps them.
 */
import { WeftError, type Words, weightFormats } from "../../runtime/bundle.ts";
import { checkConfig } from "../config.ts";
import { generationOf } from "../generation.ts";
import { models } from "../models/index.ts";
import type { GgufFamily } from "../models/model.ts";
import type { ModelSource } from "../source.ts";
import { openFile } from "./file.ts";
import { tokenizerFiles } from "./tokenizer.ts";

/**
 * `tokenizer`: files to take in place of the vocabulary inside. Throws WEFT_WEIGHTS or WEFT_CONFIG naming
 * what is not supported.
 */
export async function openGguf(
  path: string,
  tokenizer: ReadonlyMap<string, string> | null = null,
): Promise<ModelSource> {
  const { meta, shapeOf, read, nearest, planes } = await openFile(path);
  const refuse = (key: string, expected: string, found: unknown): never => {
    throw new WeftError({ code: "WEFT_CONFIG", where: `${path}: ${key}`, expected, found: String(found) });
  };
  if (meta["general.type"] === "adapter") refuse("general.type", "model", "adapter");
  const known = ggufFamilies();
  const architecture = String(meta["general.architecture"]);
  const key = keyOf(architecture, Number(meta[`${architecture}.expert_count`] ?? 0) > 0);
  const family = known.get(key) ?? refuse("general.architecture", [...known.keys()].join(", "), key);
  const said = family.config({
    get: (key) => meta[`${family.architecture}.${key}`],
    number: (key, fallback) => {
      const name = `${family.architecture}.${key}`;
      const v = meta[name] ?? fallback;
      return typeof v === "number" ? v : typeof v === "bigint" ? Number(v) : refuse(name, "a number", v);
    },
    shapeOf,
    values: (tensor) => {
      const shape = shapeOf(tensor);
      return shape && read(tensor, shape, 0, shape[0]!);
    },
    refuse,
  });
  // Of a text, and of a turn.
  const ends = (["eos", "eot"] as const).flatMap((end) => meta[`tokenizer.ggml.${end}_token_id`] ?? []);
  const config = checkConfig(
    {
      ...said,
      bos_token_id: meta["tokenizer.ggml.bos_token_id"] ?? null,
      eos_token_id: ends.length ? ends : null,
    },
    path,
  );
  /** The tensor of the file that a checkpoint's is, or is a part of: its rows, and the first that are. */
  const placeOf = (name: string, shape: readonly number[]) => {
    const [file, part] = [family.name(name), family.part(name)];
    const parts = part === null ? 1 : (shapeOf(file)?.[0] ?? part + 1);
    if ((part ?? 0) >= parts) refuse(file, `more than ${part} matrices`, parts);
    const [rows, ...columns] = shape as [number, ...number[]];
    return { file, shape: [parts * rows, ...columns], first: (part ?? 0) * rows };
  };
  return {
    where: path,
    config,
    generation: generationOf(config, null, path),
    weights: {
      has: (name) => shapeOf(family.name(name)) !== undefined,
      read: (name, shape, from = 0, to = shape[0]!) => {
        const { file, shape: whole, first } = placeOf(name, shape);
        return family.layout.restore(
          name,
          (a, b) => read(file, whole, first + a, first + b),
          from,
          to,
          config,
        );
      },
      nearest: (name) => nearest(family.name(name)) ?? "f32",
      planes: (name, shape, format, from, to) => {
        const { file, shape: whole, first } = placeOf(name, shape);
        if (format !== nearest(file)) return null;
        // A family moves whole rows of a matrix, whatever their numbers are.
        const read = new Map<string, readonly Words[] | null>();
        const once = (a: number, b: number): readonly Words[] | null => {
          const key = `${a} ${b}`;
          if (!read.has(key)) read.set(key, planes(file, whole, first + a, first + b));
          return read.get(key)!;
        };
        const moved = weightFormats[format].planes.map((_, i) => {
          let plane: Words | undefined;
          const rows = (a: number, b: number): Float32Array => {
            plane = once(a, b)?.[i];
            return new Float32Array(plane ?? []);
          };
          const numbers = family.layout.restore(name, rows, from, to, config);
          return plane && new (plane.constructor as new (from: Float32Array) => Words)(numbers);
        });
        return moved.every((p) => p !== undefined) ? moved : null;
      },
    },
    files: tokenizer ?? tokenizerFiles(meta, path),
  };
}
/** What a family's files are told by: their architecture, and whether there are experts. */
const keyOf = (architecture: string, mixture = false): string =>
  mixture ? `${architecture} (experts)` : architecture;
/** Families by what their files say; each is one family's. */
function ggufFamilies(): ReadonlyMap<string, GgufFamily> {
  const known = new Map<string, GgufFamily>();
  for (const [name, { gguf }] of Object.entries(models)) {
    if (!gguf) continue;
    const key = keyOf(gguf.architecture, gguf.mixture);
    if (known.has(key)) throw new Error(`${name}: GGUF's ${key} is another family's`);
    known.set(key, gguf);
  }
  return known;
}
