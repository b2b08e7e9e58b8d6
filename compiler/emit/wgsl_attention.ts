/**
 * Attention in WGSL. A lane owns a row and head (forward, dq) or a key and head (dkv) and keeps its vectors
 * in registers: no barrier. The forward has a second kernel for few rows, where a workgroup shares one row
 * and head, its lanes over keys and then over dims. Both do the same operations in the same order on every
 * number: dims ascending in a dot product, key tiles of 32 from position 0, keys ascending in a tile.
 */
import { KV_BLOCK, type Node, type Type, type Value } from "../../ops/index.ts";
import type { Body } from "../fuse.ts";
import type { KernelEnv, Variant } from "../kernel.ts";
import { f32, fn, header, indent, pin, registers, rowAt, WG } from "./wgsl_parts.ts";

type Kv = Type & { kind: "kv" };

export function emitAttention(name: string, b: Body, env: KernelEnv, variant: Variant): string {
  const node = b.node!;
  switch (b.skeleton) {
    case "attend":
      return (variant === "few" ? forwardShared : forward)(name, b, node, env);
    case "attend_dq":
      return queries(name, b, node, env);
    default:
      return keys(name, b, node, env);
  }
}

function shape(b: Body, node: Node, env: KernelEnv) {
  const kv = node.ins[1]!.type as Kv;
  const heads = Number(node.attrs.heads);
  const offset = env.address(node.ins[1]!).offset;
  return {
    hd: kv.headDim,
    heads,
    kvHeads: kv.heads,
    group: heads / kv.heads,
    scale: f32(Number(node.attrs.scale)),
    /**
     * A product of q and k in the scale of the softmax; what is subtracted from it next must not be
     * contracted into it.
     */
    scaled: (dot: string): string => pin(`${dot} * ${f32(Number(node.attrs.scale))}`),
    /** First word of a position's key (part 0) or value (1). */
    kvAt: (part: 0 | 1, position: string, kh: string): string =>
      `${offset} + kv_index(table, ${position}, ${part}, ${kh}, ${kv.heads}, ${kv.headDim})`,
    operand: (v: Value, row: string) => rowAt(b.operands[node.ins.indexOf(v)]!, env, row),
    out: (index: number) => env.address({ node, index, type: node.outs[index]! }),
    pos: `batch[${env.layout.arrays.pos} + row]`,
    table: `batch[${env.layout.arrays.table} + row]`,
  };
}
const overDims = (hd: number, body: string): string => `for (var d = 0; d < ${hd}; d++) { ${body} }`;

function forward(name: string, b: Body, node: Node, env: KernelEnv): string {
  const { hd, group, scaled, kvAt, operand, out, pos, table } = shape(b, node, env);
  const [o, l] = [out(0), out(1)];
  const q = operand(node.ins[0]!, "row");
  return fn(name, [
    `  let row = wg.x * ${WG} + lane;`,
    `  if (row >= ${header("n_rows")}) { return; }`,
    "  let h = wg.y;",
    `  let kh = h / ${group};`,
    `  let keys = ${pos} + 1;`,
    `  let table = ${table};`,
    `  ${registers("q", hd)}`,
    `  ${registers("o", hd)}`,
    `  ${registers("s", KV_BLOCK)}`,
    `  let qp = ${q.at} + h * ${hd};`,
    `  ${overDims(hd, `q[d] = ${q.cls}[qp + d];`)}`,
    "  var m = -1.0e30f;",
    "  var l = 0.0f;",
    `  for (var t = 0; t < keys; t += ${KV_BLOCK}) {`,
    `    let c = min(${KV_BLOCK}, keys - t);`,
    `    let k = ${kvAt(0, "t", "kh")};`,
    "    var mt = m;",
    "    for (var j = 0; j < c; j++) {",
    "      var dot = 0.0f;",
    `      ${overDims(hd, `dot = fma(q[d], kv[k + j * ${hd} + d], dot);`)}`,
    `      s[j] = ${scaled("dot")};`,
    "      mt = max(mt, s[j]);",
    "    }",
    "    let corr = exp(m - mt);",
    "    m = mt;",
    "    var lt = 0.0f;",
    "    for (var j = 0; j < c; j++) { s[j] = exp(s[j] - m); lt = lt + s[j]; }",
    "    l = fma(l, corr, lt);",
    `    let v = ${kvAt(1, "t", "kh")};`,
    `    ${overDims(hd, "o[d] = o[d] * corr;")}`,
    `    for (var j = 0; j < c; j++) { let p = s[j]; ${overDims(hd, `o[d] = fma(p, kv[v + j * ${hd} + d], o[d]);`)} }`,
    "  }",
    "  let inv = 1.0f / l;",
    `  ${overDims(hd, `${o.cls}[${o.offset} + row * ${o.stride} + h * ${hd} + d] = o[d] * inv;`)}`,
    `  ${l.cls}[${l.offset} + row * ${l.stride} + h] = m + ${pin("log(l)")};`,
  ]);
}
function forwardShared(name: string, b: Body, node: Node, env: KernelEnv): string {
  const { hd, group, scaled, kvAt, operand, out, pos, table } = shape(b, node, env);
  const [o, l] = [out(0), out(1)];
  const q = operand(node.ins[0]!, "row");
  const own = Math.ceil(hd / WG);
  const each = (body: (i: number) => string): string[] =>
    Array.from({ length: own }, (_, i) => `{ let d = lane + ${i * WG}; if (d < ${hd}) { ${body(i)} } }`);
  return fn(name, [
    "  let row = wg.x;",
    "  let h = wg.y;",
    `  let kh = h / ${group};`,
    `  let keys = ${pos} + 1;`,
    `  let table = ${table};`,
    `  for (var d = lane; d < ${hd}; d += ${WG}) { shared_q[d] = ${q.cls}[${q.at} + h * ${hd} + d]; }`,
    ...Array.from({ length: own }, (_, i) => `  var o${i} = 0.0f;`),
    "  var m = -1.0e30f;",
    "  var l = 0.0f;",
    "  workgroupBarrier();",
    `  for (var t = 0; t < keys; t += ${KV_BLOCK}) {`,
    `    let c = min(${KV_BLOCK}, keys - t);`,
    "    if (lane < c) {",
    `      let k = ${kvAt(0, "t + lane", "kh")};`,
    "      var dot = 0.0f;",
    `      ${overDims(hd, "dot = fma(shared_q[d], kv[k + d], dot);")}`,
    `      part[lane] = ${scaled("dot")};`,
    "    }",
    "    workgroupBarrier();",
    "    var mt = m;",
    "    for (var j = 0; j < c; j++) { mt = max(mt, part[j]); }",
    "    let corr = exp(m - mt);",
    "    m = mt;",
    "    workgroupBarrier();",
    "    if (lane < c) { part[lane] = exp(part[lane] - m); }",
    "    workgroupBarrier();",
    "    var lt = 0.0f;",
    "    for (var j = 0; j < c; j++) { lt = lt + part[j]; }",
    "    l = fma(l, corr, lt);",
    `    let v = ${kvAt(1, "t", "kh")};`,
    ...indent(
      each(
        (i) =>
          `o${i} = o${i} * corr; for (var j = 0; j < c; j++) { o${i} = fma(part[j], kv[v + j * ${hd} + d], o${i}); }`,
      ),
      4,
    ),
    "    workgroupBarrier();",
    "  }",
    "  let inv = 1.0f / l;",
    ...indent(
      each((i) => `${o.cls}[${o.offset} + row * ${o.stride} + h * ${hd} + d] = o${i} * inv;`),
      2,
    ),
    `  if (lane == 0) { ${l.cls}[${l.offset} + row * ${l.stride} + h] = m + ${pin("log(l)")}; }`,
  ]);
}

function queries(name: string, b: Body, node: Node, env: KernelEnv): string {
  const { hd, group, scale, scaled, kvAt, operand, out, pos, table } = shape(b, node, env);
  const [q, , oIn, lseIn, dout] = node.ins;
  const [qAt, oAt, lAt, gAt] = [
    operand(q!, "row"),
    operand(oIn!, "row"),
    operand(lseIn!, "row"),
    operand(dout!, "row"),
  ];
  const dq = out(0);
  return fn(name, [
    `  let row = wg.x * ${WG} + lane;`,
    `  if (row >= ${header("n_rows")}) { return; }`,
    "  let h = wg.y;",
    `  let kh = h / ${group};`,
    `  let keys = ${pos} + 1;`,
    `  let table = ${table};`,
    ...["q", "g", "k", "dq"].map((v) => `  ${registers(v, hd)}`),
    `  let qp = ${qAt.at} + h * ${hd};`,
    `  let gp = ${gAt.at} + h * ${hd};`,
    `  let op = ${oAt.at} + h * ${hd};`,
    "  var dsum = 0.0f;",
    `  ${overDims(hd, `q[d] = ${qAt.cls}[qp + d]; g[d] = ${gAt.cls}[gp + d]; dsum = fma(g[d], ${oAt.cls}[op + d], dsum);`)}`,
    `  let lse = ${lAt.cls}[${lAt.at} + h];`,
    `  for (var t = 0; t < keys; t += ${KV_BLOCK}) {`,
    `    let kp = ${kvAt(0, "t", "kh")};`,
    `    let vp = ${kvAt(1, "t", "kh")};`,
    `    for (var j = 0; j < min(${KV_BLOCK}, keys - t); j++) {`,
    "      var dot = 0.0f;",
    "      var dp = 0.0f;",
    `      ${overDims(hd, `k[d] = kv[kp + j * ${hd} + d]; dot = fma(q[d], k[d], dot); dp = fma(g[d], kv[vp + j * ${hd} + d], dp);`)}`,
    `      let ds = exp(${scaled("dot")} - lse) * (dp - dsum) * ${scale};`,
    `      ${overDims(hd, "dq[d] = fma(ds, k[d], dq[d]);")}`,
    "    }",
    "  }",
    `  ${overDims(hd, `${dq.cls}[${dq.offset} + row * ${dq.stride} + h * ${hd} + d] = dq[d];`)}`,
  ]);
}

function keys(name: string, b: Body, node: Node, env: KernelEnv): string {
  const { hd, group, kvHeads, scale, scaled, kvAt, operand, out } = shape(b, node, env);
  const [q, , oIn, lseIn, dout] = node.ins;
  const [qAt, oAt, lAt, gAt] = [
    operand(q!, "row"),
    operand(oIn!, "row"),
    operand(lseIn!, "row"),
    operand(dout!, "row"),
  ];
  const d = out(0);
  const width = 2 * kvHeads * hd;
  const seg = (array: string, at: string): string => `batch[${env.layout.arrays[array]} + ${at}]`;
  return fn(name, [
    `  var key = wg.x * ${WG} + lane;`,
    `  if (key >= ${header("n_keys")}) { return; }`,
    "  var s = 0;",
    // The sequence this key belongs to: its segments follow one another, and only the first counts keys.
    `  while (key >= ${seg("seg_keys", "s")}) { key = key - ${seg("seg_keys", "s")}; s = s + 1; }`,
    "  let kh = wg.y;",
    `  let table = batch[${env.layout.arrays.table} + ${seg("seg_row", "s")}];`,
    `  let kp = ${kvAt(0, "key", "kh")};`,
    `  let vp = ${kvAt(1, "key", "kh")};`,
    `  let out = ${d.offset} + (${seg("seg_base", "s")} + key) * ${width} + kh * ${hd};`,
    ...["k", "v", "tk", "tv", "dk", "dv", "x", "g"].map((v) => `  ${registers(v, hd)}`),
    `  ${overDims(hd, "k[d] = kv[kp + d]; v[d] = kv[vp + d];")}`,
    `  if (${seg("seg_fresh", "s")} == 0) { ${overDims(hd, `tk[d] = ${d.cls}[out + d]; tv[d] = ${d.cls}[out + ${width / 2} + d];`)} }`,
    "  loop {",
    `    let r0 = ${seg("seg_row", "s")};`,
    `    let n = r0 + ${seg("seg_rows", "s")};`,
    `    let first = r0 + max(0, key - batch[${env.layout.arrays.pos} + r0]);`,
    // Cleared by hand: an array declared inside the loop was seen to keep what it held (SwiftShader).
    `    ${overDims(hd, "dk[d] = 0.0f; dv[d] = 0.0f;")}`,
    `    for (var h = kh * ${group}; h < (kh + 1) * ${group}; h++) {`,
    "      for (var row = first; row < n; row++) {",
    `        let qp = ${qAt.at} + h * ${hd};`,
    `        let gp = ${gAt.at} + h * ${hd};`,
    `        let op = ${oAt.at} + h * ${hd};`,
    "        var dot = 0.0f;",
    "        var dp = 0.0f;",
    "        var dsum = 0.0f;",
    `        ${overDims(hd, `x[d] = ${qAt.cls}[qp + d]; g[d] = ${gAt.cls}[gp + d]; dot = fma(x[d], k[d], dot); dp = fma(g[d], v[d], dp); dsum = fma(g[d], ${oAt.cls}[op + d], dsum);`)}`,
    `        let p = exp(${scaled("dot")} - ${lAt.cls}[${lAt.at} + h]);`,
    `        let ds = p * (dp - dsum) * ${scale};`,
    `        ${overDims(hd, "dk[d] = fma(ds, x[d], dk[d]); dv[d] = fma(p, g[d], dv[d]);")}`,
    "      }",
    "    }",
    `    if (first < n) { ${overDims(hd, "tk[d] = tk[d] + dk[d]; tv[d] = tv[d] + dv[d];")} }`,
    "    s = s + 1;",
    `    if (s >= ${header("n_segments")} || ${seg("seg_keys", "s")} > 0) { break; }`,
    "  }",
    `  ${overDims(hd, `${d.cls}[out + d] = tk[d]; ${d.cls}[out + ${width / 2} + d] = tv[d];`)}`,
  ]);
}
