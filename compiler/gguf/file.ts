/**
 * A GGUF file under its own names: what it says of itself, and its tensors as numbers. The container is read
 * by @huggingface/gguf.
 */
import { gguf } from "@huggingface/gguf";
import * as v from "valibot";
import { type Format, WeftError, type Words } from "../../runtime/bundle.ts";
import { boolean, check, count, foreign, numbers, type Of, text } from "../../runtime/schema.ts";
import { readRange, sizeOf } from "../files.ts";
import { layoutOf } from "./blocks.ts";
import { checkContainer } from "./container.ts";
import { WROTE, wroteOf } from "./write.ts";

const strings = v.custom<readonly string[]>(
  (x) => Array.isArray(x) && x.every((s) => typeof s === "string"),
  "a list of strings",
);
const Metadata = foreign({
  "tokenizer.ggml.model": v.optional(text),
  "tokenizer.ggml.pre": v.optional(text),
  "tokenizer.ggml.tokens": v.optional(strings),
  "tokenizer.ggml.merges": v.optional(strings),
  "tokenizer.ggml.scores": v.optional(numbers("a score", Number.isFinite)),
  "tokenizer.ggml.add_space_prefix": v.optional(boolean),
  "tokenizer.ggml.token_type": v.optional(numbers("a type of token", Number.isInteger)),
  "tokenizer.ggml.bos_token_id": v.optional(count),
  "tokenizer.ggml.eos_token_id": v.optional(count),
  "tokenizer.ggml.eot_token_id": v.optional(count),
  "tokenizer.ggml.add_bos_token": v.optional(boolean),
  "tokenizer.chat_template": v.optional(text),
});
export type Metadata = Of<typeof Metadata> & Readonly<Record<string, unknown>>;

export interface GgufFile {
  readonly meta: Metadata;
  /** Did weft write it, and nobody convert it since? */
  readonly ours: boolean;
  /** Of its tensors. */
  readonly names: readonly string[];
  /** Undefined where there is no tensor of that name. */
  readonly shapeOf: (name: string) => readonly number[] | undefined;
  /**
   * f32 values of the rows [from, to) of a tensor [shape], checked finite; matrices that are one tensor are
   * their rows, one after another. Throws WEFT_WEIGHTS.
   */
  readonly read: (name: string, shape: readonly number[], from: number, to: number) => Float32Array;
  /** The format that holds a tensor as it is, or loses least of it; null where there is none. */
  readonly nearest: (name: string) => Format | null;
  /**
   * Rows as `nearest` has them, in the blocks that they lie in; null where it does not. Checked as `read`.
   */
  readonly planes: (
    name: string,
    shape: readonly number[],
    from: number,
    to: number,
  ) => readonly Words[] | null;
}

/** `model` or `adapter` for a file that weft wrote; null for any other. */
export async function kindWritten(path: string): Promise<string | null> {
  try {
    const { meta, ours } = await openFile(path);
    return ours ? String(meta["general.type"]) : null;
  } catch (e) {
    if (e instanceof WeftError) return null;
    throw e;
  }
}
/** Throws WEFT_WEIGHTS for a file that is not GGUF, or is truncated. */
export async function openFile(path: string): Promise<GgufFile> {
  const fail = (where: string, expected: string, found: string, hint?: string): never => {
    throw new WeftError({ code: "WEFT_WEIGHTS", where, expected, found, ...(hint && { hint }) });
  };
  const size = sizeOf(path);
  checkContainer((from, to) => readRange(path, from, to), size, path);
  const parsed = await gguf(path, { allowLocalFile: true }).catch((cause: Error) => {
    throw new WeftError({
      code: "WEFT_WEIGHTS",
      where: path,
      expected: "a GGUF file",
      found: cause.message,
      cause,
    });
  });
  const meta = check(Metadata, parsed.metadata, { code: "WEFT_WEIGHTS", where: path }) as Metadata;
  const table = new Map(
    parsed.tensorInfos.map((t) => [
      t.name,
      {
        shape: t.shape.map(Number).reverse(),
        type: Number(t.dtype),
        start: Number(parsed.tensorDataOffset + t.offset),
      },
    ]),
  );
  const listed = Number(meta.tensor_count);
  if (!listed || table.size !== listed)
    fail(
      path,
      "a GGUF header with tensors",
      `names of ${table.size} of ${listed || "no"} tensors`,
      "the file is truncated",
    );
  /** Of a tensor [shape], how its rows lie, and their bytes. */
  const rowsOf = (name: string, shape: readonly number[]) => {
    const where = `${path}: ${name}`;
    const t = table.get(name) ?? fail(where, `a tensor ${JSON.stringify(shape)}`, "no such tensor");
    const own = [t.shape.slice(0, -1).reduce((a, b) => a * b, 1), ...t.shape.slice(-1)];
    if (JSON.stringify(shape.length > 1 ? own : t.shape) !== JSON.stringify(shape))
      fail(where, JSON.stringify(shape), JSON.stringify(t.shape));
    const row = shape.slice(1).reduce((a, b) => a * b, 1);
    const layout = layoutOf(t.type, row, where);
    const end = t.start + shape[0]! * layout.bytes;
    if (end > size) fail(where, `bytes up to ${end}`, `a file of ${size}`, "the file is truncated");
    const rows = (from: number, to: number): Uint8Array =>
      readRange(path, t.start + from * layout.bytes, t.start + to * layout.bytes);
    return { layout, row, rows };
  };
  return {
    meta,
    ours: meta[WROTE] === wroteOf([...table.values()].map((t) => t.type)),
    names: [...table.keys()],
    shapeOf: (name) => table.get(name)?.shape,
    read: (name, shape, from, to) => {
      const { layout, row, rows } = rowsOf(name, shape);
      return layout.read(rows(from, to), from * row);
    },
    nearest: (name) => {
      const t = table.get(name);
      return t ? layoutOf(t.type, t.shape.at(-1)!, `${path}: ${name}`).nearest : null;
    },
    planes: (name, shape, from, to) => {
      const { layout, rows } = rowsOf(name, shape);
      return layout.planes(rows(from, to));
    },
  };
}
