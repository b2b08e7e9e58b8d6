/**
 * Prints kernels as AssemblyScript: SIMD bodies with scalar tails, over addresses the compiler assigned. One
 * exported function a launch.
 */
import { readFileSync } from "node:fs";
import { type Expr, optimizers, sparseIndex, type Type, type Value } from "../../ops/index.ts";
import type { Body, Operand } from "../fuse.ts";
import {
  type AnyBody,
  isUpdate,
  type KernelEnv,
  type ParamAddress,
  SLOT_TABLE,
  type UpdateBody,
} from "../kernel.ts";
import type { Capacities } from "../target.ts";
import { attentionScratch, emitAttention } from "./assemblyscript_attention.ts";
import { dialect, storeLoops } from "./assemblyscript_dialect.ts";
import {
  count,
  guard,
  header,
  headerF,
  indent,
  jobRank,
  K_CHUNK,
  maskBit,
  overSegments,
  P,
  passed,
  rowPtr,
  shareOf,
  signature,
  wordsInUse,
  wrap,
} from "./assemblyscript_parts.ts";
import {
  emitOuter,
  emitProduct,
  emitShrink,
  productScratch,
  productText,
} from "./assemblyscript_products.ts";
import { Printer } from "./printer.ts";

/** What emitted kernels call: hand-written inner loops, and the tiles of products. */
const assembly = (name: string): string =>
  readFileSync(new URL(`./assembly/${name}`, import.meta.url), "utf8");
export const prelude = (): string =>
  `${assembly("exp.ts").replace("export ", "")}\n${assembly("kernels.ts")}\n${productText()}`;

/** One function for a launch: its bodies in turn. */
export function emitLaunchAs(name: string, bodies: readonly AnyBody[], env: KernelEnv): string {
  const parts = bodies.map((b, i) =>
    isUpdate(b) ? emitUpdate(`${name}_${i}`, b, env) : emitBody(`${name}_${i}`, b, env),
  );
  const calls = bodies.map((_, i) => `  ${name}_${i}(${passed});`).join("\n");
  return `${parts.join("\n")}\nexport function ${name}(${signature}): void {\n${calls}\n}\n`;
}

/** The same launch under another name: on a CPU one kernel serves few rows and many. */
export const emitAlias = (name: string, of: string): string =>
  `export function ${name}(${signature}): void {\n  ${of}(${passed});\n}\n`;

/** Bytes of scratch that a thread needs for a body. */
export function scratchBytes(b: AnyBody, c: Capacities): number {
  if (isUpdate(b)) return b.norms ? K_CHUNK * P * 4 : 0;
  if (b.skeleton === "attend" || b.skeleton === "attend_dq" || b.skeleton === "attend_dkv")
    return attentionScratch(b, c.unitRows);
  return productScratch(b);
}

function emitBody(name: string, b: Body, env: KernelEnv): string {
  switch (b.skeleton) {
    case "map": {
      const p = new Printer(dialect(env), 1);
      const loops = storeLoops(p, b.stores, env, b.cols, "0", String(b.cols));
      return wrap(name, [
        ...guard(b.bit),
        ...shareOf(count(b.domain)),
        "  for (let row: i32 = lo; row < hi; row++) {",
        ...indent(p.row, 4),
        ...indent(loops, 4),
        "  }",
      ]);
    }
    case "row": {
      const p = new Printer(dialect(env), 1);
      for (const s of b.stats) {
        const max = s.reduce === "max";
        const v = new Printer(p.dialect, 4, p);
        const t = new Printer(p.dialect, 1, p);
        const [vt, tt] = [v.at(s.expr), t.at(s.expr)];
        p.row.push(
          `let sv${s.id}: v128 = f32x4.splat(${max ? "-3.0e38" : "0"});`,
          `let stat${s.id}: f32;`,
          "{",
          "  let col: i32 = 0;",
          `  for (; col + 4 <= ${b.cols}; col += 4) {`,
          ...indent([...v.col, `sv${s.id} = f32x4.${max ? "pmax" : "add"}(sv${s.id}, ${vt});`], 4),
          "  }",
          `  stat${s.id} = ${max ? "hmax" : "hsum"}(sv${s.id});`,
          `  for (; col < ${b.cols}; col++) {`,
          ...indent(
            [
              ...t.col,
              max ? `stat${s.id} = stat${s.id} < ${tt} ? ${tt} : stat${s.id};` : `stat${s.id} += ${tt};`,
            ],
            4,
          ),
          "  }",
          "}",
        );
      }
      const loops = storeLoops(p, b.stores, env, b.cols, "0", String(b.cols));
      return wrap(name, [
        ...shareOf(count(b.domain)),
        "  for (let row: i32 = lo; row < hi; row++) {",
        ...indent(p.row, 4),
        ...indent(loops, 4),
        "  }",
      ]);
    }
    case "linear":
    case "linear_t":
      return emitProduct(name, b, env);
    case "shrink":
      return emitShrink(name, b, env);
    case "outer":
      return emitOuter(name, b, env);
    case "col_sum": {
      const [x] = b.operands as [Operand];
      const pa = env.param(String(b.node!.attrs.of));
      return wrap(name, [
        ...guard(b.bit),
        `  const out: usize = accum + ((<usize>(${header("job")} * ${env.jobWords} + ${pa.accum})) << 2);`,
        ...shareOf(String(b.cols)),
        ...overSegments(b.domain, env, [
          "for (let c: i32 = lo; c < hi; c++) {",
          "  let sum: f32 = 0;",
          `  for (let r: i32 = r0; r < r0 + n; r++) sum += load<f32>(${rowPtr(x, env, "r")} + ((<usize>c) << 2));`,
          "  store<f32>(out + ((<usize>c) << 2), load<f32>(out + ((<usize>c) << 2)) + sum);",
          "}",
        ]),
      ]);
    }
    case "sampled": {
      const [dy, x] = b.operands as [Operand, Operand];
      const [values, index] = b.node!.ins.slice(2) as [Value, Value];
      const pa = env.param(String(b.node!.attrs.of));
      const at = sparseIndex(pa.n, Number(b.node!.attrs.outs), Number(b.node!.attrs.ins));
      return wrap(name, [
        ...guard(b.bit),
        `  const out: usize = accum + ((<usize>(${header("job")} * ${env.jobWords} + ${pa.accum})) << 2);`,
        `  const places: usize = adapters + ((<usize>(${header("slot")} * ${env.slotWords})) << 2) + ${env.address(index).offset * 4};`,
        ...shareOf(jobRank((values.type as Type & { kind: "factor" }).branch, env)),
        ...overSegments(b.domain, env, [
          "for (let e: i32 = lo; e < hi; e++) {",
          `  const i: usize = (<usize>load<f32>(places + ((<usize>e) << 2), ${at.rowOf * 4})) << 2;`,
          `  const j: usize = (<usize>load<f32>(places + ((<usize>e) << 2), ${at.colOf * 4})) << 2;`,
          "  let sum: f32 = 0;",
          `  for (let r: i32 = r0; r < r0 + n; r++) sum += load<f32>(${rowPtr(dy, env, "r")} + i) * load<f32>(${rowPtr(x, env, "r")} + j);`,
          "  store<f32>(out + ((<usize>e) << 2), load<f32>(out + ((<usize>e) << 2)) + sum);",
          "}",
        ]),
      ]);
    }
    case "scatter_rows": {
      const [x] = b.operands as [Operand];
      const pa = env.param(String(b.node!.attrs.of));
      return wrap(name, [
        `  const n: i32 = ${count(b.domain)};`,
        // Rows of one token add to one place: a thread owns columns.
        ...shareOf(String(pa.k)),
        `  const out: usize = accum + ((<usize>(${header("job")} * ${env.jobWords} + ${pa.accum})) << 2);`,
        "  for (let row: i32 = 0; row < n; row++) {",
        `    const id: i32 = load<i32>(meta + ((<usize>row) << 2), ${env.layout.arrays.ids! * 4});`,
        `    const x: usize = ${rowPtr(x, env, "row")};`,
        `    const o: usize = out + ((<usize>(id / ${P} * ${pa.k * P} + id % ${P})) << 2);`,
        `    for (let c: i32 = lo; c < hi; c++) store<f32>(o + <usize>c * ${P * 4}, load<f32>(o + <usize>c * ${P * 4}) + load<f32>(x + ((<usize>c) << 2)));`,
        "  }",
      ]);
    }
    case "attend":
    case "attend_dq":
    case "attend_dkv":
      return emitAttention(name, b, env);
  }
}
/** Gradient norm, clip factor, optimizer step. norms: [job][group sums…, clip scale, total norm]. */
function emitUpdate(name: string, b: UpdateBody, env: KernelEnv): string {
  const norms = `arena + ((<usize>(${header("job")} * ${env.groups + 2})) << 2) + ${env.norms * 4}`;
  const accum = `accum + ((<usize>(${header("job")} * ${env.jobWords})) << 2)`;
  if (b.skeleton === "sumsq")
    return wrap(name, [
      "  if (part) return;",
      `  const g: usize = ${accum};`,
      "  let sum: f32 = 0;",
      ...b.params.map(
        (p) =>
          `  ${p.branch === null ? "" : `if ${maskBit(p.branch)} `}sum += sumsq(g + ${p.accum * 4}, ${wordsInUse(p, env)});`,
      ),
      `  store<f32>(${norms} + ((<usize>load<i32>(tables)) << 2), sum);`,
    ]);
  if (b.skeleton === "clip")
    return wrap(name, [
      "  if (part) return;",
      `  const at: usize = ${norms};`,
      "  let total: f32 = 0;",
      `  for (let i: i32 = 0; i < ${env.groups}; i++) total += load<f32>(at + ((<usize>i) << 2));`,
      "  const norm: f32 = sqrtf(total);",
      `  const limit: f32 = ${headerF("max_norm")};`,
      "  const finite: bool = (reinterpret<u32>(norm) & 0x7f800000) != 0x7f800000;",
      "  const scale: f32 = !finite ? <f32>-1 : limit > 0 && norm > limit ? limit / (norm + <f32>1e-6) : <f32>1;",
      `  store<f32>(at, scale, ${env.groups * 4});`,
      `  store<f32>(at, norm, ${(env.groups + 1) * 4});`,
    ]);
  if (b.skeleton === "row_norms") {
    const slot = (p: ParamAddress): string =>
      `adapters + ((<usize>(${header("slot")} * ${env.slotWords})) << 2) + ${p.offset * 4}`;
    return wrap(
      name,
      b.norms!.map(
        (r) =>
          `  if ${maskBit(r.branch)} rowNorms_${r.format}(weights + ${r.weight.offset * 4}, ${r.weight.n}, ${r.weight.k}, ${slot(r.a)}, ${slot(r.b)}, ${jobRank(r.branch, env)}, load<f32>(tables + ((<usize>(${header("slot")} * ${env.branches * 2})) << 2), ${(SLOT_TABLE + r.branch * 2 + 1) * 4}), ${slot(r.out)}, scratch, part, parts);`,
      ),
    );
  }
  const rule = optimizers[b.optimizer!];
  const lines: string[] = [
    `  const clip: f32 = load<f32>(${norms}, ${env.groups * 4});`,
    `  const g: usize = ${accum};`,
    "  const cv: v128 = f32x4.splat(clip);",
  ];
  for (const p of b.params) {
    const base =
      p.kind === "factor"
        ? `adapters + ((<usize>(${header("slot")} * ${env.slotWords})) << 2) + ${p.offset * 4}`
        : `weights + ${p.offset * 4}`;
    lines.push(
      `  ${p.branch === null ? "" : `if ${maskBit(p.branch)} `}{`,
      `    const quads: i32 = (${wordsInUse(p, env)}) >> 2;`,
      "    const from: usize = (<usize>share(quads, part, parts)) << 4;",
      "    const to: usize = (<usize>share(quads, part + 1, parts)) << 4;",
      `    const param_: usize = ${base};`,
      `    const grad_: usize = g + ${p.accum * 4};`,
      ...rule.states.map((s, i) => `    const ${s}_: usize = grad_ + ${(i + 1) * p.words * 4};`),
      // A non-finite norm (clip < 0) leaves everything but the gradient, which is always cleared.
      `    if (clip >= 0) for (let i: usize = from; i < to; i += 16) v128.store(grad_ + i, f32x4.mul(v128.load(grad_ + i), cv));`,
      `    if (clip >= 0) for (let i: usize = from; i < to; i += 16) {`,
      ...optimizerStep(rule, p, env),
      "    }",
      "    memory.fill(grad_ + from, 0, to - from);",
      "  }",
    );
  }
  return wrap(name, lines);
}

function optimizerStep(
  rule: (typeof optimizers)[keyof typeof optimizers],
  p: ParamAddress,
  env: KernelEnv,
): string[] {
  const printer = new Printer(dialect(env), 4);
  const decay: Expr =
    p.kind === "vector" || (p.kind === "factor" && p.rows === "one")
      ? { e: "const", v: 0 }
      : { e: "metaf", name: "decay", at: null };
  const next = rule.update({ decay });
  const texts = Object.entries(next).map(([key, e]) => [key, printer.at(e)] as const);
  return indent(
    [...printer.row, ...printer.col, ...texts.map(([key, t]) => `v128.store(${key}_ + i, ${t});`)],
    6,
  );
}
