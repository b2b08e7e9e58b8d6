/**
 * What the kernels of attention share on the CPU: vectors of one head in registers, full vectors of four
 * dims, then scalar dims. Key tiles of 32 from position 0, folded in order.
 */
import { KV_BLOCK, type Type } from "../../../ops/index.ts";
import { type KvFormat, kvFormatOf, kvFormats, kvStride, layerWord } from "../../../runtime/bundle.ts";
import type { KernelEnv } from "../../kernel.ts";
import type { Body } from "../body.ts";
import { f32, rowPtr } from "./assemblyscript.ts";
import { type Lines, lines } from "./lines.ts";

type Kv = Type & { kind: "kv" };

/** Vectors of `hd` dims, as `name0`, `name1` … of four dims and `names8` … of one, of rows of a format. */
function vectors(hd: number, { bytes, assembly: { load4, load1 } }: KvFormat, stride = hd) {
  const quads = Array.from({ length: hd >> 2 }, (_, i) => i);
  const [four, one] = [
    (ptr: string, i: number): string => load4(ptr, i * 4 * bytes),
    (ptr: string, d: number): string => load1(ptr, d * bytes),
  ];
  const rest = Array.from({ length: hd & 3 }, (_, i) => (quads.length << 2) + i);
  /** Statements for every quad and for every dim of the rest. */
  const each = (quad: (i: number) => Lines, one: (d: number) => Lines): Lines => [
    ...quads.flatMap(quad),
    ...rest.flatMap(one),
  ];
  return {
    each,
    /** From a row to the next. */
    bytes: stride * bytes,
    load: (name: string, ptr: string): Lines =>
      each(
        (i) => [`const ${name}${i}: v128 = ${four(ptr, i)};`],
        (d) => [`const ${name}s${d}: f32 = ${one(ptr, d)};`],
      ),
    zero: (name: string): Lines =>
      each(
        (i) => [`let ${name}${i}: v128 = f32x4.splat(0);`],
        (d) => [`let ${name}s${d}: f32 = 0;`],
      ),
    /** `let out = name · row at ptr`: lanes over dims, folded once. */
    dot: (out: string, name: string, ptr: string): Lines => lines`
      let ${out}v: v128 = f32x4.splat(0);
      ${quads.map((i) => `${out}v = madd(${name}${i}, ${four(ptr, i)}, ${out}v);`)}
      let ${out}: f32 = hsum(${out}v);
      ${rest.map((d) => `${out} += ${name}s${d} * ${one(ptr, d)};`)}`,
    /** name += s · row at ptr. */
    axpy: (name: string, s: string, ptr: string): Lines => [
      `const ${s}_: v128 = f32x4.splat(${s});`,
      ...each(
        (i) => [`${name}${i} = madd(${s}_, ${four(ptr, i)}, ${name}${i});`],
        (d) => [`${name}s${d} += ${s} * ${one(ptr, d)};`],
      ),
    ],
  };
}

export function attentionOf(b: Body, env: KernelEnv) {
  const node = b.node!;
  const kv = node.ins[1]!.type as Kv;
  const heads = Number(node.attrs.heads);
  const at = env.address(node.ins[1]!);
  const rows = vectors(kv.headDim, kvFormats.f32);
  const cached = vectors(kv.headDim, kvFormatOf(kv.format), kvStride(kv.headDim));
  const { scale: s, softcap: cap, window } = node.attrs;
  const splat = (x: number): string => `f32x4.splat(${f32(Math.fround(x))})`;
  const capped = cap !== undefined;
  const inCaps = Number(s) / Number(cap);
  const seen = `load<i32>(tables, ${layerWord("window") * 4})`;
  const word = (array: string, index: string): string =>
    `load<i32>(meta + ((<usize>${index}) << 2), ${env.layout.arrays[array]! * 4})`;
  return {
    ...rows,
    hd: kv.headDim,
    /** The same of rows of the cache. */
    cached,
    heads,
    kvHeads: kv.heads,
    group: heads / kv.heads,
    /** `a`, a product of q and k, becomes a score: bounded, under a soft cap. */
    score: capped
      ? `a = tanh1(a * ${f32(Math.fround(inCaps))}) * ${f32(Math.fround(Number(cap)))};`
      : `a *= ${f32(Math.fround(Number(s)))};`,
    /** Four products at `at`, as scores; the derivatives of these. Under a soft cap both need `bound`. */
    bound: capped ? [`const z: v128 = tanh4(f32x4.mul(v128.load(at), ${splat(inCaps)}));`] : [],
    scores: capped ? `f32x4.mul(z, ${splat(Number(cap))})` : `f32x4.mul(v128.load(at), ${splat(Number(s))})`,
    slopes: capped
      ? `f32x4.mul(f32x4.sub(f32x4.splat(1), f32x4.mul(z, z)), ${splat(Number(s))})`
      : splat(Number(s)),
    /** The first tile that a row sees, and in tile t its first key; these need `seen` and `firstKey`. */
    seen: window ? [`const seen: i32 = max(0, keys - ${seen});`] : [],
    firstTile: window ? "seen >> 5" : "0",
    firstKey: window ? ["const first: i32 = max(0, seen - t * 32);"] : [],
    first: window ? "first" : "0",
    from: (head: string): string => (window ? `${head} + <usize>first * ${cached.bytes}` : head),
    /** Scores of keys that are not seen: nothing beside the row's own. */
    unseen: (to: string): Lines =>
      window ? [`for (let j: i32 = 0; j < first; j++) store<f32>(${to} + ((<usize>j) << 2), -1.0e30);`] : [],
    /** The end of a segment's rows that see `key`; with a window it needs `lastRow`. */
    lastRow: window ? [`const last: i32 = min(end, r0 + max(0, key + ${seen} - pos0));`] : [],
    last: window ? "last" : "end",
    /** Row `row` of operand `i`, from head 0 and from head `h`. */
    row: (i: number): string => rowPtr(b.operands[i]!, env, "row"),
    head: (i: number): string => `${rowPtr(b.operands[i]!, env, "row")} + <usize>h * ${rows.bytes}`,
    out: (index: number) => env.address({ node, index, type: node.outs[index]! }),
    word,
    pos: word("pos", "row"),
    table: word("table", "row"),
    /** Keys (part 0) or values (1) of a head in tile t of the row's table. */
    block: (part: 0 | 1, head: string): string => {
      const block = "load<i32>(meta + ((<usize>(table + t)) << 2))";
      const first = `(${block} * 2 + ${part}) * ${kv.heads} + ${head}`;
      return `${at.space} + ${at.offset * 4} + ((<usize>(${first})) * ${KV_BLOCK * cached.bytes})`;
    },
  };
}
