/**
 * Attention on the CPU, unrolled over head_dim: full vectors, then scalar dims. Key tiles of 32 from position
 * 0, folded in order.
 */
import { KV_BLOCK, type Type, type Value } from "../../ops/index.ts";
import type { Body } from "../fuse.ts";
import type { KernelEnv } from "../kernel.ts";
import { count, f32, header, indent, rowPtr, wrap } from "./assemblyscript_parts.ts";

type Kv = Type & { kind: "kv" };
/** Query rows that meet a key in one go: what is read of them stays in the first-level cache. */
const DKV_ROWS = 16;
/** Bytes of a thread's scratch that an attention body needs. */
export function attentionScratch(b: Body, unitRows: number): number {
  const heads = Number(b.node!.attrs.heads);
  if (b.skeleton === "attend_dkv")
    return 3 * DKV_ROWS * (heads / (b.node!.ins[1]!.type as Kv).heads) * 4 + unitRows * heads * 4;
  return (b.skeleton === "attend_dq" ? 2 : 1) * KV_BLOCK * 4;
}

export function emitAttention(name: string, b: Body, env: KernelEnv): string {
  const node = b.node!;
  const kv = node.ins[1]!.type as Kv;
  const heads = Number(node.attrs.heads);
  const group = heads / kv.heads;
  const hd = kv.headDim;
  const nv = hd >> 2;
  const rest = Array.from({ length: hd & 3 }, (_, i) => (nv << 2) + i);
  const vs = Array.from({ length: nv }, (_, i) => i);
  const scale = f32(Math.fround(Number(node.attrs.scale)));
  const kvp = env.address(node.ins[1]!);
  const kvBase = `${kvp.cls} + ${kvp.offset * 4}`;
  const headBytes = hd * 4;
  const ptrOf = (v: Value, r: string): string => {
    const o = b.operands[node.ins.indexOf(v)]!;
    return rowPtr(o, env, r);
  };
  const load = (prefix: string, ptr: string): string[] => [
    ...vs.map((i) => `const ${prefix}${i}: v128 = v128.load(${ptr}, ${i * 16});`),
    ...rest.map((d) => `const ${prefix}s${d}: f32 = load<f32>(${ptr}, ${d * 4});`),
  ];
  const zero = (prefix: string): string[] => [
    ...vs.map((i) => `let ${prefix}${i}: v128 = f32x4.splat(0);`),
    ...rest.map((d) => `let ${prefix}s${d}: f32 = 0;`),
  ];
  /** `let name = prefix · row at ptr`: lanes over dims, folded once. */
  const dot = (out: string, prefix: string, ptr: string): string[] => [
    `let ${out}v: v128 = f32x4.splat(0);`,
    ...vs.map((i) => `${out}v = madd(${prefix}${i}, v128.load(${ptr}, ${i * 16}), ${out}v);`),
    `let ${out}: f32 = hsum(${out}v);`,
    ...rest.map((d) => `${out} += ${prefix}s${d} * load<f32>(${ptr}, ${d * 4});`),
  ];
  const axpy = (prefix: string, s: string, ptr: string): string[] => [
    `const ${s}_: v128 = f32x4.splat(${s});`,
    ...vs.map((i) => `${prefix}${i} = madd(${s}_, v128.load(${ptr}, ${i * 16}), ${prefix}${i});`),
    ...rest.map((d) => `${prefix}s${d} += ${s} * load<f32>(${ptr}, ${d * 4});`),
  ];
  const posAt = `load<i32>(meta + ((<usize>row) << 2), ${env.layout.arrays.pos! * 4})`;
  const tableAt = `load<i32>(meta + ((<usize>row) << 2), ${env.layout.arrays.table! * 4})`;
  const block = (part: number, head: string): string =>
    `${kvBase} + ((<usize>((load<i32>(meta + ((<usize>(table + t)) << 2)) * 2 + ${part}) * ${kv.heads} + ${head})) * ${KV_BLOCK * headBytes})`;
  const [q, , oIn, lseIn, dout] = node.ins;
  const outAddr = (index: number) => env.address({ node, index, type: node.outs[index]! });
  const n = `  const n: i32 = ${count(b.domain)};`;

  if (b.skeleton === "attend") {
    const [o, l] = [outAddr(0), outAddr(1)];
    return wrap(name, [
      n,
      "  const s: usize = scratch;",
      "  for (let row: i32 = 0; row < n; row++) {",
      `    const keys: i32 = ${posAt} + 1;`,
      `    const table: i32 = ${tableAt};`,
      `    for (let h: i32 = 0; h < ${heads}; h++) {`,
      `      if ((row * ${heads} + h) % parts != part) continue;`,
      `      const g: i32 = h / ${group};`,
      `      const qp: usize = ${ptrOf(q!, "row")} + <usize>h * ${headBytes};`,
      ...indent(load("q", "qp"), 6),
      ...indent(zero("o"), 6),
      "      let m: f32 = -1.0e30;",
      "      let l: f32 = 0;",
      "      for (let t: i32 = 0; t * 32 < keys; t++) {",
      "        const c: i32 = min(32, keys - t * 32);",
      `        let kp: usize = ${block(0, "g")};`,
      "        let mt: f32 = m;",
      "        for (let j: i32 = 0; j < c; j++) {",
      ...indent(dot("a", "q", "kp"), 10),
      `          a *= ${scale};`,
      "          store<f32>(s + ((<usize>j) << 2), a);",
      "          mt = mt < a ? a : mt;",
      `          kp += ${headBytes};`,
      "        }",
      "        for (let j: i32 = c; j < 32; j++) store<f32>(s + ((<usize>j) << 2), -1.0e30);",
      "        const corr: f32 = exp1(m - mt);",
      "        m = mt;",
      "        const mv: v128 = f32x4.splat(m);",
      "        let lv: v128 = f32x4.splat(0);",
      "        for (let j: i32 = 0; j < 32; j += 4) {",
      "          const e: v128 = exp4(f32x4.sub(v128.load(s + ((<usize>j) << 2)), mv));",
      "          v128.store(s + ((<usize>j) << 2), e);",
      "          lv = f32x4.add(lv, e);",
      "        }",
      "        l = l * corr + hsum(lv);",
      "        const cv: v128 = f32x4.splat(corr);",
      ...indent(
        [...vs.map((i) => `o${i} = f32x4.mul(o${i}, cv);`), ...rest.map((d) => `os${d} *= corr;`)],
        8,
      ),
      `        let vp: usize = ${block(1, "g")};`,
      "        for (let j: i32 = 0; j < c; j++) {",
      "          const w: f32 = load<f32>(s + ((<usize>j) << 2));",
      ...indent(axpy("o", "w", "vp"), 10),
      `          vp += ${headBytes};`,
      "        }",
      "      }",
      "      const inv: f32 = <f32>1 / l;",
      "      const iv: v128 = f32x4.splat(inv);",
      `      const op: usize = ${o.cls} + ((<usize>(row * ${o.stride} + h * ${hd})) << 2) + ${o.offset * 4};`,
      ...indent(
        [
          ...vs.map((i) => `v128.store(op, f32x4.mul(o${i}, iv), ${i * 16});`),
          ...rest.map((d) => `store<f32>(op, os${d} * inv, ${d * 4});`),
        ],
        6,
      ),
      `      store<f32>(${l.cls} + ((<usize>(row * ${l.stride} + h)) << 2) + ${l.offset * 4}, m + log1(l));`,
      "    }",
      "  }",
    ]);
  }

  const dsum = [...load("g", "gp"), ...dot("dsum", "g", "op")];
  const lse = `load<f32>(${ptrOf(lseIn!, "row")} + ((<usize>h) << 2))`;
  if (b.skeleton === "attend_dq") {
    const d = outAddr(0);
    /** Dots of the tile's rows at `from` with `prefix`, to `to`. */
    const scores = (prefix: string, from: string, to: string): string[] => [
      "for (let j: i32 = 0; j < c; j++) {",
      `  const p: usize = ${from} + <usize>j * ${headBytes};`,
      ...indent(dot("a", prefix, "p"), 2),
      `  store<f32>(${to} + ((<usize>j) << 2), a);`,
      "}",
    ];
    return wrap(name, [
      n,
      "  const s: usize = scratch;",
      "  for (let row: i32 = 0; row < n; row++) {",
      `    const keys: i32 = ${posAt} + 1;`,
      `    const table: i32 = ${tableAt};`,
      `    for (let h: i32 = 0; h < ${heads}; h++) {`,
      `      if ((row * ${heads} + h) % parts != part) continue;`,
      `      const kh: i32 = h / ${group};`,
      `      const qp: usize = ${ptrOf(q!, "row")} + <usize>h * ${headBytes};`,
      `      const op: usize = ${ptrOf(oIn!, "row")} + <usize>h * ${headBytes};`,
      `      const gp: usize = ${ptrOf(dout!, "row")} + <usize>h * ${headBytes};`,
      ...indent([...load("q", "qp"), ...dsum, `const lse: f32 = ${lse};`, ...zero("d")], 6),
      "      for (let t: i32 = 0; t * 32 < keys; t++) {",
      "        const c: i32 = min(32, keys - t * 32);",
      `        const k0: usize = ${block(0, "kh")};`,
      `        const v0: usize = ${block(1, "kh")};`,
      ...indent(
        [
          ...scores("q", "k0", "s"),
          ...scores("g", "v0", `s + ${KV_BLOCK * 4}`),
          "for (let j: i32 = 0; j < c; j += 4) {",
          "  const at: usize = s + ((<usize>j) << 2);",
          `  const p: v128 = exp4(f32x4.sub(f32x4.mul(v128.load(at), f32x4.splat(${scale})), f32x4.splat(lse)));`,
          `  v128.store(at, f32x4.mul(f32x4.mul(p, f32x4.sub(v128.load(at, ${KV_BLOCK * 4}), f32x4.splat(dsum))), f32x4.splat(${scale})));`,
          "}",
          "for (let j: i32 = 0; j < c; j++) {",
          `  const kp: usize = k0 + <usize>j * ${headBytes};`,
          "  const ds: f32 = load<f32>(s + ((<usize>j) << 2));",
          ...indent(axpy("d", "ds", "kp"), 2),
          "}",
        ],
        8,
      ),
      "      }",
      `      const out: usize = ${d.cls} + ((<usize>(row * ${d.stride} + h * ${hd})) << 2) + ${d.offset * 4};`,
      ...indent(
        [
          ...vs.map((i) => `v128.store(out, d${i}, ${i * 16});`),
          ...rest.map((e) => `store<f32>(out, ds${e}, ${e * 4});`),
        ],
        6,
      ),
      "    }",
      "  }",
    ]);
  }

  // dkv: each (key, kv head) is owned once; its sequence's segments fold one after another, in each the query
  // rows and their heads in order.
  const d = env.address({ node, index: 0, type: node.outs[0]! });
  const width = 2 * kv.heads * hd;
  const seg = (array: string, at: string): string =>
    `load<i32>(meta + ((<usize>(${at})) << 2), ${env.layout.arrays[array]! * 4})`;
  const half = (width / 2) * 4;
  // Pairs of a block of query rows and the key head's heads, in order: dots first, then all exponentials,
  // then sums, each with one row in registers.
  const pairBytes = DKV_ROWS * group * 4;
  const pairs = (ptr: string, of: Value, lines: readonly string[]): string[] => [
    "for (let row: i32 = rb, at: usize = S; row < re; row++)",
    `  for (let h: i32 = kh * ${group}; h < (kh + 1) * ${group}; h++, at += 4) {`,
    `    const ${ptr}: usize = ${ptrOf(of, "row")} + <usize>h * ${headBytes};`,
    ...indent(lines, 4),
    "  }",
  ];
  return wrap(name, [
    n,
    // D = rowsum(dO · O) of each (row, head); every thread makes its own.
    `  const S: usize = scratch;`,
    `  const D: usize = scratch + ${3 * pairBytes};`,
    "  for (let row: i32 = 0; row < n; row++)",
    `    for (let h: i32 = 0; h < ${heads}; h++) {`,
    `      const op: usize = ${ptrOf(oIn!, "row")} + <usize>h * ${headBytes};`,
    `      const gp: usize = ${ptrOf(dout!, "row")} + <usize>h * ${headBytes};`,
    ...indent(dsum, 6),
    `      store<f32>(D + ((<usize>(row * ${heads} + h)) << 2), dsum);`,
    "    }",
    `  for (let s: i32 = 0; s < ${header("n_segments")}; s++) {`,
    `    const base: i32 = ${seg("seg_base", "s")};`,
    `    const fresh: i32 = ${seg("seg_fresh", "s")};`,
    `    const r0: i32 = ${seg("seg_row", "s")};`,
    `    const end: i32 = r0 + ${seg("seg_rows", "s")};`,
    `    const pos0: i32 = ${seg("pos", "r0")};`,
    `    const table: i32 = ${seg("table", "r0")};`,
    "    for (let key: i32 = 0; key < pos0 + end - r0; key++) {",
    "      const t: i32 = key >> 5;",
    `      for (let kh: i32 = 0; kh < ${kv.heads}; kh++) {`,
    `        if ((key * ${kv.heads} + kh) % parts != part) continue;`,
    `        const kp: usize = ${block(0, "kh")} + <usize>(key & 31) * ${headBytes};`,
    `        const vp: usize = ${block(1, "kh")} + <usize>(key & 31) * ${headBytes};`,
    ...indent([...load("k", "kp"), ...load("v", "vp"), ...zero("dk"), ...zero("dv")], 8),
    `        for (let rb: i32 = r0 + max(0, key - pos0); rb < end; rb += ${DKV_ROWS}) {`,
    `          const re: i32 = min(end, rb + ${DKV_ROWS});`,
    ...indent(
      [
        ...pairs("qp", q!, [
          ...dot("a", "k", "qp"),
          "store<f32>(at, a);",
          `store<f32>(at, ${lse}, ${2 * pairBytes});`,
        ]),
        ...pairs("gp", dout!, [
          ...dot("dp", "v", "gp"),
          `store<f32>(at, dp - load<f32>(D + ((<usize>(row * ${heads} + h)) << 2)), ${pairBytes});`,
        ]),
        `for (let at: usize = S; at < S + ((<usize>((re - rb) * ${group})) << 2); at += 16) {`,
        `  const p: v128 = exp4(f32x4.sub(f32x4.mul(v128.load(at), f32x4.splat(${scale})), v128.load(at, ${2 * pairBytes})));`,
        "  v128.store(at, p);",
        `  v128.store(at, f32x4.mul(f32x4.mul(p, v128.load(at, ${pairBytes})), f32x4.splat(${scale})), ${pairBytes});`,
        "}",
        ...pairs("qp", q!, [`const ds: f32 = load<f32>(at, ${pairBytes});`, ...axpy("dk", "ds", "qp")]),
        ...pairs("gp", dout!, ["const p: f32 = load<f32>(at);", ...axpy("dv", "p", "gp")]),
      ],
      10,
    ),
    "        }",
    `        const out: usize = ${d.cls} + ((<usize>((base + key) * ${width} + kh * ${hd})) << 2) + ${d.offset * 4};`,
    "        if (fresh) {",
    ...indent(
      [
        ...vs.flatMap((i) => [
          `v128.store(out, dk${i}, ${i * 16});`,
          `v128.store(out, dv${i}, ${half + i * 16});`,
        ]),
        ...rest.flatMap((e) => [
          `store<f32>(out, dks${e}, ${e * 4});`,
          `store<f32>(out, dvs${e}, ${half + e * 4});`,
        ]),
      ],
      10,
    ),
    "        } else {",
    ...indent(
      [
        ...vs.flatMap((i) => [
          `v128.store(out, f32x4.add(v128.load(out, ${i * 16}), dk${i}), ${i * 16});`,
          `v128.store(out, f32x4.add(v128.load(out, ${half + i * 16}), dv${i}), ${half + i * 16});`,
        ]),
        ...rest.flatMap((e) => [
          `store<f32>(out, load<f32>(out, ${e * 4}) + dks${e}, ${e * 4});`,
          `store<f32>(out, load<f32>(out, ${half + e * 4}) + dvs${e}, ${half + e * 4});`,
        ]),
      ],
      10,
    ),
    "        }",
    "      }",
    "    }",
    "  }",
  ]);
}
