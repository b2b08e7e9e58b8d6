/** How values lie in GGUF files, by GGML type number (llama.cpp, ggml-common.h). */
import { decode, WeftError } from "../../runtime/bundle.ts";

interface BlockFormat {
  readonly name: string;
  readonly values: number;
  readonly bytes: number;
  readonly read: (raw: Uint8Array, at: number, out: Float32Array, to: number) => void;
}
const half = (raw: Uint8Array, at: number): number => decode(raw.subarray(at, at + 2), "F16", "scale")[0]!;
const nibbles = (raw: Uint8Array, at: number, each: (i: number, q: number) => void): void => {
  for (let i = 0; i < 16; i++) {
    each(i, raw[at + i]! & 15);
    each(i + 16, raw[at + i]! >> 4);
  }
};
/** By GGML type number. Values of a block of 32: scale · q, scale · (q - 8), scale · q + minimum. */
const blocks: Readonly<Record<number, BlockFormat>> = {
  2: {
    name: "Q4_0",
    values: 32,
    bytes: 18,
    read: (raw, at, out, to) => {
      const d = half(raw, at);
      nibbles(raw, at + 2, (i, q) => {
        out[to + i] = d * (q - 8);
      });
    },
  },
  3: {
    name: "Q4_1",
    values: 32,
    bytes: 20,
    read: (raw, at, out, to) => {
      const [d, m] = [half(raw, at), half(raw, at + 2)];
      nibbles(raw, at + 4, (i, q) => {
        out[to + i] = Math.fround(d * q) + m;
      });
    },
  },
  8: {
    name: "Q8_0",
    values: 32,
    bytes: 34,
    read: (raw, at, out, to) => {
      const d = half(raw, at);
      for (let i = 0; i < 32; i++) out[to + i] = d * ((raw[at + 2 + i]! << 24) >> 24);
    },
  },
};
const plain: Readonly<Record<number, "F32" | "F16" | "BF16">> = { 0: "F32", 1: "F16", 30: "BF16" };

/**
 * Bytes of a row of `row` numbers of a GGML type, and what rows say; `first`: the number of their first value
 * in the tensor, for messages. Throws WEFT_WEIGHTS for a type that is not known.
 */
export function layoutOf(
  type: number,
  row: number,
  where: string,
): { readonly bytes: number; readonly read: (raw: Uint8Array, first: number) => Float32Array } {
  const dtype = plain[type];
  if (dtype)
    return {
      bytes: row * (dtype === "F32" ? 4 : 2),
      read: (raw, first) => decode(raw, dtype, where, first),
    };
  const fail = (expected: string, found: string): never => {
    throw new WeftError({ code: "WEFT_WEIGHTS", where, expected, found });
  };
  const names = [...Object.values(plain), ...Object.values(blocks).map((b) => b.name)];
  const block = blocks[type] ?? fail(names.join(", "), `GGML type ${type}`);
  if (row % block.values) fail(`rows of whole blocks of ${block.values} values`, `rows of ${row} values`);
  return {
    bytes: (row / block.values) * block.bytes,
    read: (raw) => {
      const out = new Float32Array((raw.length / block.bytes) * block.values);
      for (let i = 0; i * block.values < out.length; i++)
        block.read(raw, i * block.bytes, out, i * block.values);
      if (out.some((x) => !Number.isFinite(x))) fail("finite values", "NaN or infinity");
      return out;
    },
  };
}
