/**
 * Prints kernels as WGSL: one entry point a launch, its bodies selected by workgroup_id.z. Eight storage bindings, one a memory class, serve every
 * kernel. Order is a number: each output is one ascending chain of fma over k, in the tile path and in the row path alike.
 */
import { type Domain, type Expr, type Ix, ixUsesCol, KV_BLOCK, optimizers, pairsOf, sparseIndex, type Type, type Value } from "../../ops/index.ts";
import { type Format, type GridDim, INT8_BLOCK } from "../../runtime/bundle.ts";
import type { Body, Operand, Store } from "../fuse.ts";
import { type AnyBody, isUpdate, type KernelEnv, memoryClasses, type ParamAddress, ROWS_HEADER, SEGMENT_ROWS, SLOT_TABLE, type UpdateBody, type Variant } from "../kernel.ts";
import type { Target } from "../target.ts";
import { type Dialect, Printer, usesCol } from "./printer.ts";
import { emitAttention } from "./wgsl_attention.ts";
import { f32, fn, header, indent, maskBit, rowAt, WG } from "./wgsl_parts.ts";

type Kv = Type & { kind: "kv" };
type Weight = Type & { kind: "weight" };
/** Rows of a product's register tile; a tail of at least so many takes a tile too, its missing rows being the last one again. */
const TILE = 8;
const TILE_FROM = 3;
/** Rows that a workgroup of a pointwise kernel, or of a shrink, goes through: a group costs more than a few elements. */
const ROWS = 4;
const MAX_GROUPS = 1024;

const headerF = (name: string): string => `bitcast<f32>(${header(name)})`;

function dialect(env: KernelEnv): Dialect {
  const ixText = (ix: Ix, p: Printer): string => {
    switch (ix.ix) {
      case "row":
        return "row";
      case "col":
        return "col";
      case "int":
        return String(ix.v);
      case "meta": {
        if (ix.name === "raw") return `batch[${p.ix(ix.at!)}]`;
        if (ix.at === null) return header(ix.name);
        const off = env.layout.arrays[ix.name];
        if (off === undefined) throw new Error(`no metadata array ${ix.name} in a ${env.layout.kind} block`);
        return `batch[${off} + ${p.ix(ix.at)}]`;
      }
      case "bin": {
        const [a, b] = [ixUsesCol(ix.a) ? ixText(ix.a, p) : p.ix(ix.a), ixUsesCol(ix.b) ? ixText(ix.b, p) : p.ix(ix.b)];
        const op = { add: "+", sub: "-", mul: "*", div: "/", mod: "%", lt: "<", xor: "^" }[ix.op];
        return ix.op === "lt" ? `select(0, 1, ${a} < ${b})` : `(${a} ${op} ${b})`;
      }
      case "rank":
        return `tables[${SLOT_TABLE + ix.branch * 2} + ${p.ix({ ix: "meta", name: "slot", at: ix.row })} * ${env.branches * 2}]`;
      case "slot":
        return `i32(${slotAt(ix.tensor, ix.row, p)} + ${p.ix(ix.at)}])`;
    }
  };
  /** An element of a slot tensor of the row's slot, up to its column. */
  const slotAt = (v: Value, row: Ix, p: Printer): string => {
    const f = env.address(v);
    return `${f.cls}[${f.offset} + ${p.ix({ ix: "meta", name: "slot", at: row })} * ${env.slotWords}`;
  };
  const d: Dialect = {
    type: () => "f32",
    constant: (v) => f32(v),
    splat: (t) => t,
    declare: (name, _type, text) => `let ${name} = ${text};`,
    declareInt: (name, text) => `let ${name} = ${text};`,
    call: (fn, a) => {
      switch (fn) {
        case "add":
        case "sub":
        case "mul":
        case "div":
          return `(${a[0]} ${{ add: "+", sub: "-", mul: "*", div: "/" }[fn]} ${a[1]})`;
        case "neg":
          return `(-${a[0]})`;
        case "rsqrt":
          return `(1.0f / sqrt(${a[0]}))`;
        case "pin":
          // A run-time zero that the driver cannot see through: the product inside is rounded here, in every kernel.
          return `bitcast<f32>(bitcast<u32>(${a[0]}) ^ u32(${header("zero")}))`;
        default:
          return `${fn}(${a.join(", ")})`;
      }
    },
    ix: ixText,
    load: (e, p) => {
      const t = e.value.type;
      const ad = env.address(e.value);
      if (t.kind === "weight") return `weight_${t.format}(${ad.offset}, ${p.ix(e.row)}, ${p.ix(e.col)}, ${t.k}${t.format === "int8" ? `, ${t.n}` : ""})`;
      if (t.kind === "factor") return `${slotAt(e.value, e.row, p)} + ${p.ix(e.col)}]`;
      const at = ad.stride === 0 || t.kind === "vector" ? `${ad.offset} + ${p.ix(e.col)}` : `${ad.offset} + ${p.ix(e.row)} * ${ad.stride} + ${p.ix(e.col)}`;
      return ad.cls === "weights" ? `vector_at(${at})` : `${ad.cls}[${at}]`;
    },
    leaf: (e, p) => {
      switch (e.e) {
        case "metaf":
          return e.at === null ? headerF(e.name) : `bitcast<f32>(batch[${env.layout.arrays[e.name]} + ${p.ix(e.at)}])`;
        case "scale":
          return `bitcast<f32>(tables[${SLOT_TABLE + e.branch * 2 + 1} + ${p.ix({ ix: "meta", name: "slot", at: e.row })} * ${env.branches * 2}])`;
        case "rand":
          return `rand(${p.ix(e.key)}, tables[0] * 64 + ${e.site}, ${p.ix(e.col)})`;
        case "expand": {
          const t = e.factor.type as Type & { kind: "factor" };
          const u = env.address(e.u);
          const f = env.address(e.factor);
          const slot = p.ix({ ix: "meta", name: "slot", at: e.row });
          return `expand(${u.offset} + ${p.ix(e.row)} * ${u.stride}, ${f.offset} + ${slot} * ${env.slotWords} + col, tables[${SLOT_TABLE + t.branch * 2} + ${slot} * ${env.branches * 2}], ${t.cols})`;
        }
        case "sparse": {
          const x = env.address(e.x);
          const slot = `${p.ix({ ix: "meta", name: "slot", at: e.row })} * ${env.slotWords}`;
          const index = `${env.address(e.index).offset} + ${slot}`;
          return `sparse(${x.offset} + ${p.ix(e.row)} * ${x.stride}, ${env.address(e.values).offset} + ${slot}, ${index} + ${e.start} + col, ${e.order === null ? -1 : `${index} + ${e.order}`}, ${index} + ${e.at})`;
        }
        case "acc":
          return "acc";
        case "stat":
          return `stat${e.id}`;
        case "arg":
          return `${e.name}_`;
        default:
          throw new Error(`cannot print ${e.e}`);
      }
    },
    test: (e, ix) => (e.test === "nonneg" ? `${ix} >= 0` : `${ix} != 0`),
    branch: (name, type, test, a, b) => [
      `var ${name}: ${type};`,
      `if (${test}) {`,
      ...a.lines.map((l) => `  ${l}`),
      `  ${name} = ${a.text};`,
      "} else {",
      ...b.lines.map((l) => `  ${l}`),
      `  ${name} = ${b.text};`,
      "}",
    ],
    choose: (e, a, b, p) => `select(${b}, ${a}, ${d.test(e, p.ix(e.ix))})`,
  };
  return d;
}

/** Statements that store a body's outputs at (row, col); `narrow` ones (one column) only where `first` holds. */
function stores(p: Printer, list: readonly Store[], env: KernelEnv, cols: number, first: string): string[] {
  const out: string[] = [];
  const target = (s: Store): { at: string; guard: string | null } => {
    const col = s.cols === 1 ? "0" : "col";
    if (s.to === "rows") {
      const ad = env.address(s.value);
      return { at: `${ad.cls}[${ad.offset} + row * ${ad.stride} + ${col}]`, guard: null };
    }
    if (s.to === "field") {
      const ad = env.address(s.field);
      const ix = p.ix({ ix: "meta", name: s.index, at: { ix: "row" } });
      return { at: `${ad.cls}[${ad.offset} + ${ix} * ${ad.stride} + ${col}]`, guard: `${ix} >= 0` };
    }
    const kv = s.kv.type as Kv;
    const ad = env.address(s.kv);
    const pos = p.ix({ ix: "meta", name: "pos", at: { ix: "row" } });
    const table = p.ix({ ix: "meta", name: "table", at: { ix: "row" } });
    return { at: `${ad.cls}[${ad.offset} + kv_index(${table}, ${pos}, ${s.part}, col / ${kv.headDim}, ${kv.heads}, ${kv.headDim}) + col % ${kv.headDim}]`, guard: null };
  };
  for (const s of list) {
    const narrow = s.cols === 1 && cols !== 1;
    if (narrow && usesCol(s.expr)) throw new Error("a one-column store depends on the column");
    const value = narrow ? p.scalar(s.expr) : p.at(s.expr);
    const t = target(s);
    const guards = [...(narrow ? [first] : []), ...(t.guard ? [t.guard] : [])];
    out.push(guards.length ? `if (${guards.join(" && ")}) { ${t.at} = ${value}; }` : `${t.at} = ${value};`);
  }
  return out;
}

const count = (domain: Domain): string => header(ROWS_HEADER[domain]);
const guard = (bit: number | null): string[] => (bit === null ? [] : [`  if (!(${maskBit(bit)})) { return; }`]);
const jobRank = (branch: number, env: KernelEnv): string => `tables[${SLOT_TABLE + branch * 2} + ${header("slot")} * ${env.branches * 2}]`;
/** Words of a slot tensor that the job's slot uses: what lies beyond its rank is zero. */
const wordsInUse = (p: ParamAddress, env: KernelEnv): string =>
  p.kind !== "factor" || p.rows === "one" ? String(p.words) : `min(${p.words}, ${jobRank(p.branch!, env)} * ${p.k})`;

/** A loop over the unit's segments, and inside it over the segment's rows `r`: each segment is summed on its own. */
function overSegments(domain: Domain, env: KernelEnv, before: readonly string[], each: readonly string[], after: readonly string[]): string[] {
  const [first, count] = SEGMENT_ROWS[domain]!;
  return [
    `  for (var s = 0; s < ${header("n_segments")}; s++) {`,
    `    let r0 = batch[${env.layout.arrays[first]} + s];`,
    `    let r1 = r0 + batch[${env.layout.arrays[count]} + s];`,
    ...indent(before, 4),
    "    for (var r = r0; r < r1; r++) {",
    ...indent(each, 6),
    "    }",
    ...indent(after, 4),
    "  }",
  ];
}

/** WGSL of one launch. */
export function emitLaunchWgsl(name: string, bodies: readonly AnyBody[], env: KernelEnv, target: Target, variant: Variant = "any"): string {
  const parts: string[] = [];
  let cases: string[] = [];
  bodies.forEach((b, i) => {
    parts.push(isUpdate(b) ? emitUpdate(`body_${i}`, b, env) : emitBody(`body_${i}`, b, env, target, variant));
    cases.push(`    case ${i}: { body_${i}(wg, lane); }`);
  });
  const [only] = bodies;
  if (only && isUpdate(only) && only.norms) cases = only.norms.map((_, i) => `    case ${i}: { body_0_${i}(wg, lane); }`);
  if (only && isUpdate(only) && only.skeleton === "optimizer") cases = only.params.map((_, i) => `    case ${i}: { body_0_${i}(wg, lane); }`);
  const text = parts.join("\n");
  const writesWeights = bodies.some((b) => isUpdate(b) && b.skeleton === "optimizer" && b.params.some((p) => p.kind !== "factor"));
  const used = (c: string): boolean => new RegExp(`\\b${c}\\[`).test(`${text}${helpers(text)}`);
  const declare = memoryClasses
    .map((c, i) => {
      const id = c === "meta" ? "batch" : c;
      if (!used(id)) return "";
      const type = c === "weights" ? (writesWeights ? "array<f32>" : "array<vec4<u32>>") : c === "meta" || c === "tables" ? "array<i32>" : "array<f32>";
      const access = c === "meta" || c === "tables" || (c === "weights" && !writesWeights) ? "read" : "read_write";
      return `@group(0) @binding(${i}) var<storage, ${access}> ${id}: ${type};`;
    })
    .filter(Boolean);
  return [
    `// ${name}`,
    `// ${bodies.map((b) => `${b.skeleton} ${b.name}`).join(", ")}`,
    ...declare,
    /\bpart\[/.test(text + helpers(text)) ? `var<workgroup> part: array<f32, ${WG}>;` : "",
    /\bshared_q\[/.test(text) ? `var<workgroup> shared_q: array<f32, ${sharedWords(bodies)}>;` : "",
    helpers(text),
    text,
    `@compute @workgroup_size(${WG})`,
    "fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) index: u32) {",
    "  let wg = vec3<i32>(group);",
    "  let lane = i32(index);",
    ...(cases.length === 1 ? [cases[0]!.replace(/^.*\{ (.*) \}$/, "  $1")] : ["  switch wg.z {", ...cases, "    default: {}", "  }"]),
    "}",
    "",
  ]
    .filter((l) => l !== "")
    .join("\n");
}
/** Text of four neighbouring columns of a matrix in panels of 16, at (panel, k, column in the panel); a place counts words, halves or bytes. */
function panelReader(format: Format, offset: number, n: number, k: number): (panel: string, k: string, column: string) => string {
  const base = offset * { f32: 1, f16: 2, int8: 4 }[format];
  const blocks = Math.ceil(k / INT8_BLOCK);
  const scales = 2 * offset + (Math.ceil(n / 16) * 16 * k) / 2;
  return (panel, row, column) => {
    const at = (from: number, rows: number, row: string): string => `${from} + ((${panel}) * ${rows} + ${row}) * 16 + ${column}`;
    return format === "int8" ? `panel_int8(${at(base, k, row)}, ${at(scales, blocks, `(${row}) / ${INT8_BLOCK}`)})` : `panel_${format}(${at(base, k, row)})`;
  };
}
const sharedWords = (bodies: readonly AnyBody[]): number =>
  Math.max(...bodies.map((b) => (isUpdate(b) || !b.node || !b.skeleton.startsWith("attend") ? 1 : (b.node.ins[1]!.type as Kv).headDim)));

/** Library functions that the text calls. */
function helpers(text: string): string {
  const all: Record<string, string> = {
    vector_at: "fn vector_at(i: i32) -> f32 {\n  return bitcast<f32>(weights[i / 4][i % 4]);\n}",
    panel_f32: "fn panel_f32(at: i32) -> vec4<f32> {\n  return bitcast<vec4<f32>>(weights[at / 4]);\n}",
    panel_f16:
      "/** Four halves from half-index `at` (a multiple of four). */\nfn panel_f16(at: i32) -> vec4<f32> {\n  let v = weights[at / 8];\n  let w = select(v.xy, v.zw, (at & 4) != 0);\n  return vec4<f32>(unpack2x16float(w.x), unpack2x16float(w.y));\n}".replace(
        /\/\*\*(.*?)\*\//,
        "//$1",
      ),
    panel_int8:
      "// Four int8 from byte `at` times four halves from half `scale` (multiples of four): exact.\nfn panel_int8(at: i32, scale: i32) -> vec4<f32> {\n  let q = bitcast<i32>(weights[at / 16][(at / 4) % 4]);\n  return vec4<f32>(f32((q << 24u) >> 24u), f32((q << 16u) >> 24u), f32((q << 8u) >> 24u), f32(q >> 24u)) * panel_f16(scale);\n}",
    weight_int8:
      "fn weight_int8(base: i32, n: i32, k: i32, K: i32, N: i32) -> f32 {\n  let columns = (N + PANEL - 1) / PANEL * PANEL;\n  let i = ((n / PANEL) * K + k) * PANEL + n % PANEL;\n  let s = (base * 2 + columns * K / 2) + ((n / PANEL) * ((K + 31) / 32) + k / 32) * PANEL + n % PANEL;\n  let q = panel_int8(base * 4 + i / 4 * 4, s / 4 * 4);\n  return q[n % 4];\n}",
    weight_f32: "fn weight_f32(base: i32, n: i32, k: i32, K: i32) -> f32 {\n  return vector_at(base + ((n / PANEL) * K + k) * PANEL + n % PANEL);\n}",
    weight_f16:
      "fn weight_f16(base: i32, n: i32, k: i32, K: i32) -> f32 {\n  let i = ((n / PANEL) * K + k) * PANEL + n % PANEL;\n  let word = base + i / 2;\n  let v = unpack2x16float(weights[word / 4][word % 4]);\n  return select(v.x, v.y, (i & 1) == 1);\n}",
    expand:
      "fn expand(u: i32, f: i32, rank: i32, cols: i32) -> f32 {\n  var sum = 0.0f;\n  for (var r = 0; r < rank; r++) {\n    sum = fma(arena[u + r], adapters[f + r * cols], sum);\n  }\n  return sum;\n}",
    sparse:
      "// order < 0: entries are in the order wanted.\nfn sparse(x: i32, values: i32, start: i32, order: i32, at: i32) -> f32 {\n  var sum = 0.0f;\n  let end = i32(adapters[start + 1]);\n  for (var k = i32(adapters[start]); k < end; k++) {\n    var e = k;\n    if (order >= 0) { e = i32(adapters[order + k]); }\n    sum = fma(adapters[values + e], arena[x + i32(adapters[at + e])], sum);\n  }\n  return sum;\n}",
    rand: "fn rand(key: i32, salt: i32, col: i32) -> f32 {\n  var h = u32(key) ^ (u32(salt + 1) * 0x9e3779b9u) ^ (u32(col + 1) * 0x85ebca6bu);\n  h = (h ^ (h >> 16u)) * 0x7feb352du;\n  h = (h ^ (h >> 15u)) * 0x846ca68bu;\n  h = h ^ (h >> 16u);\n  return f32(h >> 8u) * 5.9604644775390625e-8f;\n}",
    kv_index: `fn kv_index(table: i32, pos: i32, half: i32, head: i32, heads: i32, hd: i32) -> i32 {\n  return (((batch[table + pos / ${KV_BLOCK}] * 2 + half) * heads + head) * ${KV_BLOCK} + pos % ${KV_BLOCK}) * hd;\n}`,
    fold_sum: `// Lanes in ascending order: the same tree whatever the batch.\nfn fold_sum(v: f32, lane: i32) -> f32 {\n  part[lane] = v;\n  workgroupBarrier();\n  if (lane == 0) {\n    var s = 0.0f;\n    for (var i = 0; i < ${WG}; i++) { s = s + part[i]; }\n    part[0] = s;\n  }\n  workgroupBarrier();\n  let s = part[0];\n  workgroupBarrier();\n  return s;\n}`,
    fold_max: `fn fold_max(v: f32, lane: i32) -> f32 {\n  part[lane] = v;\n  workgroupBarrier();\n  if (lane == 0) {\n    var s = part[0];\n    for (var i = 1; i < ${WG}; i++) { s = max(s, part[i]); }\n    part[0] = s;\n  }\n  workgroupBarrier();\n  let s = part[0];\n  workgroupBarrier();\n  return s;\n}`,
  };
  const need = new Set<string>();
  const visit = (t: string): void => {
    for (const [name, code] of Object.entries(all))
      if (!need.has(name) && new RegExp(`\\b${name}\\(`).test(t)) {
        need.add(name);
        visit(code.slice(code.indexOf("{")));
      }
  };
  visit(text);
  return Object.entries(all)
    .filter(([n]) => need.has(n))
    .map(([, code]) => code.replaceAll("PANEL", "16"))
    .join("\n");
}

/** One element of a product's epilogue. */
function epilogue(name: string, b: Body, env: KernelEnv): string {
  const p = new Printer(dialect(env), 1);
  const tail = stores(p, b.stores, env, b.cols, "col == 0");
  return fn(name, [...indent(p.row, 2), ...indent(p.col, 2), ...indent(tail, 2)], "row: i32, col: i32, acc: f32");
}

function emitBody(name: string, b: Body, env: KernelEnv, target: Target, variant: Variant): string {
  void target;
  switch (b.skeleton) {
    case "map": {
      const p = new Printer(dialect(env), 1);
      const tail = stores(p, b.stores, env, b.cols, "col == 0");
      return fn(name, [
        ...guard(b.bit),
        `  let col = wg.x * ${WG} + lane;`,
        `  if (col >= ${b.cols}) { return; }`,
        `  for (var row = wg.y * ${ROWS}; row < min(${count(b.domain)}, (wg.y + 1) * ${ROWS}); row++) {`,
        ...indent([...p.row, ...p.col, ...tail], 4),
        "  }",
      ]);
    }
    case "row": {
      const p = new Printer(dialect(env), 1);
      for (const s of b.stats) {
        const q = new Printer(p.dialect, 1, p);
        const t = q.at(s.expr);
        const max = s.reduce === "max";
        p.row.push(
          `var sum${s.id} = ${max ? "-3.0e38f" : "0.0f"};`,
          `for (var col = lane; col < ${b.cols}; col += ${WG}) {`,
          ...indent([...q.col, max ? `sum${s.id} = max(sum${s.id}, ${t});` : `sum${s.id} = sum${s.id} + ${t};`], 2),
          "}",
          `let stat${s.id} = ${max ? "fold_max" : "fold_sum"}(sum${s.id}, lane);`,
        );
      }
      const q = new Printer(p.dialect, 1, p);
      const tail = stores(q, b.stores, env, b.cols, "col == 0");
      return fn(name, ["  let row = wg.x;", ...indent(p.row, 2), `  for (var col = lane; col < ${b.cols}; col += ${WG}) {`, ...indent([...q.col, ...tail], 4), "  }"]);
    }
    case "linear": {
      const [x, w] = b.operands as [Operand, Operand];
      const t = w.value.type as Weight;
      const at4 = panelReader(t.format, env.address(w.value).offset, t.n, t.k);
      const rows = (n: number): string[] => {
        const is = Array.from({ length: n }, (_, i) => i);
        const at = is.map((i) => rowAt(x, env, n === 1 ? "r" : `min(r0 + ${i}, n - 1)`));
        return [
          ...is.map((i) => `let x${i} = ${at[i]!.at};`),
          ...is.map((i) => `var a${i} = vec4<f32>();`),
          `for (var k = 0; k < ${t.k}; k++) {`,
          `  let w = ${at4("col / 16", "k", "col % 16")};`,
          ...is.map((i) => `  a${i} = fma(vec4<f32>(${at[i]!.cls}[x${i} + k]), w, a${i});`),
          "}",
          // One copy of the epilogue, whatever the tile: it is the larger part of the text.
          `var out = array<vec4<f32>, ${n}>(${is.map((i) => `a${i}`).join(", ")});`,
          `for (var i = 0; i < ${n === 1 ? 1 : `min(${n}, n - r0)`}; i++) {`,
          `  for (var c = 0; c < ${t.n % 4 ? `min(4, ${t.n} - col)` : 4}; c++) { ${name}_e(${n === 1 ? "r" : "r0 + i"}, col + c, out[i][c]); }`,
          "}",
        ];
      };
      return `${epilogue(`${name}_e`, b, env)}\n${fn(name, [
        `  let n = ${count(b.domain)};`,
        `  let r0 = wg.y * ${TILE};`,
        `  let col = (wg.x * ${WG} + lane) * 4;`,
        `  if (col >= ${t.n}) { return; }`,
        `  if (n - r0 >= ${TILE_FROM}) {`,
        ...indent(rows(TILE), 4),
        "  } else {",
        "    for (var r = r0; r < n; r++) {",
        ...indent(rows(1), 6),
        "    }",
        "  }",
      ])}`;
    }
    case "linear_t": {
      const k = b.cols;
      const segments = pairsOf(b.operands);
      const rows = (n: number): string[] => {
        const is = Array.from({ length: n }, (_, i) => i);
        // A lane owns four columns: twelve loads for 32 products at eight rows and one n.
        const four = [0, 1, 2, 3];
        return [
          ...is.map((i) => `var a${i} = vec4<f32>();`),
          ...segments.flatMap(([dy, w], s) => {
            const t = w.value.type as Weight;
            const at4 = panelReader(t.format, env.address(w.value).offset, t.n, k);
            const at = is.map((i) => rowAt(dy, env, n === 1 ? "r" : `min(r0 + ${i}, n - 1)`));
            const full = t.n - (t.n % 4);
            const columns = four.map((c) => `let w${c} = ${at4("j / 16", `col + ${c}`, "j % 16")};`);
            const chains = (n: number): string[] =>
              four.slice(0, n).flatMap((j) => {
                const w = `let n${j} = vec4<f32>(${four.map((c) => `w${c}.${"xyzw"[j]}`).join(", ")});`;
                return [w, ...is.map((i) => `a${i} = fma(vec4<f32>(${at[i]!.cls}[y${s}_${i} + j + ${j}]), n${j}, a${i});`)];
              });
            return [
              ...is.map((i) => `let y${s}_${i} = ${at[i]!.at};`),
              `for (var j = 0; j < ${full}; j += 4) {`,
              ...indent([...columns, ...chains(4)], 2),
              "}",
              ...(t.n % 4 ? [`{ let j = ${full};`, ...indent([...columns, ...chains(t.n % 4)], 2), "}"] : []),
            ];
          }),
          `var out = array<vec4<f32>, ${n}>(${is.map((i) => `a${i}`).join(", ")});`,
          `for (var i = 0; i < ${n === 1 ? 1 : `min(${n}, n - r0)`}; i++) {`,
          `  for (var c = 0; c < ${k % 4 ? `min(4, ${k} - col)` : 4}; c++) { ${name}_e(${n === 1 ? "r" : "r0 + i"}, col + c, out[i][c]); }`,
          "}",
        ];
      };
      return `${epilogue(`${name}_e`, b, env)}\n${fn(name, [
        `  let n = ${count(b.domain)};`,
        `  let r0 = wg.y * ${TILE};`,
        `  let col = (wg.x * ${WG} + lane) * 4;`,
        `  if (col >= ${k}) { return; }`,
        `  if (n - r0 >= ${TILE_FROM}) {`,
        ...indent(rows(TILE), 4),
        "  } else {",
        "    for (var r = r0; r < n; r++) {",
        ...indent(rows(1), 6),
        "    }",
        "  }",
      ])}`;
    }
    case "shrink": {
      const [x, f] = b.operands as [Operand, Operand];
      const t = f.value.type as Type & { kind: "factor" };
      const at = rowAt(x, env, "row");
      return `${epilogue(`${name}_e`, b, env)}\n${fn(name, [
        ...guard(b.bit),
        `  let row = wg.x * ${ROWS} + lane / ${WG / ROWS};`,
        `  if (row >= ${count(b.domain)}) { return; }`,
        `  let slot = batch[${env.layout.arrays.slot} + row];`,
        `  let rank = tables[${SLOT_TABLE + t.branch * 2} + slot * ${env.branches * 2}];`,
        `  let x = ${at.at};`,
        `  for (var r = lane % ${WG / ROWS}; r < ${b.cols}; r += ${WG / ROWS}) {`,
        "    var sum = 0.0f;",
        "    if (r < rank) {",
        `      let f = ${env.address(f.value).offset} + slot * ${env.slotWords} + r * ${t.cols};`,
        `      for (var c = 0; c < ${t.cols}; c++) { sum = fma(${at.cls}[x + c], adapters[f + c], sum); }`,
        "    }",
        `    ${name}_e(row, r, sum);`,
        "  }",
      ])}`;
    }
    case "outer": {
      const [a, c, param] = b.operands as [Operand, Operand, Operand];
      const pa = env.param(String(b.node!.attrs.of));
      const ra = rowAt(a, env, "r");
      const rc = rowAt(c, env, "r");
      // A lane owns four columns of four rows of the gradient: eight loads for sixteen products, each element one ascending chain.
      const base = `${header("job")} * ${env.jobWords} + ${pa.accum}`;
      const four = [0, 1, 2, 3];
      const sums = four.map((i) => `var sum${i} = vec4<f32>();`);
      const add = four.map((i) => `total${i} = total${i} + sum${i};`);
      if (param.value.type.kind !== "weight") {
        const wide = pa.k % 4 === 0;
        const at = (i: number, c: number): string => `accum[o + ${i * pa.k + c}]`;
        const inside = (c: number): string => (wide ? "" : `if (col + ${c} < ${pa.k}) `);
        return fn(name, [
          ...guard(b.bit),
          `  let col = (wg.x * ${WG} + lane) * 4;`,
          "  let k = wg.y * 4;",
          // Rows of u beyond the slot's rank are zero, and so is their gradient.
          `  if (col >= ${pa.k} || k >= ${jobRank(pa.branch!, env)}) { return; }`,
          `  let o = ${base} + k * ${pa.k} + col;`,
          ...four.map((i) => `  var total${i} = vec4<f32>(${four.map((c) => at(i, c)).join(", ")});`),
          ...overSegments(
            b.domain,
            env,
            sums,
            [
              `let xp = ${rc.at} + col;`,
              `let x = vec4<f32>(${four.map((c) => `${rc.cls}[xp + ${c}]`).join(", ")});`,
              `let up = ${ra.at} + k;`,
              ...four.map((i) => `sum${i} = fma(vec4<f32>(${ra.cls}[up + ${i}]), x, sum${i});`),
            ],
            add,
          ),
          ...four.flatMap((i) => four.map((c) => `  ${inside(c)}{ ${at(i, c)} = total${i}.${"xyzw"[c]}; }`)),
        ]);
      }
      const lane = (j: number): string => (pa.n % 16 ? `select(0.0f, ${ra.cls}[min(y + ${j}, y0 + ${pa.n - 1})], j + ${j} < ${pa.n})` : `${ra.cls}[y + ${j}]`);
      return fn(name, [
        `  let at = wg.x * ${WG} + lane;`,
        "  let k = (at / 4) * 4;",
        `  if (k >= ${pa.k}) { return; }`,
        "  let j = wg.y * 16 + (at % 4) * 4;",
        `  if (wg.y >= ${Math.ceil(pa.n / 16)}) { return; }`,
        `  let o = ${base} + (wg.y * ${pa.k} + k) * 16 + (at % 4) * 4;`,
        ...four.map((i) => `  var total${i} = vec4<f32>(${four.map((c) => `accum[o + ${i * 16 + c}]`).join(", ")});`),
        ...overSegments(
          b.domain,
          env,
          sums,
          [
            `let y0 = ${ra.at};`,
            "let y = y0 + j;",
            `let d = vec4<f32>(${four.map(lane).join(", ")});`,
            `let xp = ${rc.at} + k;`,
            ...four.map((i) => `sum${i} = fma(vec4<f32>(${rc.cls}[xp + ${i}]), d, sum${i});`),
          ],
          add,
        ),
        ...four.map((i) => `  ${pa.k % 4 ? `if (k + ${i} < ${pa.k}) ` : ""}{ ${four.map((c) => `accum[o + ${i * 16 + c}] = total${i}.${"xyzw"[c]};`).join(" ")} }`),
      ]);
    }
    case "col_sum": {
      const [x] = b.operands as [Operand];
      const pa = env.param(String(b.node!.attrs.of));
      const at = rowAt(x, env, "r");
      return fn(name, [
        ...guard(b.bit),
        `  let col = wg.x * ${WG} + lane;`,
        `  if (col >= ${b.cols}) { return; }`,
        `  let o = ${header("job")} * ${env.jobWords} + ${pa.accum} + col;`,
        "  var total = accum[o];",
        ...overSegments(b.domain, env, ["var sum = 0.0f;"], [`sum = sum + ${at.cls}[${at.at} + col];`], ["total = total + sum;"]),
        "  accum[o] = total;",
      ]);
    }
    case "sampled": {
      const [dy, x] = b.operands as [Operand, Operand];
      const [values, index] = b.node!.ins.slice(2) as [Value, Value];
      const pa = env.param(String(b.node!.attrs.of));
      const at = sparseIndex(pa.n, Number(b.node!.attrs.outs), Number(b.node!.attrs.ins));
      const [rd, rx] = [rowAt(dy, env, "r"), rowAt(x, env, "r")];
      const places = `${env.address(index).offset} + ${header("slot")} * ${env.slotWords} + e`;
      return fn(name, [
        ...guard(b.bit),
        `  let e = wg.x * ${WG} + lane;`,
        `  if (e >= ${jobRank((values.type as Type & { kind: "factor" }).branch, env)}) { return; }`,
        `  let i = i32(adapters[${places} + ${at.rowOf}]);`,
        `  let j = i32(adapters[${places} + ${at.colOf}]);`,
        `  let o = ${header("job")} * ${env.jobWords} + ${pa.accum} + e;`,
        "  var total = accum[o];",
        ...overSegments(b.domain, env, ["var sum = 0.0f;"], [`sum = fma(${rd.cls}[${rd.at} + i], ${rx.cls}[${rx.at} + j], sum);`], ["total = total + sum;"]),
        "  accum[o] = total;",
      ]);
    }
    case "scatter_rows": {
      const [x] = b.operands as [Operand];
      const pa = env.param(String(b.node!.attrs.of));
      const at = rowAt(x, env, "r");
      return fn(name, [
        `  let k = wg.x * ${WG} + lane;`,
        `  if (k >= ${pa.k}) { return; }`,
        `  for (var r = 0; r < ${count(b.domain)}; r++) {`,
        `    let id = batch[${env.layout.arrays.ids} + r];`,
        `    let o = ${header("job")} * ${env.jobWords} + ${pa.accum} + ((id / 16) * ${pa.k} + k) * 16 + id % 16;`,
        `    accum[o] = accum[o] + ${at.cls}[${at.at} + k];`,
        "  }",
      ]);
    }
    case "attend":
    case "attend_dq":
    case "attend_dkv":
      return emitAttention(name, b, env, variant);
  }
}

/** Gradient norm, clip factor, optimizer step; the same layout of norms as the Wasm target. */
function emitUpdate(name: string, b: UpdateBody, env: KernelEnv): string {
  const norms = `${env.norms} + ${header("job")} * ${env.groups + 2}`;
  if (b.skeleton === "sumsq")
    return fn(name, [
      `  let g = ${header("job")} * ${env.jobWords};`,
      "  var total = 0.0f;",
      ...b.params.flatMap((p) => [
        `  ${p.branch === null ? "" : `if (${maskBit(p.branch)}) `}{`,
        `    for (var i = lane; i < ${wordsInUse(p, env)}; i += ${WG}) { let x = accum[g + ${p.accum} + i]; total = fma(x, x, total); }`,
        "  }",
      ]),
      "  let sum = fold_sum(total, lane);",
      `  if (lane == 0) { arena[${norms} + tables[0]] = sum; }`,
    ]);
  if (b.skeleton === "clip")
    return fn(name, [
      "  if (lane != 0) { return; }",
      `  let at = ${norms};`,
      "  var total = 0.0f;",
      `  for (var i = 0; i < ${env.groups}; i++) { total = total + arena[at + i]; }`,
      "  let norm = sqrt(total);",
      `  let limit = ${headerF("max_norm")};`,
      "  var scale = 1.0f;",
      "  if (limit > 0.0f && norm > limit) { scale = limit / (norm + 1.0e-6f); }",
      "  if ((bitcast<u32>(norm) & 0x7f800000u) == 0x7f800000u) { scale = -1.0f; }",
      `  arena[at + ${env.groups}] = scale;`,
      `  arena[at + ${env.groups + 1}] = norm;`,
    ]);
  if (b.skeleton === "row_norms") {
    const slot = (p: ParamAddress): string => `${p.offset} + ${header("slot")} * ${env.slotWords}`;
    return b
      .norms!.map(({ branch, weight, format, a, b: up, out }, i) =>
        fn(`${name}_${i}`, [
          ...guard(branch),
          `  let col = (wg.x * ${WG} + lane) * 4;`,
          `  if (col >= ${weight.n}) { return; }`,
          `  let scale = bitcast<f32>(tables[${SLOT_TABLE + branch * 2 + 1} + ${header("slot")} * ${env.branches * 2}]);`,
          `  let rank = ${jobRank(branch, env)};`,
          "  var sum = vec4<f32>();",
          `  for (var k = 0; k < ${weight.k}; k++) {`,
          "    var d = vec4<f32>();",
          "    for (var r = 0; r < rank; r++) {",
          `      let p = ${slot(up)} + r * ${weight.n} + col;`,
          `      d = fma(vec4<f32>(adapters[${slot(a)} + r * ${weight.k} + k]), vec4<f32>(adapters[p], adapters[p + 1], adapters[p + 2], adapters[p + 3]), d);`,
          "    }",
          `    let x = fma(vec4<f32>(scale), d, ${panelReader(format, weight.offset, weight.n, weight.k)("col / 16", "k", "col % 16")});`,
          "    sum = fma(x, x, sum);",
          "  }",
          `  for (var c = 0; c < min(4, ${weight.n} - col); c++) { adapters[${slot(out)} + col + c] = 1.0f / sqrt(sum[c]); }`,
        ]),
      )
      .join("\n");
  }
  return b.params.map((p, i) => optimizerBody(`${name}_${i}`, b, p, env, norms)).join("\n");
}

function optimizerBody(name: string, b: UpdateBody, p: ParamAddress, env: KernelEnv, norms: string): string {
  const rule = optimizers[b.optimizer!];
  const printer = new Printer(dialect(env), 1);
  const decay: Expr = p.kind === "vector" || (p.kind === "factor" && p.rows === "one") ? { e: "const", v: 0 } : { e: "metaf", name: "decay", at: null };
  const next = Object.entries(rule.update({ decay })).map(([key, e]) => [key, printer.at(e)] as const);
  const where: Record<string, string> = { param: p.kind === "factor" ? `adapters[${p.offset} + ${header("slot")} * ${env.slotWords} + i]` : `weights[${p.offset} + i]` };
  rule.states.forEach((s, i) => {
    where[s] = `accum[g + ${(i + 1) * p.words} + i]`;
  });
  return fn(name, [
    ...guard(p.branch),
    `  let g = ${header("job")} * ${env.jobWords} + ${p.accum};`,
    `  let clip = arena[${norms} + ${env.groups}];`,
    `  for (var i = wg.x * ${WG} + lane; i < ${wordsInUse(p, env)}; i += ${optimizerGroups(b) * WG}) {`,
    "    if (clip >= 0.0f) {",
    "      let grad_ = accum[g + i] * clip;",
    ...Object.entries(where).map(([key, at]) => `      let ${key}_ = ${at};`),
    ...indent([...printer.row, ...printer.col], 6),
    ...next.map(([key, t]) => `      ${where[key]} = ${t};`),
    "    }",
    "    accum[g + i] = 0.0f;",
    "  }",
  ]);
}
/** Each lane steps through at least eight elements: a workgroup costs more than a few of them. */
const optimizerGroups = (b: UpdateBody): number => Math.min(MAX_GROUPS, Math.ceil(Math.max(...b.params.map((p) => p.words)) / (WG * 8)));

const one: GridDim = { count: "one", mul: 1, div: 1 };
const fixed = (n: number): GridDim => ({ count: "one", mul: n, div: 1 });

/** Workgroups of a launch: x and y cover the largest body, z picks the body. */
export function gridOf(bodies: readonly AnyBody[], env: KernelEnv, variant: Variant = "any"): readonly [GridDim, GridDim, GridDim] {
  const first = bodies[0]!;
  if (isUpdate(first) && first.norms) return [fixed(Math.max(...first.norms.map((r) => Math.ceil(r.weight.n / 4 / WG)))), one, fixed(first.norms.length)];
  if (isUpdate(first)) return first.skeleton === "optimizer" ? [fixed(optimizerGroups(first)), one, fixed(first.params.length)] : [one, one, one];
  const list = bodies as readonly Body[];
  const rows = (div = 1): GridDim => ({ count: first.domain === "R" ? "n_head" : "n_rows", mul: 1, div });
  const cols = (f: (b: Body) => number): GridDim => fixed(Math.max(...list.map((b) => Math.ceil(f(b) / WG))));
  const z = fixed(bodies.length);
  const heads = (b: Body): number => Number(b.node!.attrs.heads);
  switch (first.skeleton) {
    case "map":
      return [cols((b) => b.cols), rows(ROWS), z];
    case "row":
      return [rows(), one, z];
    case "shrink":
      return [rows(ROWS), one, z];
    case "linear":
    case "linear_t":
      return [cols((b) => Math.ceil(b.cols / 4)), rows(TILE), z];
    case "outer": {
      const shape = list.map((b) => {
        const p = env.param(String(b.node!.attrs.of));
        return p.kind === "weight" ? [Math.ceil(p.k / 4) * 4, Math.ceil(p.n / 16)] : [Math.ceil(p.k / 4), Math.ceil(p.n / 4)];
      });
      return [fixed(Math.max(...shape.map((s) => Math.ceil(s[0]! / WG)))), fixed(Math.max(...shape.map((s) => s[1]!))), z];
    }
    case "col_sum":
      return [cols((b) => b.cols), one, z];
    case "sampled":
      return [cols((b) => env.param(String(b.node!.attrs.of)).n), one, z];
    case "scatter_rows":
      return [cols((b) => env.param(String(b.node!.attrs.of)).k), one, z];
    case "attend":
      return [variant === "few" ? { count: "few_rows", mul: 1, div: 1 } : { count: "many_rows", mul: 1, div: WG }, fixed(Math.max(...list.map(heads))), z];
    case "attend_dq":
      return [rows(WG), fixed(Math.max(...list.map(heads))), z];
    case "attend_dkv":
      return [{ count: "n_keys", mul: 1, div: WG }, fixed((first.node!.ins[1]!.type as Kv).heads), z];
  }
}
