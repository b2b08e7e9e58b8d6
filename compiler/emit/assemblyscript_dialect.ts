/**
 * How AssemblyScript spells expressions: SIMD bodies with scalar tails, over addresses the compiler assigned.
 */
import {
  type Expr,
  type Ix,
  ixUsesCol,
  KV_BLOCK,
  sameValue,
  type Type,
  type Value,
} from "../../ops/index.ts";
import type { Store } from "../fuse.ts";
import { type KernelEnv, SLOT_TABLE } from "../kernel.ts";
import { DELTA_BYTES, f32, header, headerF, indent } from "./assemblyscript_parts.ts";
import { type Dialect, Printer, usesCol } from "./printer.ts";

type Kv = Type & { kind: "kv" };
/** A low-rank delta that is ready when an epilogue runs. */
export type Expand = Expr & { e: "expand" };

export function dialect(env: KernelEnv, deltas: readonly Expand[] = []): Dialect {
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
        const [a, b] = [
          ixUsesCol(ix.a) ? ixText(ix.a, p, lane) : p.ix(ix.a),
          ixUsesCol(ix.b) ? ixText(ix.b, p, lane) : p.ix(ix.b),
        ];
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
  const lanesOf = (one: (lane: number) => string): string =>
    [1, 2, 3].reduce(
      (v, lane) => `f32x4.replace_lane(${v}, ${lane}, ${one(lane)})`,
      `f32x4.splat(${one(0)})`,
    );
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
          return v
            ? `f32x4.${fn}(${a[0]}, ${a[1]})`
            : `(${a[0]} ${{ add: "+", sub: "-", mul: "*", div: "/" }[fn]} ${a[1]})`;
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
        const one = (lane: number): string =>
          `weight${t.format}(${ad.cls} + ${ad.offset * 4}, ${p.ix(e.row)}, ${p.ix(e.col, lane)}, ${t.k}${t.format === "int8" ? `, ${t.n}` : ""})`;
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
      const contiguous =
        e.col.ix === "col" ||
        (e.col.ix === "bin" && e.col.op === "add" && e.col.a.ix === "col" && !ixUsesCol(e.col.b));
      if (lanes === 4 && contiguous) return `v128.load(${ptr} + ((<usize>${p.ix(e.col)}) << 2))`;
      const one = (lane: number): string => `load<f32>(${ptr} + ((<usize>${p.ix(e.col, lane)}) << 2))`;
      return lanes === 4 ? lanesOf(one) : one(0);
    },
    leaf: (e, p, lanes) => {
      switch (e.e) {
        case "metaf":
          return e.at === null
            ? headerF(e.name)
            : `load<f32>(meta + ((<usize>${p.ix(e.at)}) << 2), ${env.layout.arrays[e.name]! * 4})`;
        case "scale":
          return `load<f32>(tables + ((<usize>(${p.ix({ ix: "meta", name: "slot", at: e.row })} * ${env.branches * 2})) << 2), ${(SLOT_TABLE + e.branch * 2 + 1) * 4})`;
        case "rand": {
          const key = p.ix(e.key);
          const salt = p.hoist(
            `load<i32>(tables) * 64 + ${e.site}`,
            (name) => `const ${name}: i32 = load<i32>(tables) * 64 + ${e.site};`,
            "i",
          );
          return `rand${lanes}(${key}, ${salt}, ${p.ix(e.col)})`;
        }
        case "expand": {
          const ready = deltas.findIndex((d) => sameValue(d.u, e.u) && sameValue(d.factor, e.factor));
          if (ready >= 0)
            return `${lanes === 4 ? "v128.load" : "load<f32>"}(delta_ + ${ready * DELTA_BYTES} + ((<usize>(col - c0)) << 2))`;
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
          const pointer = (text: string): string =>
            p.hoist(text, (name) => `const ${name}: usize = ${text};`, "p");
          const words = (v: Value): string =>
            pointer(
              `${env.address(v).cls} + ((<usize>(${slot} * ${env.slotWords})) << 2) + ${env.address(v).offset * 4}`,
            );
          const a = env.address(e.x);
          const x = pointer(`${a.cls} + ((<usize>(${p.ix(e.row)} * ${a.stride})) << 2) + ${a.offset * 4}`);
          const index = words(e.index);
          const one = (lane: number): string =>
            `sparse1(${x}, ${words(e.values)}, ${index} + ((<usize>(${e.start + lane} + col)) << 2), ${e.order === null ? "0" : `${index} + ${e.order * 4}`}, ${index} + ${e.at * 4})`;
          return lanes === 4 ? lanesOf(one) : one(0);
        }
        case "acc":
          return lanes === 4
            ? "v128.load(acc + ((<usize>(col - c0)) << 2))"
            : "load<f32>(acc + ((<usize>(col - c0)) << 2))";
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
      const mask = [1, 2, 3].reduce(
        (v, lane) => `i32x4.replace_lane(${v}, ${lane}, -<i32>(${one(lane)}))`,
        `i32x4.splat(-<i32>(${one(0)}))`,
      );
      return `v128.bitselect(${a}, ${b}, ${mask})`;
    },
  };
  return d;
}

/**
 * Statements that store a body's outputs for one row over columns [from, to): a vector loop and a scalar
 * tail.
 */
export function storeLoops(
  p: Printer,
  stores: readonly Store[],
  env: KernelEnv,
  cols: number,
  from: string,
  to: string,
): string[] {
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
    p.row.push(
      t.guard ? `if (${t.guard}) store<f32>(${t.ptr}, ${value});` : `store<f32>(${t.ptr}, ${value});`,
    );
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
          const at = (lane: number): string =>
            `${t.ptr} + ((<usize>((col + ${lane}) / ${headDim} * ${KV_BLOCK * headDim} + (col + ${lane}) % ${headDim})) << 2)`;
          if (lanes === 1) return `store<f32>(${at(0)}, ${value});`;
          if (headDim % 4 === 0) return `v128.store(${at(0)}, ${value});`;
          return [0, 1, 2, 3]
            .map((lane) => `store<f32>(${at(lane)}, f32x4.extract_lane(${value}, ${lane}));`)
            .join(" ");
        }
        return lanes === 4
          ? `v128.store(${t.ptr} + ((<usize>col) << 2), ${value});`
          : `store<f32>(${t.ptr} + ((<usize>col) << 2), ${value});`;
      };
      q.col.push(t.guard ? `if (${t.guard}) { ${store()} }` : store());
    });
    return q.col;
  };
  const vec = emit(4);
  const tail = emit(1);
  out.push(
    `let col: i32 = ${from};`,
    `for (; col + 4 <= ${to}; col += 4) {`,
    ...indent(vec, 2),
    "}",
    `for (; col < ${to}; col++) {`,
    ...indent(tail, 2),
    "}",
  );
  return out;
}
