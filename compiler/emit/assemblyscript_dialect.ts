/**
 * How AssemblyScript spells expressions: SIMD bodies with scalar tails, over addresses the compiler assigned.
 */
import { type Ix, ixUsesCol, KV_BLOCK, type Type, usesCol, type Value } from "../../ops/index.ts";
import { formatOf, kvFormatOf, kvStride, layerWord } from "../../runtime/bundle.ts";
import type { Address, KernelEnv } from "../kernel.ts";
import type { Store } from "../kernels/body.ts";
import { type Expand, sameDelta } from "../kernels/deltas.ts";
import {
  DELTA_BYTES,
  f32,
  header,
  headerF,
  inTable,
  QUAD_SHIFT,
  quadsAt,
  vectorOf,
} from "../kernels/text/assemblyscript.ts";
import { lines } from "../kernels/text/lines.ts";
import { type Dialect, infix, Printer } from "./printer.ts";

type Kv = Type & { kind: "kv" };
type Factor = Type & { kind: "factor" };

/** A scalar function on one lane and on four; both round alike. */
const both =
  (one: (a: readonly string[]) => string, four: (a: readonly string[]) => string) =>
  (a: readonly string[], lanes: 1 | 4): string =>
    lanes === 4 ? four(a) : one(a);
const vector =
  (name: string) =>
  (a: readonly string[]): string =>
    `f32x4.${name}(${a.join(", ")})`;
const calls: Dialect["calls"] = {
  add: both(([a, b]) => `(${a} + ${b})`, vector("add")),
  sub: both(([a, b]) => `(${a} - ${b})`, vector("sub")),
  mul: both(([a, b]) => `(${a} * ${b})`, vector("mul")),
  div: both(([a, b]) => `(${a} / ${b})`, vector("div")),
  max: both(([a, b]) => `(${a} < ${b} ? ${b} : ${a})`, vector("pmax")),
  min: both(([a, b]) => `(${b} < ${a} ? ${b} : ${a})`, vector("pmin")),
  fma: both(
    ([a, b, c]) => `(${a} * ${b} + ${c})`,
    ([a, b, c]) => `f32x4.add(f32x4.mul(${a}, ${b}), ${c})`,
  ),
  neg: both(([a]) => `(-${a})`, vector("neg")),
  exp: ([a], lanes) => `exp${lanes}(${a})`,
  log: ([a], lanes) => `log${lanes}(${a})`,
  tanh: ([a], lanes) => `tanh${lanes}(${a})`,
  rsqrt: both(
    ([a]) => `(<f32>1 / sqrtf(${a}))`,
    ([a]) => `f32x4.div(f32x4.splat(1), f32x4.sqrt(${a}))`,
  ),
  sqrt: both(([a]) => `sqrtf(${a})`, vector("sqrt")),
  // Nothing here contracts a product into a sum.
  pin: ([a]) => a!,
};
/** Does an index go up by one over four columns, of which the first is a multiple of four? */
function inOrder(ix: Ix): boolean {
  if (ix.ix !== "bin") return ix.ix === "col";
  if (ix.op === "mod") return inFours(ix.a) && ix.b.ix === "int" && ix.b.v % 4 === 0;
  return ix.op === "add" && inOrder(ix.a) && !ixUsesCol(ix.b);
}
/** Is it a multiple of four of the first, too? */
const inFours = (ix: Ix): boolean =>
  inOrder(ix) && (ix.ix !== "bin" || (inFours(ix.a) && ix.b.ix === "int" && ix.b.v % 4 === 0));
/** Where a tensor begins, and where its row does. */
const startOf = (a: Address): string => `${a.space} + ${a.offset * 4}`;
const rowOf = (a: Address, row: string): string =>
  `${a.space} + ((<usize>(${row} * ${a.stride})) << 2) + ${a.offset * 4}`;

function dialect(env: KernelEnv, deltas: readonly Expand[]): Dialect {
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
        return ix.op === "lt" ? `<i32>(${a} < ${b})` : `(${a} ${infix[ix.op]} ${b})`;
      }
      case "layer":
        return `load<i32>(tables, ${layerWord(ix.name) * 4})`;
      case "rank":
        return inTable(slotOf(ix.row, p), ix.branch, "rank", env);
      case "slot":
        return `<i32>load<f32>(${slotPtr(ix.tensor, ix.row, p)} + ((<usize>${p.ix(ix.at, lane)}) << 2))`;
      case "element": {
        const start = pointer(rowOf(env.address(ix.value), p.ix(ix.row)), p);
        return `<i32>load<f32>(${start} + ((<usize>${p.ix(ix.at, lane)}) << 2))`;
      }
    }
  };
  const slotOf = (row: Ix, p: Printer): string => p.ix({ ix: "meta", name: "slot", at: row });
  const branchOf = (v: Value): number => (v.type as Factor).branch;
  const quadsOf = (branch: number, row: Ix, p: Printer): string =>
    pointer(quadsAt(slotOf(row, p), branch, env), p);
  const pointer = (text: string, p: Printer): string =>
    p.hoist(text, (name) => `const ${name}: usize = ${text};`, "p");
  /** Where a vector of the row's slot begins. */
  const slotPtr = (v: Value, row: Ix, p: Printer): string =>
    pointer(vectorOf(slotOf(row, p), branchOf(v), env.address(v).offset, env), p);
  const element = (base: string, index: string, lanes: 1 | 4): string =>
    `${lanes === 4 ? "v128.load" : "load<f32>"}(${base} + ((<usize>(${index})) << 2))`;
  /** Columns `col` of what begins at a pointer. */
  const elements = (ptr: string, col: Ix, p: Printer, lanes: 1 | 4): string => {
    const one = (lane: number): string => `load<f32>(${ptr} + ((<usize>${p.ix(col, lane)}) << 2))`;
    if (lanes === 1 || !ixUsesCol(col)) return one(0);
    return inOrder(col) ? `v128.load(${ptr} + ((<usize>${p.ix(col)}) << 2))` : lanesOf(one);
  };
  const lanesOf = (one: (lane: number) => string): string =>
    [1, 2, 3].reduce(
      (v, lane) => `f32x4.replace_lane(${v}, ${lane}, ${one(lane)})`,
      `f32x4.splat(${one(0)})`,
    );
  return {
    type: (lanes) => (lanes === 4 ? "v128" : "f32"),
    constant: (v, lanes) => (lanes === 4 ? `f32x4.splat(${f32(v)})` : f32(v)),
    splat: (t) => `f32x4.splat(${t})`,
    declare: (name, type, text) => `const ${name}: ${type} = ${text};`,
    declareInt: (name, text) => `const ${name}: i32 = ${text};`,
    calls,
    ix: ixText,
    leaves: {
      load: (e, p, lanes) => {
        const t = e.value.type;
        const ad = env.address(e.value);
        if (t.kind === "weight") {
          const n = formatOf(t.format).planes.length > 1 ? `, ${t.n}` : "";
          const at = `${ad.space} + ${ad.offset * 4}, ${p.ix(e.row)}`;
          const one = (lane: number): string => `weight${t.format}(${at}, ${p.ix(e.col, lane)}, ${t.k}${n})`;
          return lanes === 4 ? lanesOf(one) : one(0);
        }
        const row = p.ix(e.row);
        const start =
          t.kind === "factor"
            ? slotPtr(e.value, e.row, p)
            : ad.stride === 0 || t.kind === "vector"
              ? startOf(ad)
              : rowOf(ad, row);
        return elements(pointer(start, p), e.col, p, lanes);
      },
      ranked: (e, p, lanes) => {
        const { branch, cols } = e.factor.type as Factor;
        const at = p.ix(e.at);
        // A row that the slot has not is read where there is one.
        const quad = `((<usize>min(${at} >> 2, ${env.slots.branches[branch]!.quads - 1})) << ${QUAD_SHIFT})`;
        const place = `load<i32>(${quadsOf(branch, e.row, p)} + ${quad})`;
        const words = `${place} + (${at} & 3) * ${cols}`;
        const { space, offset } = env.address(e.factor);
        return elements(pointer(`${space} + ((<usize>(${words})) << 2) + ${offset * 4}`, p), e.col, p, lanes);
      },
      metaf: (e, p) =>
        e.at === null
          ? headerF(e.name)
          : `load<f32>(meta + ((<usize>${p.ix(e.at)}) << 2), ${env.layout.arrays[e.name]! * 4})`,
      // Four columns from a multiple of four are of one quad.
      scale: (e, p, lanes) => {
        const quad = `((<usize>(${p.ix(e.col)} >> 2)) << ${QUAD_SHIFT})`;
        const scale = `load<f32>(${quadsOf(e.branch, e.row, p)} + ${quad}, 4)`;
        return lanes === 4 ? `f32x4.splat(${scale})` : scale;
      },
      rand: (e, p, lanes) => {
        const key = p.ix(e.key);
        const text = `load<i32>(tables) * 64 + ${e.site}`;
        const salt = p.hoist(text, (name) => `const ${name}: i32 = ${text};`, "i");
        return `rand${lanes}(${key}, ${salt}, ${p.ix(e.col)})`;
      },
      expand: (e, p, lanes) => {
        const { branch, cols } = e.factor.type as Factor;
        const rank = p.ix({ ix: "rank", branch, row: e.row });
        const x = pointer(rowOf(env.address(e.u), p.ix(e.row)), p);
        const { space, offset } = env.address(e.factor);
        const at = (lane: number, n: 1 | 4): string => {
          const u = e.from ? ` + ((<usize>${p.ix(e.from, lane)}) << 2)` : "";
          const f = `${space} + ${offset * 4} + ((<usize>${p.ix(e.col, lane)}) << 2)`;
          return `expand${n}(${x}${u}, ${quadsOf(branch, e.row, p)}, ${f}, ${rank}, ${cols * 4})`;
        };
        const ready = deltas.findIndex((d) => sameDelta(d, e));
        if (ready >= 0) return element(`delta_ + ${ready * DELTA_BYTES}`, "col - c0", lanes);
        // Four columns that begin anywhere may be of two parts of a row.
        return lanes === 4 && e.from ? lanesOf((lane) => at(lane, 1)) : at(0, lanes);
      },
      sparse: (e, p, lanes) => {
        const words = (v: Value): string => slotPtr(v, e.row, p);
        const x = pointer(rowOf(env.address(e.x), p.ix(e.row)), p);
        const index = words(e.index);
        const order = e.order === null ? "0" : `${index} + ${e.order * 4}`;
        const one = (lane: number): string => {
          const start = `${index} + ((<usize>(${e.start + lane} + col)) << 2)`;
          return `sparse1(${x}, ${words(e.values)}, ${start}, ${order}, ${index} + ${e.at * 4})`;
        };
        return lanes === 4 ? lanesOf(one) : one(0);
      },
      dot: (e, p, lanes) => {
        const [a, b] = [e.a, e.b].map((v) => pointer(rowOf(env.address(v), p.ix(e.row)), p));
        const one = (lane: number): string => {
          const from = `((<usize>${p.ix(e.from, lane)}) << 2)`;
          return `dot1(${a} + ${from}, ${b} + ${from}, ${e.step}, ${e.n})`;
        };
        return lanes === 4 ? lanesOf(one) : one(0);
      },
      acc: (e, _p, lanes) => element(`acc${e.of}`, "col - c0", lanes),
      stat: (e) => `stat${e.id}`,
      arg: (e, _p, lanes) => (lanes === 4 ? `v128.load(${e.name}_ + i)` : `load<f32>(${e.name}_ + i)`),
    },
    reserve: (name, type) => `let ${name}: ${type};`,
    choose: (e, a, b, p, lanes) => {
      const one = (lane: number): string => `${ixUsesCol(e.ix) ? p.ix(e.ix, lane) : p.ix(e.ix)} != 0`;
      if (lanes === 1) return `(${one(0)} ? ${a} : ${b})`;
      const mask = [1, 2, 3].reduce(
        (v, lane) => `i32x4.replace_lane(${v}, ${lane}, -<i32>(${one(lane)}))`,
        `i32x4.splat(-<i32>(${one(0)}))`,
      );
      return `v128.bitselect(${a}, ${b}, ${mask})`;
    },
  };
}

/**
 * Prints for kernels of `env`, once a row or four lanes at a time; `deltas` are the low-rank deltas that are
 * ready when an epilogue runs.
 */
export const assemblyPrinter = (env: KernelEnv, lanes: 1 | 4 = 1, deltas: readonly Expand[] = []): Printer =>
  new Printer(dialect(env, deltas), lanes);

/** The place of a store's row, and the condition under which it is there. */
interface Place {
  readonly at: string;
  readonly guard: string | null;
}
const places: { readonly [T in Store["to"]]: (s: Store & { to: T }, p: Printer, env: KernelEnv) => Place } = {
  rows: (s, _, env) => ({ at: rowOf(env.address(s.value), "row"), guard: null }),
  field: (s, p, env) => {
    const ix = p.ix({ ix: "meta", name: s.index, at: { ix: "row" } });
    return { at: rowOf(env.address(s.field), ix), guard: `${ix} >= 0` };
  },
  kv: (s, p, env) => {
    const { heads, headDim, format } = s.kv.type as Kv;
    const bytes = kvStride(headDim) * kvFormatOf(format).bytes;
    const pos = p.ix({ ix: "meta", name: "pos", at: { ix: "row" } });
    const table = p.ix({ ix: "meta", name: "table", at: { ix: "row" } });
    const kv = startOf(env.address(s.kv));
    return { at: `kvRow(${kv}, meta, ${table}, ${pos}, ${s.part}, ${heads}, ${bytes})`, guard: null };
  },
};
function placeOf(s: Store, p: Printer, env: KernelEnv): Place {
  const place = (places[s.to] as (s: Store, p: Printer, env: KernelEnv) => Place)(s, p, env);
  return { ...place, at: p.hoist(place.at, (n) => `const ${n}: usize = ${place.at};`, "p") };
}
/** Statements that store elements of `lanes` columns from `col`, of a row that begins at `ptr`. */
function storeAt(s: Store, ptr: string, value: string, lanes: 1 | 4): string {
  const store = lanes === 4 ? "v128.store" : "store<f32>";
  const shift = s.shift ?? 0;
  if (s.to !== "kv")
    return `${store}(${ptr} + ((<usize>col) << 2), ${value}${shift ? `, ${shift * 4}` : ""});`;
  // Heads of the cache lie a block apart.
  const { headDim, format } = s.kv.type as Kv;
  const { bytes, assembly } = kvFormatOf(format);
  const at = (lane: number): string => {
    const col = `(col + ${shift + lane})`;
    const number = `${col} / ${headDim} * ${KV_BLOCK * kvStride(headDim)} + ${col} % ${headDim}`;
    return `${ptr} + ((<usize>(${number})) << ${Math.log2(bytes)})`;
  };
  if (lanes === 1) return assembly.store1(at(0), value);
  if (headDim % 4 === 0) return assembly.store4(at(0), value);
  return [0, 1, 2, 3]
    .map((lane) => assembly.store1(at(lane), `f32x4.extract_lane(${value}, ${lane})`))
    .join(" ");
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
  const wide = stores.filter((s) => s.cols > 1 || (cols === 1 && usesCol(s.expr)));
  for (const s of stores) {
    if (wide.includes(s)) continue;
    const value = p.scalar(s.expr);
    const { at, guard } = placeOf(s, p, env);
    p.row.push(`${guard ? `if (${guard}) ` : ""}store<f32>(${at}, ${value});`);
  }
  if (!wide.length) return [];
  const targets = wide.map((s) => placeOf(s, p, env));
  const step = (lanes: 1 | 4): string[] => {
    const q = new Printer(p.dialect, lanes, p);
    wide.forEach((s, i) => {
      const { at, guard } = targets[i]!;
      const store = storeAt(s, at, q.at(s.expr), lanes);
      q.col.push(guard ? `if (${guard}) { ${store} }` : store);
    });
    return q.col;
  };
  const [four, one] = [step(4), step(1)];
  return lines`
    let col: i32 = ${from};
    for (; col + 4 <= ${to}; col += 4) {
      ${four}
    }
    for (; col < ${to}; col++) {
      ${one}
    }`;
}
