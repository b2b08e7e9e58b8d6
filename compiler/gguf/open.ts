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
  const architecture = meta["general.architecture"];
  const family =
    known.get(String(architecture)) ??
    refuse("general.architecture", [...known.keys()].join(", "), architecture);
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
  return {
    where: path,
    config,
    generation: generationOf(config, null, path),
    weights: {
      has: (name) => shapeOf(family.name(name)) !== undefined,
      read: (name, shape, from = 0, to = shape[0]!) =>
        family.layout.restore(name, (a, b) => read(family.name(name), shape, a, b), from, to, config),
      nearest: (name) => nearest(family.name(name)) ?? "f32",
      planes: (name, shape, format, from, to) => {
        const file = family.name(name);
        if (format !== nearest(file)) return null;
        // A family moves whole rows of a matrix, whatever their numbers are.
        const read = new Map<string, readonly Words[] | null>();
        const once = (a: number, b: number): readonly Words[] | null => {
          const key = `${a} ${b}`;
          if (!read.has(key)) read.set(key, planes(file, shape, a, b));
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
/** Families by the architecture that their files say; each is one family's. */
function ggufFamilies(): ReadonlyMap<string, GgufFamily> {
  const known = new Map<string, GgufFamily>();
  for (const [name, { gguf }] of Object.entries(models)) {
    if (!gguf) continue;
    if (known.has(gguf.architecture))
      throw new Error(`${name}: GGUF's ${gguf.architecture} is another family's`);
    known.set(gguf.architecture, gguf);
  }
  return known;
}
