/**
 * Prints kernels as WGSL: one entry point a launch, its bodies selected by workgroup_id.z. Eight storage
 * bindings, one a memory class, serve every kernel.
 */
import { type Expr, KV_BLOCK, optimizers, sparseIndex, type Type, type Value } from "../../ops/index.ts";
import type { GridDim } from "../../runtime/bundle.ts";
import type { Body, Operand } from "../fuse.ts";
import {
  type AnyBody,
  isUpdate,
  type KernelEnv,
  memoryClasses,
  type ParamAddress,
  SLOT_TABLE,
  type UpdateBody,
  type Variant,
} from "../kernel.ts";
import { Printer } from "./printer.ts";
import { emitAttention } from "./wgsl_attention.ts";
import { dialect, stores } from "./wgsl_dialect.ts";
import {
  count,
  fn,
  guard,
  header,
  headerF,
  indent,
  jobRank,
  maskBit,
  overSegments,
  panelReader,
  pin,
  ROWS,
  rowAt,
  WG,
  wordsInUse,
} from "./wgsl_parts.ts";
import { emitLinear, emitLinearT, emitOuter, emitShrink, TILE } from "./wgsl_products.ts";

type Kv = Type & { kind: "kv" };
/** Workgroups of an optimizer kernel, at most. */
const MAX_GROUPS = 1024;

/** WGSL of one launch. */
export function emitLaunchWgsl(
  name: string,
  bodies: readonly AnyBody[],
  env: KernelEnv,
  variant: Variant = "any",
): string {
  const parts: string[] = [];
  let cases: string[] = [];
  bodies.forEach((b, i) => {
    parts.push(isUpdate(b) ? emitUpdate(`body_${i}`, b, env) : emitBody(`body_${i}`, b, env, variant));
    cases.push(`    case ${i}: { body_${i}(wg, lane); }`);
  });
  const [only] = bodies;
  if (only && isUpdate(only) && only.norms)
    cases = only.norms.map((_, i) => `    case ${i}: { body_0_${i}(wg, lane); }`);
  if (only && isUpdate(only) && only.skeleton === "optimizer")
    cases = only.params.map((_, i) => `    case ${i}: { body_0_${i}(wg, lane); }`);
  const text = parts.join("\n");
  const writesWeights = bodies.some(
    (b) => isUpdate(b) && b.skeleton === "optimizer" && b.params.some((p) => p.kind !== "factor"),
  );
  const used = (c: string): boolean => new RegExp(`\\b${c}\\[`).test(`${text}${helpers(text)}`);
  const declare = memoryClasses
    .map((c, i) => {
      const id = c === "meta" ? "batch" : c;
      if (!used(id)) return "";
      const type =
        c === "weights"
          ? writesWeights
            ? "array<f32>"
            : "array<vec4<u32>>"
          : c === "meta" || c === "tables"
            ? "array<i32>"
            : "array<f32>";
      const access =
        c === "meta" || c === "tables" || (c === "weights" && !writesWeights) ? "read" : "read_write";
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
    ...(cases.length === 1
      ? [cases[0]!.replace(/^.*\{ (.*) \}$/, "  $1")]
      : ["  switch wg.z {", ...cases, "    default: {}", "  }"]),
    "}",
    "",
  ]
    .filter((l) => l !== "")
    .join("\n");
}

const sharedWords = (bodies: readonly AnyBody[]): number =>
  Math.max(
    ...bodies.map((b) =>
      isUpdate(b) || !b.node || !b.skeleton.startsWith("attend") ? 1 : (b.node.ins[1]!.type as Kv).headDim,
    ),
  );

/** Library functions that the text calls. */
function helpers(text: string): string {
  const all: Record<string, string> = {
    vector_at: "fn vector_at(i: i32) -> f32 {\n  return bitcast<f32>(weights[i / 4][i % 4]);\n}",
    panel_f32: "fn panel_f32(at: i32) -> vec4<f32> {\n  return bitcast<vec4<f32>>(weights[at / 4]);\n}",
    panel_f16:
      "// Four halves from half-index `at` (a multiple of four).\nfn panel_f16(at: i32) -> vec4<f32> {\n  let v = weights[at / 8];\n  let w = select(v.xy, v.zw, (at & 4) != 0);\n  return vec4<f32>(unpack2x16float(w.x), unpack2x16float(w.y));\n}",
    panel_int8:
      "// Four int8 from byte `at` times four halves from half `scale` (multiples of four): exact.\nfn panel_int8(at: i32, scale: i32) -> vec4<f32> {\n  let q = bitcast<i32>(weights[at / 16][(at / 4) % 4]);\n  return vec4<f32>(f32((q << 24u) >> 24u), f32((q << 16u) >> 24u), f32((q << 8u) >> 24u), f32(q >> 24u)) * panel_f16(scale);\n}",
    weight_int8:
      "fn weight_int8(base: i32, n: i32, k: i32, K: i32, N: i32) -> f32 {\n  let columns = (N + PANEL - 1) / PANEL * PANEL;\n  let i = ((n / PANEL) * K + k) * PANEL + n % PANEL;\n  let s = (base * 2 + columns * K / 2) + ((n / PANEL) * ((K + 31) / 32) + k / 32) * PANEL + n % PANEL;\n  let q = panel_int8(base * 4 + i / 4 * 4, s / 4 * 4);\n  return q[n % 4];\n}",
    weight_f32:
      "fn weight_f32(base: i32, n: i32, k: i32, K: i32) -> f32 {\n  return vector_at(base + ((n / PANEL) * K + k) * PANEL + n % PANEL);\n}",
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

function emitBody(name: string, b: Body, env: KernelEnv, variant: Variant): string {
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
          ...indent(
            [...q.col, max ? `sum${s.id} = max(sum${s.id}, ${t});` : `sum${s.id} = sum${s.id} + ${t};`],
            2,
          ),
          "}",
          `let stat${s.id} = ${max ? "fold_max" : "fold_sum"}(sum${s.id}, lane);`,
        );
      }
      const q = new Printer(p.dialect, 1, p);
      const tail = stores(q, b.stores, env, b.cols, "col == 0");
      return fn(name, [
        "  let row = wg.x;",
        ...indent(p.row, 2),
        `  for (var col = lane; col < ${b.cols}; col += ${WG}) {`,
        ...indent([...q.col, ...tail], 4),
        "  }",
      ]);
    }
    case "linear":
      return emitLinear(name, b, env);
    case "linear_t":
      return emitLinearT(name, b, env);
    case "shrink":
      return emitShrink(name, b, env);
    case "outer":
      return emitOuter(name, b, env);
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
        ...overSegments(
          b.domain,
          env,
          ["var sum = 0.0f;"],
          [`sum = sum + ${at.cls}[${at.at} + col];`],
          ["total = total + sum;"],
        ),
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
        ...overSegments(
          b.domain,
          env,
          ["var sum = 0.0f;"],
          [`sum = fma(${rd.cls}[${rd.at} + i], ${rx.cls}[${rx.at} + j], sum);`],
          ["total = total + sum;"],
        ),
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
  const decay: Expr =
    p.kind === "vector" || (p.kind === "factor" && p.rows === "one")
      ? { e: "const", v: 0 }
      : { e: "metaf", name: "decay", at: null };
  const next = Object.entries(rule.update({ decay })).map(([key, e]) => [key, printer.at(e)] as const);
  const where: Record<string, string> = {
    param:
      p.kind === "factor"
        ? `adapters[${p.offset} + ${header("slot")} * ${env.slotWords} + i]`
        : `weights[${p.offset} + i]`,
  };
  rule.states.forEach((s, i) => {
    where[s] = `accum[g + ${(i + 1) * p.words} + i]`;
  });
  return fn(name, [
    ...guard(p.branch),
    `  let g = ${header("job")} * ${env.jobWords} + ${p.accum};`,
    `  let clip = arena[${norms} + ${env.groups}];`,
    `  for (var i = wg.x * ${WG} + lane; i < ${wordsInUse(p, env)}; i += ${optimizerGroups(b) * WG}) {`,
    "    if (clip >= 0.0f) {",
    `      let grad_ = ${pin("accum[g + i] * clip")};`,
    ...Object.entries(where).map(([key, at]) => `      let ${key}_ = ${at};`),
    ...indent([...printer.row, ...printer.col], 6),
    ...next.map(([key, t]) => `      ${where[key]} = ${t};`),
    "    }",
    "    accum[g + i] = 0.0f;",
    "  }",
  ]);
}

/** Each lane steps through at least eight elements: a workgroup costs more than a few of them. */
const optimizerGroups = (b: UpdateBody): number =>
  Math.min(MAX_GROUPS, Math.ceil(Math.max(...b.params.map((p) => p.words)) / (WG * 8)));

const one: GridDim = { count: "one", mul: 1, div: 1 };
const fixed = (n: number): GridDim => ({ count: "one", mul: n, div: 1 });

/** Workgroups of a launch: x and y cover the largest body, z picks the body. */
export function gridOf(
  bodies: readonly AnyBody[],
  env: KernelEnv,
  variant: Variant = "any",
): readonly [GridDim, GridDim, GridDim] {
  const first = bodies[0]!;
  if (isUpdate(first) && first.norms)
    return [
      fixed(Math.max(...first.norms.map((r) => Math.ceil(r.weight.n / 4 / WG)))),
      one,
      fixed(first.norms.length),
    ];
  if (isUpdate(first))
    return first.skeleton === "optimizer"
      ? [fixed(optimizerGroups(first)), one, fixed(first.params.length)]
      : [one, one, one];
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
        return p.kind === "weight"
          ? [Math.ceil(p.k / 4) * 4, Math.ceil(p.n / 16)]
          : [Math.ceil(p.k / 4), Math.ceil(p.n / 4)];
      });
      return [
        fixed(Math.max(...shape.map((s) => Math.ceil(s[0]! / WG)))),
        fixed(Math.max(...shape.map((s) => s[1]!))),
        z,
      ];
    }
    case "col_sum":
      return [cols((b) => b.cols), one, z];
    case "sampled":
      return [cols((b) => env.param(String(b.node!.attrs.of)).n), one, z];
    case "scatter_rows":
      return [cols((b) => env.param(String(b.node!.attrs.of)).k), one, z];
    case "attend":
      return [
        variant === "few" ? { count: "few_rows", mul: 1, div: 1 } : { count: "many_rows", mul: 1, div: WG },
        fixed(Math.max(...list.map(heads))),
        z,
      ];
    case "attend_dq":
      return [rows(WG), fixed(Math.max(...list.map(heads))), z];
    case "attend_dkv":
      return [{ count: "n_keys", mul: 1, div: WG }, fixed((first.node!.ins[1]!.type as Kv).heads), z];
  }
}
