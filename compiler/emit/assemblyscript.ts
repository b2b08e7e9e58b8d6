/** Prints kernels as AssemblyScript: SIMD bodies with scalar tails, over addresses the compiler assigned. One exported function a launch. */
import { readFileSync } from "node:fs";
import { type Domain, type Expr, type Ix, ixUsesCol, KV_BLOCK, optimizers, pairsOf, sameValue, sparseIndex, type Type, type Value } from "../../ops/index.ts";
import type { Body, Operand, Store } from "../fuse.ts";
import { type AnyBody, isUpdate, type KernelEnv, memoryClasses, type ParamAddress, ROWS_HEADER, SEGMENT_ROWS, SLOT_TABLE, type UpdateBody } from "../kernel.ts";
import { DROPOUT_BIT, headerWords } from "../metadata.ts";
import { type Dialect, Printer, usesCol } from "./printer.ts";

type Kv = Type & { kind: "kv" };

type Expand = Expr & { e: "expand" };
/** Scratch of one low-rank delta of a product's tile: 4 rows of 8 columns; the first lies past the accumulators. */
const DELTA_BYTES = 128;
const DELTA_AT = 1024;
/** Where a transposed product draws together four rows of every panel. */
const PACK_AT = 4096;
/** The distinct low-rank deltas that a body's epilogue adds. */
function deltasOf(b: Body): Expand[] {
  const out: Expand[] = [];
  const visit = (e: Expr): void => {
    if (e.e === "expand" && !out.some((o) => sameValue(o.u, e.u) && sameValue(o.factor, e.factor))) out.push(e);
    else if (e.e === "call") e.args.forEach(visit);
    else if (e.e === "if") {
      visit(e.yes);
      visit(e.no);
    }
  };
  for (const s of b.stores) visit(s.expr);
  return out;
}
/** Statements that fill the deltas of `rows` rows from row `r`, columns from `c0`. */
function fillDeltas(b: Body, env: KernelEnv, r: string, rows: number, c0: string, columns: 4 | 8): string[] {
  return deltasOf(b).map((e, i) => {
    const t = e.factor.type as Type & { kind: "factor" };
    const [u, f] = [env.address(e.u), env.address(e.factor)];
    return `delta(${u.cls} + ((<usize>((${r}) * ${u.stride})) << 2) + ${u.offset * 4}, ${u.stride * 4}, ${rows}, meta + ((<usize>(${r})) << 2) + ${env.layout.arrays.slot! * 4}, tables + ${(SLOT_TABLE + t.branch * 2) * 4}, ${env.branches * 8}, ${f.cls} + ${f.offset * 4} + ((<usize>(${c0})) << 2), ${env.slotWords * 4}, ${t.cols * 4}, ${columns === 8 ? 1 : 0}, arena + ${DELTA_AT + i * DELTA_BYTES});`;
  });
}

/** Columns of a weight panel on this target: two vectors. */
const P = 8;
export const prelude = (): string => readFileSync(new URL("./assembly/kernels.ts", import.meta.url), "utf8");

const f32 = (v: number): string => `<f32>(${Object.is(v, -0) ? "-0.0" : Number.isInteger(v) ? `${v}.0` : String(v)})`;
const header = (name: string): string => `load<i32>(meta, ${headerWords.indexOf(name as (typeof headerWords)[number]) * 4})`;
const headerF = (name: string): string => `load<f32>(meta, ${headerWords.indexOf(name as (typeof headerWords)[number]) * 4})`;
const signature = "bind: usize, meta: usize";
/** Base pointers of the memory classes, from the group's bind record. */
const bases = (text: string): string =>
  memoryClasses
    .filter((c) => c !== "meta" && new RegExp(`\\b${c}\\b`).test(text))
    .map((c) => `  const ${c}: usize = load<u32>(bind, ${memoryClasses.indexOf(c) * 4});`)
    .join("\n");

function dialect(env: KernelEnv, deltas: readonly Expand[] = []): Dialect {
  const ixText = (ix: Ix, p: Printer, lane: number): string => {
    switch (ix.ix) {
      case "row":
        return "row";
      case "col":
        return lane ? `(col + ${lane})` : "col";
      case "int":
        return String(ix.v);
      case "meta": {
        if (ix.name === "raw") return `load<i32>(meta + ((<usize>${p.ix(ix.at!, lane)}) << 2))`;
        if (ix.at === null) return header(ix.name);
        const off = env.layout.arrays[ix.name];
        if (off === undefined) throw new Error(`no metadata array ${ix.name} in a ${env.layout.kind} block`);
        return `load<i32>(meta + ((<usize>${p.ix(ix.at, lane)}) << 2), ${off * 4})`;
      }
      case "bin": {
        const [a, b] = [ixUsesCol(ix.a) ? ixText(ix.a, p, lane) : p.ix(ix.a), ixUsesCol(ix.b) ? ixText(ix.b, p, lane) : p.ix(ix.b)];
        const op = { add: "+", sub: "-", mul: "*", div: "/", mod: "%", lt: "<", xor: "^" }[ix.op];
        return ix.op === "lt" ? `<i32>(${a} < ${b})` : `(${a} ${op} ${b})`;
      }
      case "rank":
        return `load<i32>(tables + ((<usize>(${p.ix({ ix: "meta", name: "slot", at: ix.row })} * ${env.branches * 2})) << 2), ${(SLOT_TABLE + ix.branch * 2) * 4})`;
      case "slot":
        return `<i32>load<f32>(${slotPtr(ix.tensor, ix.row, p)} + ((<usize>${p.ix(ix.at, lane)}) << 2))`;
    }
  };
  /** First word of a slot tensor of the row's slot. */
  const slotPtr = (v: Value, row: Ix, p: Printer): string => {
    const f = env.address(v);
    const text = `${f.cls} + ((<usize>(${p.ix({ ix: "meta", name: "slot", at: row })} * ${env.slotWords})) << 2) + ${f.offset * 4}`;
    return p.hoist(text, (name) => `const ${name}: usize = ${text};`, "p");
  };
  const lanesOf = (one: (lane: number) => string): string => [1, 2, 3].reduce((v, lane) => `f32x4.replace_lane(${v}, ${lane}, ${one(lane)})`, `f32x4.splat(${one(0)})`);
  const d: Dialect = {
    type: (lanes) => (lanes === 4 ? "v128" : "f32"),
    constant: (v, lanes) => (lanes === 4 ? `f32x4.splat(${f32(v)})` : f32(v)),
    splat: (t) => `f32x4.splat(${t})`,
    declare: (name, type, text) => `const ${name}: ${type} = ${text};`,
    declareInt: (name, text) => `const ${name}: i32 = ${text};`,
    call: (fn, a, lanes) => {
      const v = lanes === 4;
      switch (fn) {
        case "add":
        case "sub":
        case "mul":
        case "div":
          return v ? `f32x4.${fn}(${a[0]}, ${a[1]})` : `(${a[0]} ${{ add: "+", sub: "-", mul: "*", div: "/" }[fn]} ${a[1]})`;
        case "max":
          return v ? `f32x4.pmax(${a[0]}, ${a[1]})` : `(${a[0]} < ${a[1]} ? ${a[1]} : ${a[0]})`;
        case "min":
          return v ? `f32x4.pmin(${a[0]}, ${a[1]})` : `(${a[1]} < ${a[0]} ? ${a[1]} : ${a[0]})`;
        case "fma":
          return v ? `f32x4.add(f32x4.mul(${a[0]}, ${a[1]}), ${a[2]})` : `(${a[0]} * ${a[1]} + ${a[2]})`;
        case "neg":
          return v ? `f32x4.neg(${a[0]})` : `(-${a[0]})`;
        case "sqrt":
          return v ? `f32x4.sqrt(${a[0]})` : `sqrtf(${a[0]})`;
        case "rsqrt":
          return v ? `f32x4.div(f32x4.splat(1), f32x4.sqrt(${a[0]}))` : `(<f32>1 / sqrtf(${a[0]}))`;
        case "pin":
          return a[0]!;
        case "exp":
        case "log":
        case "tanh":
          return v ? `${fn}4(${a[0]})` : `${fn}1(${a[0]})`;
      }
    },
    ix: ixText,
    load: (e, p, lanes) => {
      const t = e.value.type;
      const ad = env.address(e.value);
      if (t.kind === "weight") {
        const one = (lane: number): string => `weight${t.format}(${ad.cls} + ${ad.offset * 4}, ${p.ix(e.row)}, ${p.ix(e.col, lane)}, ${t.k})`;
        return lanes === 4 ? lanesOf(one) : one(0);
      }
      const row = p.ix(e.row);
      const base =
        t.kind === "factor"
          ? slotPtr(e.value, e.row, p)
          : ad.stride === 0 || t.kind === "vector"
            ? `${ad.cls} + ${ad.offset * 4}`
            : `${ad.cls} + ((<usize>(${row} * ${ad.stride})) << 2) + ${ad.offset * 4}`;
      const ptr = p.hoist(base, (name) => `const ${name}: usize = ${base};`, "p");
      if (!ixUsesCol(e.col)) return `load<f32>(${ptr} + ((<usize>${p.ix(e.col)}) << 2))`;
      const contiguous = e.col.ix === "col" || (e.col.ix === "bin" && e.col.op === "add" && e.col.a.ix === "col" && !ixUsesCol(e.col.b));
      if (lanes === 4 && contiguous) return `v128.load(${ptr} + ((<usize>${p.ix(e.col)}) << 2))`;
      const one = (lane: number): string => `load<f32>(${ptr} + ((<usize>${p.ix(e.col, lane)}) << 2))`;
      return lanes === 4 ? lanesOf(one) : one(0);
    },
    leaf: (e, p, lanes) => {
      switch (e.e) {
        case "metaf":
          return e.at === null ? headerF(e.name) : `load<f32>(meta + ((<usize>${p.ix(e.at)}) << 2), ${env.layout.arrays[e.name]! * 4})`;
        case "scale":
          return `load<f32>(tables + ((<usize>(${p.ix({ ix: "meta", name: "slot", at: e.row })} * ${env.branches * 2})) << 2), ${(SLOT_TABLE + e.branch * 2 + 1) * 4})`;
        case "rand": {
          const key = p.ix(e.key);
          const salt = p.hoist(`load<i32>(tables) * 64 + ${e.site}`, (name) => `const ${name}: i32 = load<i32>(tables) * 64 + ${e.site};`, "i");
          return `rand${lanes}(${key}, ${salt}, ${p.ix(e.col)})`;
        }
        case "expand": {
          const ready = deltas.findIndex((d) => sameValue(d.u, e.u) && sameValue(d.factor, e.factor));
          if (ready >= 0) return `${lanes === 4 ? "v128.load" : "load<f32>"}(delta_ + ${ready * DELTA_BYTES} + ((<usize>(col - c0)) << 2))`;
          const t = e.factor.type as Type & { kind: "factor" };
          const u = env.address(e.u);
          const f = env.address(e.factor);
          const slot = p.ix({ ix: "meta", name: "slot", at: e.row });
          const rank = `load<i32>(tables + ((<usize>(${slot} * ${env.branches * 2})) << 2), ${(SLOT_TABLE + t.branch * 2) * 4})`;
          const r = p.hoist(rank, (name) => `const ${name}: i32 = ${rank};`, "i");
          const up = `${u.cls} + ((<usize>(${p.ix(e.row)} * ${u.stride})) << 2) + ${u.offset * 4}`;
          const fp = `${f.cls} + ((<usize>(${slot} * ${env.slotWords})) << 2) + ${f.offset * 4}`;
          const a = p.hoist(up, (name) => `const ${name}: usize = ${up};`, "p");
          const b = p.hoist(fp, (name) => `const ${name}: usize = ${fp};`, "p");
          return `expand${lanes}(${a}, ${b} + ((<usize>col) << 2), ${r}, ${t.cols * 4})`;
        }
        case "sparse": {
          const slot = p.ix({ ix: "meta", name: "slot", at: e.row });
          const pointer = (text: string): string => p.hoist(text, (name) => `const ${name}: usize = ${text};`, "p");
          const words = (v: Value): string => pointer(`${env.address(v).cls} + ((<usize>(${slot} * ${env.slotWords})) << 2) + ${env.address(v).offset * 4}`);
          const a = env.address(e.x);
          const x = pointer(`${a.cls} + ((<usize>(${p.ix(e.row)} * ${a.stride})) << 2) + ${a.offset * 4}`);
          const index = words(e.index);
          const one = (lane: number): string =>
            `sparse1(${x}, ${words(e.values)}, ${index} + ((<usize>(${e.start + lane} + col)) << 2), ${e.order === null ? "0" : `${index} + ${e.order * 4}`}, ${index} + ${e.at * 4})`;
          return lanes === 4 ? lanesOf(one) : one(0);
        }
        case "acc":
          return lanes === 4 ? "v128.load(acc + ((<usize>(col - c0)) << 2))" : "load<f32>(acc + ((<usize>(col - c0)) << 2))";
        case "stat":
          return `stat${e.id}`;
        case "arg":
          return lanes === 4 ? `v128.load(${e.name}_ + i)` : `load<f32>(${e.name}_ + i)`;
        default:
          throw new Error(`cannot print ${e.e}`);
      }
    },
    test: (e, ix) => (e.test === "nonneg" ? `${ix} >= 0` : `${ix} != 0`),
    branch: (name, type, test, a, b) => [
      `let ${name}: ${type};`,
      `if (${test}) {`,
      ...a.lines.map((l) => `  ${l}`),
      `  ${name} = ${a.text};`,
      "} else {",
      ...b.lines.map((l) => `  ${l}`),
      `  ${name} = ${b.text};`,
      "}",
    ],
    choose: (e, a, b, p, lanes) => {
      const one = (lane: number): string => d.test(e, ixUsesCol(e.ix) ? p.ix(e.ix, lane) : p.ix(e.ix));
      if (lanes === 1) return `(${one(0)} ? ${a} : ${b})`;
      const mask = [1, 2, 3].reduce((v, lane) => `i32x4.replace_lane(${v}, ${lane}, -<i32>(${one(lane)}))`, `i32x4.splat(-<i32>(${one(0)}))`);
      return `v128.bitselect(${a}, ${b}, ${mask})`;
    },
  };
  return d;
}

const indent = (lines: readonly string[], n: number): string[] => lines.map((l) => " ".repeat(n) + l);

/** Statements that store a body's outputs for one row over columns [from, to): a vector loop and a scalar tail. */
function storeLoops(p: Printer, stores: readonly Store[], env: KernelEnv, cols: number, from: string, to: string): string[] {
  const wide = stores.filter((s) => s.cols === cols && !(cols === 1 && !usesCol(s.expr)));
  const narrow = stores.filter((s) => !wide.includes(s));
  const out: string[] = [];
  const target = (s: Store): { ptr: string; guard: string | null } => {
    if (s.to === "rows") {
      const ad = env.address(s.value);
      const text = `${ad.cls} + ((<usize>(row * ${ad.stride})) << 2) + ${ad.offset * 4}`;
      return { ptr: p.hoist(text, (n) => `const ${n}: usize = ${text};`, "p"), guard: null };
    }
    if (s.to === "field") {
      const ad = env.address(s.field);
      const ix = p.ix({ ix: "meta", name: s.index, at: { ix: "row" } });
      const text = `${ad.cls} + ((<usize>(${ix} * ${ad.stride})) << 2) + ${ad.offset * 4}`;
      return { ptr: p.hoist(text, (n) => `const ${n}: usize = ${text};`, "p"), guard: `${ix} >= 0` };
    }
    const kv = s.kv.type as Kv;
    const ad = env.address(s.kv);
    const pos = p.ix({ ix: "meta", name: "pos", at: { ix: "row" } });
    const table = p.ix({ ix: "meta", name: "table", at: { ix: "row" } });
    const text = `kvRow(${ad.cls} + ${ad.offset * 4}, meta, ${table}, ${pos}, ${s.part}, ${kv.heads}, ${kv.headDim})`;
    return { ptr: p.hoist(text, (n) => `const ${n}: usize = ${text};`, "p"), guard: null };
  };
  for (const s of narrow) {
    const value = p.scalar(s.expr);
    const t = target(s);
    p.row.push(t.guard ? `if (${t.guard}) store<f32>(${t.ptr}, ${value});` : `store<f32>(${t.ptr}, ${value});`);
  }
  if (!wide.length) return out;
  const targets = wide.map(target);
  const emit = (lanes: 1 | 4): string[] => {
    const q = new Printer(p.dialect, lanes, p);
    wide.forEach((s, i) => {
      const value = q.at(s.expr);
      const t = targets[i]!;
      const store = (): string => {
        if (s.to === "kv") {
          const { headDim } = s.kv.type as Kv;
          const at = (lane: number): string => `${t.ptr} + ((<usize>((col + ${lane}) / ${headDim} * ${KV_BLOCK * headDim} + (col + ${lane}) % ${headDim})) << 2)`;
          if (lanes === 1) return `store<f32>(${at(0)}, ${value});`;
          if (headDim % 4 === 0) return `v128.store(${at(0)}, ${value});`;
          return [0, 1, 2, 3].map((lane) => `store<f32>(${at(lane)}, f32x4.extract_lane(${value}, ${lane}));`).join(" ");
        }
        return lanes === 4 ? `v128.store(${t.ptr} + ((<usize>col) << 2), ${value});` : `store<f32>(${t.ptr} + ((<usize>col) << 2), ${value});`;
      };
      q.col.push(t.guard ? `if (${t.guard}) { ${store()} }` : store());
    });
    return q.col;
  };
  const vec = emit(4);
  const tail = emit(1);
  out.push(`let col: i32 = ${from};`, `for (; col + 4 <= ${to}; col += 4) {`, ...indent(vec, 2), "}", `for (; col < ${to}; col++) {`, ...indent(tail, 2), "}");
  return out;
}

/** One function for a launch: its bodies in turn. */
export function emitLaunchAs(name: string, bodies: readonly AnyBody[], env: KernelEnv): string {
  const parts = bodies.map((b, i) => (isUpdate(b) ? emitUpdate(`${name}_${i}`, b, env) : emitBody(`${name}_${i}`, b, env)));
  const calls = bodies.map((_, i) => `  ${name}_${i}(bind, meta);`).join("\n");
  return `${parts.join("\n")}\nexport function ${name}(${signature}): void {\n${calls}\n}\n`;
}

function wrap(name: string, lines: readonly string[], extra = ""): string {
  const text = lines.join("\n");
  return `function ${name}(${signature}${extra}): void {\n${bases(text)}\n${text}\n}\n`;
}
const count = (domain: Domain): string => header(ROWS_HEADER[domain]);
/** 1 when a mask bit is set in the block's header. */
const maskBit = (bit: number): string => `(${header(`mask_${bit >> 5}`)} >> ${bit & 31} & 1)`;
const guard = (bit: number | null): string[] => (bit === null ? [] : [`  if (!${maskBit(bit)}) return;`]);
/** Words of a slot tensor that the job's slot uses: what lies beyond its rank is zero. */
const wordsInUse = (p: ParamAddress, env: KernelEnv): string =>
  p.kind !== "factor" || p.rows === "one" ? String(p.words) : `min(${p.words}, (${jobRank(p.branch!, env)} * ${p.k} + 3) & ~3)`;
const jobRank = (branch: number, env: KernelEnv): string => `load<i32>(tables + ((<usize>(${header("slot")} * ${env.branches * 2})) << 2), ${(SLOT_TABLE + branch * 2) * 4})`;

/** A loop over the unit's segments, each of `n` rows from row `r0`: a segment is summed on its own, then added. */
function overSegments(domain: Domain, env: KernelEnv, each: readonly string[]): string[] {
  const [first, rows] = SEGMENT_ROWS[domain]!;
  return [
    `  for (let s: i32 = 0; s < ${header("n_segments")}; s++) {`,
    `    const r0: i32 = load<i32>(meta + ((<usize>s) << 2), ${env.layout.arrays[first]! * 4});`,
    `    const n: i32 = load<i32>(meta + ((<usize>s) << 2), ${env.layout.arrays[rows]! * 4});`,
    "    if (n == 0) continue;",
    ...indent(each, 4),
    "  }",
  ];
}

/** Pointer to row `r` of an operand. */
function rowPtr(o: Operand, env: KernelEnv, r: string): string {
  const ad = env.address(o.value);
  if (o.undropped) {
    const plain = env.address(o.undropped);
    return `${ad.cls} + ((<usize>((${r}) * ${ad.stride})) << 2) + (${maskBit(DROPOUT_BIT)} ? ${ad.offset * 4} : ${plain.offset * 4})`;
  }
  const at = o.index === null ? r : `load<i32>(meta + ((<usize>(${r})) << 2), ${env.layout.arrays[o.index]! * 4})`;
  return `${ad.cls} + ((<usize>((${at}) * ${ad.stride})) << 2) + ${ad.offset * 4}`;
}
const stride = (o: Operand, env: KernelEnv): number => env.address(o.value).stride;

/** The epilogue of a product as a function of (row, first column, accumulated values). */
function epilogue(name: string, b: Body, env: KernelEnv, width: number): string {
  const p = new Printer(dialect(env, b.skeleton === "shrink" ? [] : deltasOf(b)), 1);
  const loops = storeLoops(p, b.stores, env, b.cols, "c0", "end");
  return wrap(name, [`  const end: i32 = min(c0 + ${width}, ${b.cols});`, ...indent(p.row, 2), ...indent(loops, 2)], ", row: i32, c0: i32, acc: usize, delta_: usize");
}

function emitBody(name: string, b: Body, env: KernelEnv): string {
  switch (b.skeleton) {
    case "map": {
      const p = new Printer(dialect(env), 1);
      const loops = storeLoops(p, b.stores, env, b.cols, "0", String(b.cols));
      return wrap(name, [...guard(b.bit), `  const n: i32 = ${count(b.domain)};`, "  for (let row: i32 = 0; row < n; row++) {", ...indent(p.row, 4), ...indent(loops, 4), "  }"]);
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
          ...indent([...t.col, max ? `stat${s.id} = stat${s.id} < ${tt} ? ${tt} : stat${s.id};` : `stat${s.id} += ${tt};`], 4),
          "  }",
          "}",
        );
      }
      const loops = storeLoops(p, b.stores, env, b.cols, "0", String(b.cols));
      return wrap(name, [`  const n: i32 = ${count(b.domain)};`, "  for (let row: i32 = 0; row < n; row++) {", ...indent(p.row, 4), ...indent(loops, 4), "  }"]);
    }
    case "linear": {
      const [x, w] = b.operands as [Operand, Operand];
      const t = w.value.type as Type & { kind: "weight" };
      const bytes = t.format === "f16" ? 2 : 4;
      const panels = Math.ceil(t.n / P);
      const wp = `weights + ${env.address(w.value).offset * 4}`;
      return `${epilogue(`${name}_e`, b, env, P)}${wrap(name, [
        `  const n: i32 = ${count(b.domain)};`,
        `  const acc: usize = arena;`,
        `  const w: usize = ${wp};`,
        // Blocks of 32 rows: a panel is read once a block, the block's rows stay in cache. Each output sums k in ascending order in every path.
        "  for (let rb: i32 = 0; rb < n; rb += 32) {",
        "    const re: i32 = min(rb + 32, n);",
        "    const r4: i32 = rb + ((re - rb) & ~3);",
        `    for (let p: i32 = 0; p < ${panels}; p++) {`,
        `      const wq: usize = w + <usize>p * ${t.k * P * bytes};`,
        "      for (let r: i32 = rb; r < r4; r += 4) {",
        `        nt4_${t.format}(${[0, 1, 2, 3].map((i) => rowPtr(x, env, `r + ${i}`)).join(", ")}, wq, ${t.k}, acc);`,
        ...indent(fillDeltas(b, env, "r", 4, `p * ${P}`, 8), 8),
        `        for (let i: i32 = 0; i < 4; i++) ${name}_e(bind, meta, r + i, p * ${P}, acc + <usize>i * ${P * 4}, arena + ${DELTA_AT} + <usize>i * 32);`,
        "      }",
        "    }",
        "    for (let r: i32 = r4; r < re; r++) {",
        `      const xp: usize = ${rowPtr(x, env, "r")};`,
        "      let p: i32 = 0;",
        `      for (; p + 4 <= ${panels}; p += 4) {`,
        `        nt1x4_${t.format}(xp, w + <usize>p * ${t.k * P * bytes}, ${t.k}, acc);`,
        "        for (let i: i32 = 0; i < 4; i++) {",
        ...indent(fillDeltas(b, env, "r", 1, `(p + i) * ${P}`, 8), 10),
        `          ${name}_e(bind, meta, r, (p + i) * ${P}, acc + <usize>i * ${P * 4}, arena + ${DELTA_AT});`,
        "        }",
        "      }",
        `      for (; p < ${panels}; p++) {`,
        `        nt1_${t.format}(xp, w + <usize>p * ${t.k * P * bytes}, ${t.k}, acc);`,
        ...indent(fillDeltas(b, env, "r", 1, `p * ${P}`, 8), 8),
        `        ${name}_e(bind, meta, r, p * ${P}, acc, arena + ${DELTA_AT});`,
        "      }",
        "    }",
        "  }",
      ])}`;
    }
    case "linear_t": {
      const k = b.cols;
      const segments = pairsOf(b.operands);
      // Panels lie K rows apart, often a power of two, where they would share cache lines: four rows of each are drawn together for a block of rows.
      const panelsOf = (w: Operand): number => Math.ceil((w.value.type as Type & { kind: "weight" }).n / P);
      const packs = segments.map((_, s) => PACK_AT + segments.slice(0, s).reduce((n, [, v]) => n + panelsOf(v) * 4 * P * 4, 0));
      const source = (w: Operand): string => {
        const t = w.value.type as Type & { kind: "weight" };
        return `weights + ${env.address(w.value).offset * 4} + <usize>k0 * ${P * (t.format === "f16" ? 2 : 4)}`;
      };
      const pack = segments.map(([, w], s) => {
        const t = w.value.type as Type & { kind: "weight" };
        return `pack4_${t.format}(${source(w)}, ${t.k}, ${panelsOf(w)}, arena + ${packs[s]});`;
      });
      // acc: 16 lane accumulators (256 bytes), then the 4 × 4 results, then padded tails of 4 rows.
      const step = (rows: 1 | 4): string[] =>
        segments.flatMap(([dy, w], s) => {
          const t = w.value.type as Type & { kind: "weight" };
          const full = Math.floor(t.n / P);
          const tail = t.n % P;
          const wp = `arena + ${packs[s]}`;
          const ptrs = Array.from({ length: rows }, (_, i) => rowPtr(dy, env, rows === 1 ? "r" : `r + ${i}`));
          const out = [`nn${rows}(${ptrs.join(", ")}, ${wp}, ${full}, acc);`];
          if (tail) {
            ptrs.forEach((ptr, i) => {
              out.push(`pad8(${ptr} + ${full * P * 4}, ${tail}, acc + ${512 + i * 32});`);
            });
            out.push(`nn${rows}(${ptrs.map((_, i) => `acc + ${512 + i * 32}`).join(", ")}, ${wp} + ${full * 4 * P * 4}, 1, acc);`);
          }
          return out;
        });
      return `${epilogue(`${name}_e`, b, env, 4)}${wrap(name, [
        `  const n: i32 = ${count(b.domain)};`,
        "  const acc: usize = arena;",
        "  for (let rb: i32 = 0; rb < n; rb += 32) {",
        "    const re: i32 = min(rb + 32, n);",
        "    const r4: i32 = rb + ((re - rb) & ~3);",
        `    for (let k0: i32 = 0; k0 < ${k}; k0 += 4) {`,
        ...indent(pack, 6),
        "      for (let r: i32 = rb; r < r4; r += 4) {",
        "        memory.fill(acc, 0, 256);",
        ...indent(step(4), 8),
        "        fold4(acc, 4);",
        ...indent(fillDeltas(b, env, "r", 4, "k0", 4), 8),
        `        for (let i: i32 = 0; i < 4; i++) ${name}_e(bind, meta, r + i, k0, acc + 256 + <usize>i * 16, arena + ${DELTA_AT} + <usize>i * 32);`,
        "      }",
        "      for (let r: i32 = r4; r < re; r++) {",
        "        memory.fill(acc, 0, 64);",
        ...indent(step(1), 8),
        "        fold4(acc, 1);",
        ...indent(fillDeltas(b, env, "r", 1, "k0", 4), 8),
        `        ${name}_e(bind, meta, r, k0, acc + 256, arena + ${DELTA_AT});`,
        "      }",
        "    }",
        "  }",
      ])}`;
    }
    case "shrink": {
      const [x, f] = b.operands as [Operand, Operand];
      const t = f.value.type as Type & { kind: "factor" };
      const fa = env.address(f.value);
      const outStride = Math.ceil(b.cols / 4) * 16;
      const info = `tables + ((<usize>(slot * ${env.branches * 2})) << 2)`;
      return `${epilogue(`${name}_e`, b, env, b.cols)}${wrap(name, [
        ...guard(b.bit),
        `  const n: i32 = ${count(b.domain)};`,
        "  const acc: usize = arena;",
        "  let row: i32 = 0;",
        "  while (row < n) {",
        `    const slots: usize = meta + ((<usize>row) << 2) + ${env.layout.arrays.slot! * 4};`,
        "    const slot: i32 = load<i32>(slots);",
        `    const rank: i32 = load<i32>(${info}, ${(SLOT_TABLE + t.branch * 2) * 4});`,
        `    const f: usize = ${fa.cls} + ((<usize>(slot * ${env.slotWords})) << 2) + ${fa.offset * 4};`,
        // Four rows of one slot share the factor's loads; each dot is the same chain either way.
        "    const four: bool = row + 4 <= n && load<i32>(slots, 4) == slot && load<i32>(slots, 8) == slot && load<i32>(slots, 12) == slot;",
        "    const count: i32 = four ? 4 : 1;",
        "    let r: i32 = 0;",
        "    for (; r < rank; r += 4) {",
        `      if (four) shrink4x4(${[0, 1, 2, 3].map((i) => rowPtr(x, env, `row + ${i}`)).join(", ")}, f + ((<usize>(r * ${t.cols})) << 2), ${t.cols}, acc + ((<usize>r) << 2), ${outStride});`,
        `      else shrink4(${rowPtr(x, env, "row")}, f + ((<usize>(r * ${t.cols})) << 2), ${t.cols}, acc + ((<usize>r) << 2));`,
        "    }",
        "    for (let i: i32 = 0; i < count; i++) {",
        `      for (let z: i32 = r; z < ${b.cols}; z += 4) v128.store(acc + <usize>i * ${outStride} + ((<usize>z) << 2), f32x4.splat(0));`,
        `      ${name}_e(bind, meta, row + i, 0, acc + <usize>i * ${outStride}, 0);`,
        "    }",
        "    row += count;",
        "  }",
      ])}`;
    }
    case "outer": {
      const [a, c, param] = b.operands as [Operand, Operand, Operand];
      const pa = env.param(String(b.node!.attrs.of));
      const base = (o: Operand): string => {
        if (o.index !== null && o.index !== "save_row" && o.index !== "ext_row") throw new Error(`outer needs contiguous rows, not ${o.index}`);
        return rowPtr(o, env, "r0");
      };
      const out = `accum + ((<usize>(${header("job")} * ${env.jobWords} + ${pa.accum})) << 2)`;
      const weight = param.value.type.kind === "weight";
      // Matrix: panels over n (lanes), k down; a = dy [n], c = x [k]. Factor: rank down, columns over lanes; a = u [rank], c = x or dy [cols].
      const lanes = weight ? a : c;
      const down = weight ? c : a;
      const nLanes = weight ? pa.n : pa.k;
      const nDown = weight ? pa.k : pa.n;
      // Rows of u beyond the slot's rank are zero, and so is their gradient.
      const down4 = weight ? String(nDown) : "down";
      const outRow = weight ? P * 4 : pa.k * 4;
      const outPanel = weight ? pa.k * P * 4 : P * 4;
      const full = Math.floor(nLanes / P);
      return wrap(name, [
        ...guard(b.bit),
        `  const out: usize = ${out};`,
        ...(weight ? [] : [`  const down: i32 = min(${nDown}, (${jobRank(pa.branch!, env)} + 3) & ~3);`]),
        ...overSegments(b.domain, env, [
          `const lp: usize = ${base(lanes)};`,
          `const dp: usize = ${base(down)};`,
          `for (let p: i32 = 0; p < ${full}; p++) {`,
          `  const o: usize = out + <usize>p * ${outPanel};`,
          "  let k: i32 = 0;",
          `  for (; k + 4 <= ${down4}; k += 4) outer4(dp + ((<usize>k) << 2), ${stride(down, env) * 4}, lp + <usize>p * ${P * 4}, ${stride(lanes, env) * 4}, n, o + <usize>k * ${outRow}, ${outRow});`,
          `  for (; k < ${down4}; k++) outer1(dp + ((<usize>k) << 2), ${stride(down, env) * 4}, lp + <usize>p * ${P * 4}, ${stride(lanes, env) * 4}, n, o + <usize>k * ${outRow}, ${P});`,
          "}",
          ...(nLanes % P
            ? [
                `for (let k: i32 = 0; k < ${down4}; k++) outer1(dp + ((<usize>k) << 2), ${stride(down, env) * 4}, lp + ${full * P * 4}, ${stride(lanes, env) * 4}, n, out + ${full * outPanel} + <usize>k * ${outRow}, ${nLanes % P});`,
              ]
            : []),
        ]),
      ]);
    }
    case "col_sum": {
      const [x] = b.operands as [Operand];
      const pa = env.param(String(b.node!.attrs.of));
      return wrap(name, [
        ...guard(b.bit),
        `  const out: usize = accum + ((<usize>(${header("job")} * ${env.jobWords} + ${pa.accum})) << 2);`,
        ...overSegments(b.domain, env, [
          `for (let c: i32 = 0; c < ${b.cols}; c++) {`,
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
        `  const entries: i32 = ${jobRank((values.type as Type & { kind: "factor" }).branch, env)};`,
        ...overSegments(b.domain, env, [
          "for (let e: i32 = 0; e < entries; e++) {",
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
        `  const out: usize = accum + ((<usize>(${header("job")} * ${env.jobWords} + ${pa.accum})) << 2);`,
        "  for (let row: i32 = 0; row < n; row++) {",
        `    const id: i32 = load<i32>(meta + ((<usize>row) << 2), ${env.layout.arrays.ids! * 4});`,
        `    const x: usize = ${rowPtr(x, env, "row")};`,
        `    const o: usize = out + ((<usize>(id / ${P} * ${pa.k * P} + id % ${P})) << 2);`,
        `    for (let c: i32 = 0; c < ${pa.k}; c++) store<f32>(o + <usize>c * ${P * 4}, load<f32>(o + <usize>c * ${P * 4}) + load<f32>(x + ((<usize>c) << 2)));`,
        "  }",
      ]);
    }
    case "attend":
    case "attend_dq":
    case "attend_dkv":
      return emitAttention(name, b, env);
  }
}

/** Attention kernels, unrolled over head_dim: full vectors, then scalar dims. Key tiles of 32 from position 0, folded in order. */
function emitAttention(name: string, b: Body, env: KernelEnv): string {
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
  const zero = (prefix: string): string[] => [...vs.map((i) => `let ${prefix}${i}: v128 = f32x4.splat(0);`), ...rest.map((d) => `let ${prefix}s${d}: f32 = 0;`)];
  /** `let name = prefix · row at ptr`: lanes over dims, folded once. */
  const dot = (out: string, prefix: string, ptr: string): string[] => [
    `let ${out}v: v128 = f32x4.splat(0);`,
    ...vs.map((i) => `${out}v = f32x4.add(${out}v, f32x4.mul(${prefix}${i}, v128.load(${ptr}, ${i * 16})));`),
    `let ${out}: f32 = hsum(${out}v);`,
    ...rest.map((d) => `${out} += ${prefix}s${d} * load<f32>(${ptr}, ${d * 4});`),
  ];
  const axpy = (prefix: string, s: string, ptr: string): string[] => [
    `const ${s}_: v128 = f32x4.splat(${s});`,
    ...vs.map((i) => `${prefix}${i} = f32x4.add(${prefix}${i}, f32x4.mul(${s}_, v128.load(${ptr}, ${i * 16})));`),
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
      "  const s: usize = arena;",
      "  for (let row: i32 = 0; row < n; row++) {",
      `    const keys: i32 = ${posAt} + 1;`,
      `    const table: i32 = ${tableAt};`,
      `    for (let h: i32 = 0; h < ${heads}; h++) {`,
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
      ...indent([...vs.map((i) => `o${i} = f32x4.mul(o${i}, cv);`), ...rest.map((d) => `os${d} *= corr;`)], 8),
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
      ...indent([...vs.map((i) => `v128.store(op, f32x4.mul(o${i}, iv), ${i * 16});`), ...rest.map((d) => `store<f32>(op, os${d} * inv, ${d * 4});`)], 6),
      `      store<f32>(${l.cls} + ((<usize>(row * ${l.stride} + h)) << 2) + ${l.offset * 4}, m + log1(l));`,
      "    }",
      "  }",
    ]);
  }

  const dsum = [...load("g", "gp"), ...dot("dsum", "g", "op")];
  const lse = `load<f32>(${ptrOf(lseIn!, "row")} + ((<usize>h) << 2))`;
  if (b.skeleton === "attend_dq") {
    const d = outAddr(0);
    return wrap(name, [
      n,
      "  for (let row: i32 = 0; row < n; row++) {",
      `    const keys: i32 = ${posAt} + 1;`,
      `    const table: i32 = ${tableAt};`,
      `    for (let h: i32 = 0; h < ${heads}; h++) {`,
      `      const kh: i32 = h / ${group};`,
      `      const qp: usize = ${ptrOf(q!, "row")} + <usize>h * ${headBytes};`,
      `      const op: usize = ${ptrOf(oIn!, "row")} + <usize>h * ${headBytes};`,
      `      const gp: usize = ${ptrOf(dout!, "row")} + <usize>h * ${headBytes};`,
      ...indent([...load("q", "qp"), ...dsum, `const lse: f32 = ${lse};`, ...zero("d")], 6),
      "      for (let t: i32 = 0; t * 32 < keys; t++) {",
      "        const c: i32 = min(32, keys - t * 32);",
      `        let kp: usize = ${block(0, "kh")};`,
      `        let vp: usize = ${block(1, "kh")};`,
      "        for (let j: i32 = 0; j < c; j++) {",
      ...indent([...dot("a", "q", "kp"), ...dot("dp", "g", "vp"), `const ds: f32 = exp1(a * ${scale} - lse) * (dp - dsum) * ${scale};`, ...axpy("d", "ds", "kp")], 10),
      `          kp += ${headBytes};`,
      `          vp += ${headBytes};`,
      "        }",
      "      }",
      `      const out: usize = ${d.cls} + ((<usize>(row * ${d.stride} + h * ${hd})) << 2) + ${d.offset * 4};`,
      ...indent([...vs.map((i) => `v128.store(out, d${i}, ${i * 16});`), ...rest.map((e) => `store<f32>(out, ds${e}, ${e * 4});`)], 6),
      "    }",
      "  }",
    ]);
  }

  // dkv: each (key, kv head) is owned once; its sequence's segments fold one after another, in each the query rows and their heads in order.
  const d = env.address({ node, index: 0, type: node.outs[0]! });
  const width = 2 * kv.heads * hd;
  const seg = (array: string, at: string): string => `load<i32>(meta + ((<usize>(${at})) << 2), ${env.layout.arrays[array]! * 4})`;
  const half = (width / 2) * 4;
  return wrap(name, [
    n,
    // D = rowsum(dO · O) of each (row, head), once.
    "  const D: usize = arena;",
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
    `        const kp: usize = ${block(0, "kh")} + <usize>(key & 31) * ${headBytes};`,
    `        const vp: usize = ${block(1, "kh")} + <usize>(key & 31) * ${headBytes};`,
    ...indent([...load("k", "kp"), ...load("v", "vp"), ...zero("dk"), ...zero("dv")], 8),
    "        for (let row: i32 = r0 + max(0, key - pos0); row < end; row++)",
    `          for (let h: i32 = kh * ${group}; h < (kh + 1) * ${group}; h++) {`,
    `            const qp: usize = ${ptrOf(q!, "row")} + <usize>h * ${headBytes};`,
    `            const gp: usize = ${ptrOf(dout!, "row")} + <usize>h * ${headBytes};`,
    ...indent(
      [
        ...dot("a", "k", "qp"),
        ...dot("dp", "v", "gp"),
        `const pr: f32 = exp1(a * ${scale} - ${lse});`,
        `const ds: f32 = pr * (dp - load<f32>(D + ((<usize>(row * ${heads} + h)) << 2))) * ${scale};`,
        ...axpy("dk", "ds", "qp"),
        ...axpy("dv", "pr", "gp"),
      ],
      12,
    ),
    "          }",
    `        const out: usize = ${d.cls} + ((<usize>((base + key) * ${width} + kh * ${hd})) << 2) + ${d.offset * 4};`,
    "        if (fresh) {",
    ...indent(
      [
        ...vs.flatMap((i) => [`v128.store(out, dk${i}, ${i * 16});`, `v128.store(out, dv${i}, ${half + i * 16});`]),
        ...rest.flatMap((e) => [`store<f32>(out, dks${e}, ${e * 4});`, `store<f32>(out, dvs${e}, ${half + e * 4});`]),
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
        ...rest.flatMap((e) => [`store<f32>(out, load<f32>(out, ${e * 4}) + dks${e}, ${e * 4});`, `store<f32>(out, load<f32>(out, ${half + e * 4}) + dvs${e}, ${half + e * 4});`]),
      ],
      10,
    ),
    "        }",
    "      }",
    "    }",
    "  }",
  ]);
}

/** Gradient norm, clip factor, optimizer step. norms: [job][group sums…, clip scale, total norm]. */
function emitUpdate(name: string, b: UpdateBody, env: KernelEnv): string {
  const norms = `arena + ((<usize>(${header("job")} * ${env.groups + 2})) << 2) + ${env.norms * 4}`;
  const accum = `accum + ((<usize>(${header("job")} * ${env.jobWords})) << 2)`;
  if (b.skeleton === "sumsq")
    return wrap(name, [
      `  const g: usize = ${accum};`,
      "  let sum: f32 = 0;",
      ...b.params.map((p) => `  ${p.branch === null ? "" : `if ${maskBit(p.branch)} `}sum += sumsq(g + ${p.accum * 4}, ${wordsInUse(p, env)});`),
      `  store<f32>(${norms} + ((<usize>load<i32>(tables)) << 2), sum);`,
    ]);
  if (b.skeleton === "clip")
    return wrap(name, [
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
    const slot = (p: ParamAddress): string => `adapters + ((<usize>(${header("slot")} * ${env.slotWords})) << 2) + ${p.offset * 4}`;
    return wrap(
      name,
      b.norms!.map(
        (r) =>
          `  if ${maskBit(r.branch)} rowNorms_${r.format}(weights + ${r.weight.offset * 4}, ${r.weight.n}, ${r.weight.k}, ${slot(r.a)}, ${slot(r.b)}, ${jobRank(r.branch, env)}, load<f32>(tables + ((<usize>(${header("slot")} * ${env.branches * 2})) << 2), ${(SLOT_TABLE + r.branch * 2 + 1) * 4}), ${slot(r.out)}, arena);`,
      ),
    );
  }
  const rule = optimizers[b.optimizer!];
  const lines: string[] = [`  const clip: f32 = load<f32>(${norms}, ${env.groups * 4});`, `  const g: usize = ${accum};`, "  const cv: v128 = f32x4.splat(clip);"];
  for (const p of b.params) {
    const base = p.kind === "factor" ? `adapters + ((<usize>(${header("slot")} * ${env.slotWords})) << 2) + ${p.offset * 4}` : `weights + ${p.offset * 4}`;
    lines.push(
      `  ${p.branch === null ? "" : `if ${maskBit(p.branch)} `}{`,
      `    const bytes: usize = (<usize>(${wordsInUse(p, env)})) << 2;`,
      `    const param_: usize = ${base};`,
      `    const grad_: usize = g + ${p.accum * 4};`,
      ...rule.states.map((s, i) => `    const ${s}_: usize = grad_ + ${(i + 1) * p.words * 4};`),
      // A non-finite norm (clip < 0) leaves everything but the gradient, which is always cleared.
      `    if (clip >= 0) for (let i: usize = 0; i < bytes; i += 16) v128.store(grad_ + i, f32x4.mul(v128.load(grad_ + i), cv));`,
      `    if (clip >= 0) for (let i: usize = 0; i < bytes; i += 16) {`,
      ...optimizerStep(rule, p, env),
      "    }",
      "    memory.fill(grad_, 0, bytes);",
      "  }",
    );
  }
  return wrap(name, lines);
}

function optimizerStep(rule: (typeof optimizers)[keyof typeof optimizers], p: ParamAddress, env: KernelEnv): string[] {
  const printer = new Printer(dialect(env), 4);
  const decay: Expr = p.kind === "vector" || (p.kind === "factor" && p.rows === "one") ? { e: "const", v: 0 } : { e: "metaf", name: "decay", at: null };
  const next = rule.update({ decay });
  const texts = Object.entries(next).map(([key, e]) => [key, printer.at(e)] as const);
  return indent([...printer.row, ...printer.col, ...texts.map(([key, t]) => `v128.store(${key}_ + i, ${t});`)], 6);
}
