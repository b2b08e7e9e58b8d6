/** How WGSL spells expressions, and where a body's outputs are stored. */

import { type Expr, type Ix, ixUsesCol, type Type, usesCol, type Value } from "../../ops/index.ts";
import {
  type Format,
  formatOf,
  kvStride,
  layerWord,
  packedWords,
  QUAD_WORDS,
  SHARD_ROWS,
  WGSL_PANEL,
} from "../../runtime/bundle.ts";
import type { KernelEnv } from "../kernel.ts";
import type { Store } from "../kernels/body.ts";
import type { Expand } from "../kernels/deltas.ts";
import { f32, header, headerF, inShard, inTable, pin, quadsAt, vectorOf } from "../kernels/text/wgsl.ts";
import { type Dialect, infix, Printer } from "./printer.ts";

type Kv = Type & { kind: "kv" };
type Factor = Type & { kind: "factor" };

function dialect(env: KernelEnv, ready: Ready): Dialect {
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
        const [a, b] = [
          ixUsesCol(ix.a) ? ixText(ix.a, p) : p.ix(ix.a),
          ixUsesCol(ix.b) ? ixText(ix.b, p) : p.ix(ix.b),
        ];
        return ix.op === "lt" ? `select(0, 1, ${a} < ${b})` : `(${a} ${infix[ix.op]} ${b})`;
      }
      case "layer":
        return `tables[${layerWord(ix.name)}]`;
      case "rank":
        return inTable(slotOf(ix.row, p), ix.branch, "rank", env);
      case "slot":
        return `i32(adapters[${vectorAt(ix.tensor, ix.row, p)} + ${p.ix(ix.at)}])`;
      case "element": {
        const { space, offset, stride } = env.address(ix.value);
        return `i32(${space}[${offset} + ${p.ix(ix.row)} * ${stride} + ${p.ix(ix.at)}])`;
      }
    }
  };
  const slotOf = (row: Ix, p: Printer): string => p.ix({ ix: "meta", name: "slot", at: row });
  /** First word of a vector of the row's slot. */
  const vectorAt = (v: Value, row: Ix, p: Printer): string =>
    vectorOf(slotOf(row, p), (v.type as Factor).branch, env.address(v).offset, env);
  /** Four columns from `col` on, a multiple of four, of rows or of a vector. */
  const fourOf = ({ value, row, col }: Expr & { e: "load" }, p: Printer): string => {
    const { space, offset, stride } = env.address(value);
    const vector = value.type.kind === "vector";
    if (col.ix !== "col" || (!vector && value.type.kind !== "rows"))
      throw new Error(`four columns at once of ${value.node.label}`);
    const at = vector ? `${offset} + col` : `${offset} + ${p.ix(row)} * ${stride} + col`;
    if (space === "weights" && offset % 4 === 0) return `bitcast<vec4<f32>>(weights[(${at}) >> 2u])`;
    const each = (i: number): string =>
      space === "weights" ? `vector_at(${at} + ${i})` : `${space}[${at} + ${i}]`;
    return `vec4<f32>(${[0, 1, 2, 3].map(each).join(", ")})`;
  };
  return {
    type: (lanes) => (lanes === 4 ? "vec4<f32>" : "f32"),
    constant: (v, lanes) => (lanes === 4 ? `vec4<f32>(${f32(v)})` : f32(v)),
    splat: (t) => `vec4<f32>(${t})`,
    declare: (name, _type, text) => `let ${name} = ${text};`,
    declareInt: (name, text) => `let ${name} = ${text};`,
    calls: {
      add: ([a, b]) => `(${a} + ${b})`,
      sub: ([a, b]) => `(${a} - ${b})`,
      mul: ([a, b]) => `(${a} * ${b})`,
      div: ([a, b]) => `(${a} / ${b})`,
      max: ([a, b]) => `max(${a}, ${b})`,
      min: ([a, b]) => `min(${a}, ${b})`,
      fma: ([a, b, c]) => `fma(${a}, ${b}, ${c})`,
      neg: ([a]) => `(-${a})`,
      exp: ([a]) => `exp(${a})`,
      // Drivers make it a product, log2(x) · ln 2.
      log: ([a], lanes) => pin(`log(${a})`, lanes),
      tanh: ([a]) => `tanh(${a})`,
      rsqrt: ([a]) => `(1.0f / sqrt(${a}))`,
      sqrt: ([a]) => `sqrt(${a})`,
      pin: ([a], lanes) => pin(a!, lanes),
    },
    ix: ixText,
    leaves: {
      load: (e, p, lanes) => {
        const t = e.value.type;
        const ad = env.address(e.value);
        if (lanes === 4) return fourOf(e, p);
        if (t.kind === "weight") {
          const several = formatOf(t.format).planes.length > 1;
          const at = (base: string | number, row: string, n: number): string =>
            `weight_${t.format}(${base}, ${row}, ${p.ix(e.col)}, ${t.k}${several ? `, ${n}` : ""})`;
          if (ad.own == null) return at(ad.offset, p.ix(e.row), t.n);
          const row = inShard(p.ix(e.row));
          if (!several) return at(0, row, t.n);
          const words = packedWords(t.format as Format, SHARD_ROWS, t.k, WGSL_PANEL);
          return at(`(${row} / ${SHARD_ROWS}) * ${words}`, `${row} % ${SHARD_ROWS}`, SHARD_ROWS);
        }
        if (t.kind === "factor") return `adapters[${vectorAt(e.value, e.row, p)} + ${p.ix(e.col)}]`;
        const at =
          ad.stride === 0 || t.kind === "vector"
            ? `${ad.offset} + ${p.ix(e.col)}`
            : `${ad.offset} + ${p.ix(e.row)} * ${ad.stride} + ${p.ix(e.col)}`;
        return ad.space === "weights" ? `vector_at(${at})` : `${ad.space}[${at}]`;
      },
      metaf: (e, p) =>
        e.at === null ? headerF(e.name) : `bitcast<f32>(batch[${env.layout.arrays[e.name]} + ${p.ix(e.at)}])`,
      ranked: (e, p) => {
        const { branch, cols } = e.factor.type as Factor;
        const at = p.ix(e.at);
        // A row that the slot has not is read where there is one.
        const quad = `min(${at} >> 2u, ${env.slots.branches[branch]!.quads - 1}) * ${QUAD_WORDS}`;
        const place = `tables[${quadsAt(slotOf(e.row, p), branch, env)} + ${quad}]`;
        return (
          `adapters[${place} + ${env.address(e.factor).offset} + ` + `(${at} & 3) * ${cols} + ${p.ix(e.col)}]`
        );
      },
      scale: (e, p) => {
        const quad = `(${p.ix(e.col)} >> 2u) * ${QUAD_WORDS} + 1`;
        return `bitcast<f32>(tables[${quadsAt(slotOf(e.row, p), e.branch, env)} + ${quad}])`;
      },
      rand: (e, p) => `rand(${p.ix(e.key)}, tables[0] * 64 + ${e.site}, ${p.ix(e.col)})`,
      expand: (e, p) => {
        const made = e.from ? null : ready(e);
        if (made) return made;
        const { branch, cols } = e.factor.type as Factor;
        const u = env.address(e.u);
        const slot = slotOf(e.row, p);
        const from = e.from ? ` + ${p.ix(e.from)}` : "";
        const x = `${u.offset} + ${p.ix(e.row)} * ${u.stride}${from}`;
        const f = `${env.address(e.factor).offset} + ${p.ix(e.col)}`;
        const rank = inTable(slot, branch, "rank", env);
        return `expand(${x}, ${quadsAt(slot, branch, env)}, ${f}, ${rank}, ${cols})`;
      },
      sparse: (e, p) => {
        const x = env.address(e.x);
        const index = vectorAt(e.index, e.row, p);
        const order = e.order === null ? -1 : `${index} + ${e.order}`;
        const values = vectorAt(e.values, e.row, p);
        const start = `${index} + ${e.start} + col`;
        const row = `${x.offset} + ${p.ix(e.row)} * ${x.stride}`;
        return `sparse(${row}, ${values}, ${start}, ${order}, ${index} + ${e.at})`;
      },
      dot: (e, p) => {
        const at = (v: Value): string => {
          const ad = env.address(v);
          return `${ad.offset} + ${p.ix(e.row)} * ${ad.stride} + ${p.ix(e.from)}`;
        };
        return `dot_of(${at(e.a)}, ${at(e.b)}, ${e.step}, ${e.n})`;
      },
      acc: (e) => `acc${e.of}`,
      stat: (e) => `stat${e.id}`,
      arg: (e) => `${e.name}_`,
    },
    reserve: (name, type) => `var ${name} = ${type}();`,
    choose: (e, a, b, p) => `select(${b}, ${a}, ${p.ix(e.ix)} != 0)`,
  };
}

/** What a low-rank delta is called that is made when it is asked for; null: it is not. */
type Ready = (e: Expand) => string | null;
/**
 * Prints for kernels of `env`: row by row, an element a lane. A printer of four has four columns at once of
 * what is made of rows, vectors and reductions.
 */
export const wgslPrinter = (env: KernelEnv, ready: Ready = () => null): Printer =>
  new Printer(dialect(env, ready), 1);

/** The statement that stores an element of (row, col), and the condition under which it is there. */
interface Place {
  readonly put: (value: string) => string;
  readonly guard: string | null;
}
const into =
  (at: string) =>
  (value: string): string =>
    `${at} = ${value};`;
const places: { readonly [T in Store["to"]]: (s: Store & { to: T }, p: Printer, env: KernelEnv) => Place } = {
  rows: (s, _, env) => {
    const ad = env.address(s.value);
    return { put: into(`${ad.space}[${ad.offset} + row * ${ad.stride} + ${colOf(s)}]`), guard: null };
  },
  field: (s, p, env) => {
    const ad = env.address(s.field);
    const ix = p.ix({ ix: "meta", name: s.index, at: { ix: "row" } });
    return {
      put: into(`${ad.space}[${ad.offset} + ${ix} * ${ad.stride} + ${colOf(s)}]`),
      guard: `${ix} >= 0`,
    };
  },
  kv: (s, p, env) => {
    const { heads, headDim, format } = s.kv.type as Kv;
    const { offset } = env.address(s.kv);
    const pos = p.ix({ ix: "meta", name: "pos", at: { ix: "row" } });
    const table = p.ix({ ix: "meta", name: "table", at: { ix: "row" } });
    const col = colOf(s);
    const head = `kv_index(${table}, ${pos}, ${s.part}, ${col} / ${headDim}, ${heads}, ${kvStride(headDim)})`;
    const at = `${offset} + ${head} + ${col} % ${headDim}`;
    return { put: (value) => `kv_put_${format}(${at}, ${value});`, guard: null };
  },
};
const colOf = (s: Store): string => (s.cols === 1 ? "0" : s.shift ? `(col + ${s.shift})` : "col");
const placeOf = (s: Store, p: Printer, env: KernelEnv): Place =>
  (places[s.to] as (s: Store, p: Printer, env: KernelEnv) => Place)(s, p, env);

/**
 * Statements that store a body's outputs at (row, col); `narrow` ones (one column) only where `first` holds.
 */
export function wgslStores(
  p: Printer,
  list: readonly Store[],
  env: KernelEnv,
  cols: number,
  first: string,
): string[] {
  return list.map((s) => {
    const narrow = s.cols === 1 && cols !== 1;
    if (narrow && usesCol(s.expr)) throw new Error("a one-column store depends on the column");
    const value = narrow ? p.scalar(s.expr) : p.at(s.expr);
    const place = placeOf(s, p, env);
    const guards = [...(narrow ? [first] : []), ...(place.guard ? [place.guard] : [])];
    const store = place.put(value);
    return guards.length ? `if (${guards.join(" && ")}) { ${store} }` : store;
  });
}
