/**
 * How values lie in GGUF files, by GGML type number, and the format that a bundle has them in (llama.cpp,
 * ggml-common.h and ggml-quants.c).
 */
import {
  decode,
  type Format,
  floatToHalf,
  halfToFloat,
  WeftError,
  type Words,
} from "../../runtime/bundle.ts";

/** Steps of a block of 32 and what they share, as halves: what a format of blocks stores. */
interface Steps {
  readonly q: ArrayLike<number>;
  readonly scales: readonly number[];
}
interface BlockFormat {
  readonly name: string;
  readonly values: number;
  readonly bytes: number;
  readonly read: (raw: Uint8Array, at: number, out: Float32Array, to: number) => void;
  /** The format nearest to it; with `steps` it holds a block as it is, unless they are null. */
  readonly nearest: Format;
  readonly steps?: (raw: Uint8Array, at: number) => Steps | null;
}
const bitsAt = (raw: Uint8Array, at: number): number => raw[at]! | (raw[at + 1]! << 8);
const half = (raw: Uint8Array, at: number): number => halfToFloat(bitsAt(raw, at));
const signed = (byte: number): number => (byte << 24) >> 24;
/** Sixteen bytes: the lower halves are the first 16 values, the upper the others. */
const nibbles = (raw: Uint8Array, at: number): Uint8Array => {
  const q = new Uint8Array(32);
  for (let i = 0; i < 16; i++) {
    q[i] = raw[at + i]! & 15;
    q[i + 16] = raw[at + i]! >> 4;
  }
  return q;
};
/** Nibbles, each with a fifth bit of 32. */
const fives = (raw: Uint8Array, at: number): Uint8Array =>
  nibbles(raw, at + 4).map((q, i) => q | (((raw[at + (i >> 3)]! >> (i & 7)) & 1) << 4));
/** Scale and minimum `j` of the eight pairs of six bits in twelve bytes. */
const pair = (raw: Uint8Array, at: number, j: number): readonly [number, number] => {
  const b = (i: number): number => raw[at + i]!;
  if (j < 4) return [b(j) & 63, b(j + 4) & 63];
  return [(b(j + 4) & 15) | ((b(j - 4) >> 6) << 4), (b(j + 4) >> 4) | ((b(j) >> 6) << 4)];
};
/** Values of IQ4_NL's sixteen steps. */
const UNEVEN = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];
/**
 * The largest block: 256 values. `d · scale` is exact in f32, so in f64 each value is rounded once, as in a
 * chain of f32.
 */
const LARGE = 256;

const q4_0: BlockFormat = {
  name: "Q4_0",
  values: 32,
  bytes: 18,
  read: (raw, at, out, to) => {
    const d = half(raw, at);
    nibbles(raw, at + 2).forEach((q, i) => {
      out[to + i] = d * (q - 8);
    });
  },
  nearest: "q4",
  // The minimum is -8 scales, where that is a half.
  steps: (raw, at) => {
    const low = -8 * half(raw, at);
    const bits = floatToHalf(low);
    return halfToFloat(bits) === low ? { q: nibbles(raw, at + 2), scales: [bitsAt(raw, at), bits] } : null;
  },
};
const q4_1: BlockFormat = {
  name: "Q4_1",
  values: 32,
  bytes: 20,
  read: (raw, at, out, to) => {
    const [d, m] = [half(raw, at), half(raw, at + 2)];
    nibbles(raw, at + 4).forEach((q, i) => {
      out[to + i] = d * q + m;
    });
  },
  nearest: "q4",
  steps: (raw, at) => ({ q: nibbles(raw, at + 4), scales: [bitsAt(raw, at), bitsAt(raw, at + 2)] }),
};
const q5_0: BlockFormat = {
  name: "Q5_0",
  values: 32,
  bytes: 22,
  read: (raw, at, out, to) => {
    const d = half(raw, at);
    fives(raw, at + 2).forEach((q, i) => {
      out[to + i] = d * (q - 16);
    });
  },
  nearest: "int8",
};
const q5_1: BlockFormat = {
  name: "Q5_1",
  values: 32,
  bytes: 24,
  read: (raw, at, out, to) => {
    const [d, m] = [half(raw, at), half(raw, at + 2)];
    fives(raw, at + 4).forEach((q, i) => {
      out[to + i] = d * q + m;
    });
  },
  nearest: "int8",
};
const q8_0: BlockFormat = {
  name: "Q8_0",
  values: 32,
  bytes: 34,
  read: (raw, at, out, to) => {
    const d = half(raw, at);
    for (let i = 0; i < 32; i++) out[to + i] = d * signed(raw[at + 2 + i]!);
  },
  nearest: "int8",
  steps: (raw, at) => ({
    q: Int8Array.from(raw.subarray(at + 2, at + 34), signed),
    scales: [bitsAt(raw, at)],
  }),
};
const q2_k: BlockFormat = {
  name: "Q2_K",
  values: LARGE,
  bytes: 84,
  // Sixteen pairs of scale and minimum of four bits, 64 bytes of steps, d and dmin.
  read: (raw, at, out, to) => {
    const [d, dmin] = [half(raw, at + 80), half(raw, at + 82)];
    for (let i = 0; i < LARGE; i++) {
      const s = raw[at + (i >> 4)]!;
      const [run, shift] = [i >> 7, ((i >> 5) & 3) * 2];
      const q = (raw[at + 16 + run * 32 + (i & 31)]! >> shift) & 3;
      out[to + i] = d * (s & 15) * q - dmin * (s >> 4);
    }
  },
  nearest: "q4",
};
const q3_k: BlockFormat = {
  name: "Q3_K",
  values: LARGE,
  bytes: 110,
  // 32 bytes of third bits, 64 of steps, sixteen scales of six bits in twelve bytes, d.
  read: (raw, at, out, to) => {
    const d = half(raw, at + 108);
    const s = at + 96;
    const scales = Array.from({ length: 16 }, (_, j) => {
      const low = j < 8 ? raw[s + j]! & 15 : raw[s + j - 8]! >> 4;
      return (low | (((raw[s + 8 + (j & 3)]! >> ((j >> 2) * 2)) & 3) << 4)) - 32;
    });
    for (let i = 0; i < LARGE; i++) {
      const [run, part] = [i >> 7, (i >> 5) & 3];
      const q = (raw[at + 32 + run * 32 + (i & 31)]! >> (part * 2)) & 3;
      const high = (raw[at + (i & 31)]! >> (run * 4 + part)) & 1;
      out[to + i] = d * scales[i >> 4]! * (q - (high ? 0 : 4));
    }
  },
  nearest: "q4",
};
/**
 * d and dmin, eight pairs of six bits; then 128 bytes of steps from byte `from`, before them the fifth bits
 * (`high`) where there are any.
 */
const ofPairs = (from: number, high: number | null): BlockFormat["read"] => {
  return (raw, at, out, to) => {
    const [d, dmin] = [half(raw, at), half(raw, at + 2)];
    for (let j = 0; j < 8; j++) {
      const [scale, low] = pair(raw, at + 4, j);
      for (let i = 0; i < 32; i++) {
        const q = (raw[at + from + (j >> 1) * 32 + i]! >> ((j & 1) * 4)) & 15;
        const fifth = high === null ? 0 : (raw[at + high + i]! >> j) & 1;
        out[to + j * 32 + i] = d * scale * (q | (fifth << 4)) - dmin * low;
      }
    }
  };
};
const q4_k: BlockFormat = {
  name: "Q4_K",
  values: LARGE,
  bytes: 144,
  read: ofPairs(16, null),
  nearest: "q4",
};
const q5_k: BlockFormat = {
  name: "Q5_K",
  values: LARGE,
  bytes: 176,
  read: ofPairs(48, 16),
  nearest: "int8",
};
const q6_k: BlockFormat = {
  name: "Q6_K",
  values: LARGE,
  bytes: 210,
  // 128 bytes of lower halves, 64 of upper pairs of bits, sixteen scales of eight bits, d.
  read: (raw, at, out, to) => {
    const d = half(raw, at + 208);
    for (let i = 0; i < LARGE; i++) {
      const [run, part] = [i >> 7, (i >> 5) & 3];
      const low = raw[at + run * 64 + (part & 1) * 32 + (i & 31)]! >> ((part >> 1) * 4);
      const high = raw[at + 128 + run * 32 + (i & 31)]! >> (part * 2);
      out[to + i] = d * signed(raw[at + 192 + (i >> 4)]!) * (((low & 15) | ((high & 3) << 4)) - 32);
    }
  },
  nearest: "int8",
};
const iq4_nl: BlockFormat = {
  name: "IQ4_NL",
  values: 32,
  bytes: 18,
  read: (raw, at, out, to) => {
    const d = half(raw, at);
    nibbles(raw, at + 2).forEach((q, i) => {
      out[to + i] = d * UNEVEN[q]!;
    });
  },
  nearest: "int8",
};
const blocks: Readonly<Record<number, BlockFormat>> = {
  2: q4_0,
  3: q4_1,
  6: q5_0,
  7: q5_1,
  8: q8_0,
  10: q2_k,
  11: q3_k,
  12: q4_k,
  13: q5_k,
  14: q6_k,
  20: iq4_nl,
};
const plain: Readonly<Record<number, { readonly dtype: "F32" | "F16" | "BF16"; readonly nearest: Format }>> =
  {
    0: { dtype: "F32", nearest: "f32" },
    1: { dtype: "F16", nearest: "f16" },
    30: { dtype: "BF16", nearest: "bf16" },
  };

export interface TensorLayout {
  /** Bytes of a row. */
  readonly bytes: number;
  /** What rows say; `first`: the number of their first value in the tensor, for messages. */
  readonly read: (raw: Uint8Array, first: number) => Float32Array;
  /** The format that holds rows as they are, or loses least of them. */
  readonly nearest: Format;
  /** The planes of rows in `nearest`, where it holds them in the blocks that they lie in; else null. */
  readonly planes: (raw: Uint8Array) => readonly Words[] | null;
}
/** Rows of `row` numbers of a GGML type. Throws WEFT_WEIGHTS for a type that is not known. */
export function layoutOf(type: number, row: number, where: string): TensorLayout {
  const known = plain[type];
  if (known) {
    const { dtype, nearest } = known;
    return {
      bytes: row * (dtype === "F32" ? 4 : 2),
      read: (raw, first) => decode(raw, dtype, where, first),
      nearest,
      planes: () => null,
    };
  }
  const fail = (expected: string, found: string): never => {
    throw new WeftError({ code: "WEFT_WEIGHTS", where, expected, found });
  };
  const names = [...Object.values(plain).map((p) => p.dtype), ...Object.values(blocks).map((b) => b.name)];
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
    nearest: block.nearest,
    planes: (raw) => planesOfBlocks(block, raw),
  };
}
/** Blocks of 32 → steps, two in a byte where they have four bits, and what blocks share. */
function planesOfBlocks({ steps, bytes, nearest }: BlockFormat, raw: Uint8Array): readonly Words[] | null {
  if (!steps) return null;
  const count = raw.length / bytes;
  const paired = nearest === "q4";
  const values = paired ? new Uint8Array(count * 16) : new Int8Array(count * 32);
  const scales = new Uint16Array(count * (paired ? 2 : 1));
  for (let b = 0; b < count; b++) {
    const s = steps(raw, b * bytes);
    if (!s) return null;
    if (paired) for (let i = 0; i < 16; i++) values[b * 16 + i] = s.q[2 * i]! | (s.q[2 * i + 1]! << 4);
    else values.set(s.q, b * 32);
    scales.set(s.scales, b * s.scales.length);
  }
  return [values, scales];
}
