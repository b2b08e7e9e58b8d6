/**
 * A model as a GGUF file: open.ts the other way. Each tensor is of the type that holds it as it is, F32 where
 * none does.
 */
import { type Format, formatValues, WeftError, type Words } from "../../runtime/bundle.ts";
import { models } from "../models/index.ts";
import type { GgufFamily, GgufSaid, Json, Model } from "../models/model.ts";
import {
  type GgmlName,
  type GgufTensor,
  type GgufValue,
  ggml,
  ggmlBytes,
  ggmlOf,
  writeGguf,
} from "./write.ts";

/** A base tensor [rows, …] under its checkpoint name; its numbers by plane of its format, row by row. */
export interface StoredTensor {
  readonly name: string;
  /** A matrix is [out, in], also where checkpoints have it otherwise. */
  readonly shape: readonly number[];
  readonly format: Format;
  readonly planes: readonly Words[];
}
/** The family that files of a config are written as. Throws WEFT_CONFIG where there is none. */
export function writtenAs(config: Json): { readonly model: Model; readonly gguf: GgufFamily } {
  const family = models[String(config.model_type)]!;
  const gguf = family.gguf ?? family.writtenAs;
  if (gguf) return { model: family.read(config), gguf };
  throw new WeftError({
    code: "WEFT_CONFIG",
    where: "config.json: model_type",
    expected: "a family that GGUF files have",
    found: String(config.model_type),
  });
}

/** As a type has it that holds it, with its rows where the file has them. */
function converted(t: StoredTensor, type: GgmlName, gguf: GgufFamily, config: Json): Uint8Array {
  const { name, shape } = t;
  const [n, k] = [shape[0]!, shape.length > 1 ? shape[1]! : 1];
  const move = (numbers: ArrayLike<number>): Float32Array => {
    const width = numbers.length / n;
    const values = numbers instanceof Float32Array ? numbers : Float32Array.from(numbers);
    return gguf.layout.convert(name, (a, b) => values.slice(a * width, b * width), 0, n, config);
  };
  if (type === "F32") {
    const values = formatValues[t.format].decode(t.planes, n, k);
    const moved = move(values);
    return new Uint8Array(moved.buffer, moved.byteOffset, moved.byteLength);
  }
  // At most 16 bits each, so they are whole numbers of f32 too.
  const planes = t.planes.map((p) => new (p.constructor as new (from: Float32Array) => Words)(move(p)));
  return ggmlBytes(type, planes);
}
/** Is a vector the same after it was converted, and restored? What a file has otherwise may round. */
function survives({ name, shape, planes }: StoredTensor, gguf: GgufFamily, config: Json): boolean {
  if (shape.length > 1) return true;
  const values = formatValues.f32.decode(planes, shape[0]!, 1);
  const there = gguf.layout.convert(name, (a, b) => values.slice(a, b), 0, shape[0]!, config);
  const back = gguf.layout.restore(name, (a, b) => there.slice(a, b), 0, shape[0]!, config);
  return back.every((x, i) => x === values[i]);
}

/**
 * A file in pieces. `stored` gives the tensors, and gives them again; `vocabulary` are the tokenizer's keys.
 * `notes` say what is not quite as it was. Throws WEFT_CONFIG for a config that a file cannot say.
 */
export async function modelAsGguf(
  config: Json,
  name: string,
  stored: () => AsyncIterable<StoredTensor>,
  vocabulary: Readonly<Record<string, GgufValue>>,
): Promise<{ readonly notes: string[]; readonly bytes: AsyncGenerator<Uint8Array, void, void> }> {
  const { model, gguf } = writtenAs(config);
  const said = gguf.says(model, config);
  const extra = Object.entries(said.tensors);
  const tensors: GgufTensor[] = extra.map(([name, v]) => ({ name, shape: [v.length], layout: ggml.F32 }));
  const notes: string[] = [];
  const types = new Map<string, GgmlName>();
  for await (const t of stored()) {
    const type = ggmlOf(t.format, t.planes, t.shape[1] ?? 1) ?? "F32";
    const name = gguf.name(t.name);
    const part = gguf.part(t.name);
    // Matrices that are one tensor of the file are of one type: Q4_1 holds what Q4_0 does.
    types.set(name, part && types.get(name) !== type ? "Q4_1" : type);
    const layout = ggml[types.get(name)!];
    if (part) tensors.push({ ...tensors.pop()!, shape: [part + 1, ...t.shape], layout });
    else tensors.push({ name, shape: part === null ? t.shape : [1, ...t.shape], layout });
    if (!survives(t, gguf, config)) notes.push(`${t.name} is rounded: files have 1 + w`);
  }
  checkSaid(model, gguf, said, tensors);
  const quantised = tensors.some(({ layout }) => [ggml.Q4_0, ggml.Q4_1, ggml.Q8_0].includes(layout as never));
  async function* data(): AsyncGenerator<Uint8Array, void, void> {
    for (const [, values] of extra) yield new Uint8Array(values.buffer);
    for await (const t of stored()) yield converted(t, types.get(gguf.name(t.name))!, gguf, config);
  }
  const keys = Object.entries(said.keys).map(([key, v]) => [`${gguf.architecture}.${key}`, v] as const);
  const all = {
    "general.architecture": gguf.architecture,
    "general.type": "model",
    "general.name": name,
    ...(quantised && { "general.quantization_version": { u32: 2 } }),
    ...Object.fromEntries(keys),
    ...vocabulary,
  };
  return { notes, bytes: writeGguf(all, tensors, data()) };
}

/** Throws WEFT_CONFIG where a file that says this would be read as another model: none can say the config. */
function checkSaid(model: Model, gguf: GgufFamily, said: GgufSaid, tensors: readonly GgufTensor[]): void {
  const refuse = (key: string, expected: string, found: unknown): never => {
    throw new WeftError({
      code: "WEFT_CONFIG",
      where: `config.json, as GGUF's ${gguf.architecture}: ${key}`,
      expected,
      found: String(found),
      hint: "files of this kind cannot say it",
    });
  };
  const get = (key: string): unknown => {
    const v = said.keys[key];
    return typeof v === "object" ? ("u32" in v ? v.u32 : Math.fround(v.f32)) : v;
  };
  const again = gguf.config({
    get,
    number: (key, fallback) => {
      const v = get(key) ?? fallback;
      return typeof v === "number" ? v : refuse(key, "a number", v);
    },
    shapeOf: (name) => tensors.find((t) => t.name === name)?.shape,
    values: (name) => said.tensors[name],
    refuse,
  });
  const { family: _, ...read } = models[String(again.model_type)]!.read(again);
  for (const [key, value] of Object.entries(read)) {
    const [got, want] = [value, model[key as keyof Model]].map(asF32);
    if (key !== "names" && got !== want) refuse(key, want!, got);
  }
}
/** Data as text, its numbers as kernels compute with them. */
const asF32 = (value: unknown): string =>
  JSON.stringify(value, (_, x) => (typeof x === "number" ? Math.fround(x) : x)) ?? "";
