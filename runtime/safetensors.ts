/**
 * The safetensors container: 8-byte little-endian header length, JSON header, bytes. Nothing in a header is
 * trusted.
 */
import * as v from "valibot";
import { type Dtype, dtypeBytes, halfToFloat } from "./dtypes.ts";
import { WeftError } from "./errors.ts";
import { bytes, check, foreign, oneOf, pair, record, text } from "./schema.ts";

export interface TensorInfo {
  readonly name: string;
  readonly dtype: Dtype;
  readonly shape: readonly number[];
  /** Byte range from the start of the file. */
  readonly start: number;
  readonly end: number;
}
const MAX_HEADER = 100 * 2 ** 20;
const Header = foreign({ __metadata__: v.optional(record(text)) });
const Entry = foreign({
  dtype: oneOf(["F32", "F16", "BF16", "I32", "I8", "U8"]),
  shape: v.array(bytes),
  data_offsets: pair(bytes, "[start, end], in bytes"),
});

/** Byte length of header and prefix, from the file's first 8 bytes. */
export function headerEnd(prefix: Uint8Array, fileBytes: number, where: string): number {
  if (prefix.byteLength < 8 || fileBytes < 8) throw bad(where, "at least 8 bytes", `${fileBytes} bytes`);
  const n = new DataView(prefix.buffer, prefix.byteOffset).getBigUint64(0, true);
  if (n > BigInt(MAX_HEADER) || Number(n) + 8 > fileBytes)
    throw bad(
      where,
      `a header of at most ${Math.min(MAX_HEADER, fileBytes - 8)} bytes`,
      `${n} bytes`,
      "the file is truncated or not safetensors",
    );
  return 8 + Number(n);
}

/** Check a header against the size of its file: shapes match ranges, ranges lie inside and do not overlap. */
export function parseHeader(
  file: Uint8Array,
  fileBytes: number,
  where: string,
): { tensors: TensorInfo[]; metadata: Record<string, string> } {
  const end = headerEnd(file, fileBytes, where);
  let json: unknown;
  try {
    json = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(file.subarray(8, end)));
  } catch (cause) {
    throw bad(where, "a JSON header", "text that does not parse", undefined, cause);
  }
  const { __metadata__: metadata = {}, ...entries } = check(Header, json, { code: "WEFT_WEIGHTS", where });
  const tensors: TensorInfo[] = [];
  for (const [name, entry] of Object.entries(entries)) {
    const at = { code: "WEFT_WEIGHTS", where: `${where}: ${name}` } as const;
    const { dtype, shape, data_offsets: range } = check(Entry, entry, at);
    const need = shape.reduce((a, b) => a * b, 1) * dtypeBytes[dtype];
    if (range[1] - range[0] !== need)
      throw bad(
        `${where}: ${name}`,
        `${need} bytes for ${dtype} ${JSON.stringify(shape)}`,
        `${range[1] - range[0]} bytes`,
      );
    if (end + range[1] > fileBytes)
      throw bad(
        `${where}: ${name}`,
        `data inside the file (${fileBytes} bytes)`,
        `bytes up to ${end + range[1]}`,
        "the file is truncated",
      );
    tensors.push({
      name,
      dtype,
      shape,
      start: end + range[0],
      end: end + range[1],
    });
  }
  const order = [...tensors].sort((a, b) => a.start - b.start);
  order.forEach((t, i) => {
    const next = order[i + 1];
    if (next && next.start < t.end)
      throw bad(`${where}: ${next.name}`, "tensors that do not overlap", `overlap with ${t.name}`);
  });
  return { tensors, metadata };
}

function bad(where: string, expected: string, found: string, hint?: string, cause?: unknown): WeftError {
  return new WeftError({
    code: "WEFT_WEIGHTS",
    where,
    expected,
    found,
    ...(hint && { hint }),
    ...(cause !== undefined && { cause }),
  });
}

/**
 * Bytes of a tensor, from its element `first` on → f32 values. Throws WEFT_WEIGHTS naming the tensor if one
 * is not finite.
 */
export function decode(bytes: Uint8Array, dtype: Dtype, where: string, first = 0): Float32Array {
  const n = bytes.byteLength / dtypeBytes[dtype];
  const out = new Float32Array(n);
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  if (dtype === "F32") for (let i = 0; i < n; i++) out[i] = view.getFloat32(i * 4, true);
  else if (dtype === "F16") for (let i = 0; i < n; i++) out[i] = halfToFloat(view.getUint16(i * 2, true));
  else if (dtype === "BF16") {
    const bits = new Uint32Array(out.buffer);
    for (let i = 0; i < n; i++) bits[i] = view.getUint16(i * 2, true) << 16;
  } else throw bad(where, "a floating-point tensor", dtype);
  for (let i = 0; i < n; i++)
    if (!Number.isFinite(out[i]!)) throw bad(where, "finite values", `${out[i]} at element ${first + i}`);
  return out;
}

export interface TensorData {
  readonly name: string;
  readonly shape: readonly number[];
  readonly dtype: "F32" | "F16" | "I32" | "I8";
  readonly data: Float32Array | Uint16Array | Int32Array | Uint8Array;
}
/** The start of a file with these tensors one after another; padded to 8 bytes. */
export function safetensorsHeader(
  tensors: readonly {
    readonly name: string;
    readonly shape: readonly number[];
    readonly dtype: Dtype;
    readonly bytes: number;
  }[],
  metadata: Readonly<Record<string, string>> = { format: "pt" },
): Uint8Array {
  const header: Record<string, unknown> = { __metadata__: metadata };
  let at = 0;
  for (const t of tensors) {
    header[t.name] = { dtype: t.dtype, shape: t.shape, data_offsets: [at, at + t.bytes] };
    at += t.bytes;
  }
  let text = JSON.stringify(header);
  text += " ".repeat((8 - (new TextEncoder().encode(text).length % 8)) % 8);
  const head = new TextEncoder().encode(text);
  const out = new Uint8Array(8 + head.length);
  new DataView(out.buffer).setBigUint64(0, BigInt(head.length), true);
  out.set(head, 8);
  return out;
}
/** A whole safetensors file; tensors in the order given. */
export function encode(
  tensors: readonly TensorData[],
  metadata?: Readonly<Record<string, string>>,
): Uint8Array {
  const header = safetensorsHeader(
    tensors.map((t) => ({ ...t, bytes: t.data.byteLength })),
    metadata,
  );
  const out = new Uint8Array(tensors.reduce((n, t) => n + t.data.byteLength, header.length));
  out.set(header);
  let to = header.length;
  for (const t of tensors) {
    out.set(new Uint8Array(t.data.buffer, t.data.byteOffset, t.data.byteLength), to);
    to += t.data.byteLength;
  }
  return out;
}
