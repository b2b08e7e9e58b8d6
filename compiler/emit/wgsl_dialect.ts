/** How WGSL spells expressions, and where a body's outputs are stored. */
import { type Ix, ixUsesCol, type Type, type Value } from "../../ops/index.ts";
import type { Store } from "../fuse.ts";
import { type KernelEnv, SLOT_TABLE } from "../kernel.ts";
import { type Dialect, type Printer, usesCol } from "./printer.ts";
import { f32, header, headerF, pin } from "./wgsl_parts.ts";

type Kv = Type & { kind: "kv" };

export function dialect(env: KernelEnv): Dialect {
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
          return pin(a[0]!);
        case "log":
          // Drivers make it a product, log2(x) · ln 2.
          return pin(`log(${a[0]})`);
        default:
          return `${fn}(${a.join(", ")})`;
      }
    },
    ix: ixText,
    load: (e, p) => {
      const t = e.value.type;
      const ad = env.address(e.value);
      if (t.kind === "weight")
        return `weight_${t.format}(${ad.offset}, ${p.ix(e.row)}, ${p.ix(e.col)}, ${t.k}${t.format === "int8" ? `, ${t.n}` : ""})`;
      if (t.kind === "factor") return `${slotAt(e.value, e.row, p)} + ${p.ix(e.col)}]`;
      const at =
        ad.stride === 0 || t.kind === "vector"
          ? `${ad.offset} + ${p.ix(e.col)}`
          : `${ad.offset} + ${p.ix(e.row)} * ${ad.stride} + ${p.ix(e.col)}`;
      return ad.cls === "weights" ? `vector_at(${at})` : `${ad.cls}[${at}]`;
    },
    leaf: (e, p) => {
      switch (e.e) {
        case "metaf":
          return e.at === null
            ? headerF(e.name)
            : `bitcast<f32>(batch[${env.layout.arrays[e.name]} + ${p.ix(e.at)}])`;
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
      `var ${name} = ${type}();`,
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

/**
 * Statements that store a body's outputs at (row, col); `narrow` ones (one column) only where `first` holds.
 */
export function stores(
  p: Printer,
  list: readonly Store[],
  env: KernelEnv,
  cols: number,
  first: string,
): string[] {
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
    return {
      at: `${ad.cls}[${ad.offset} + kv_index(${table}, ${pos}, ${s.part}, col / ${kv.headDim}, ${kv.heads}, ${kv.headDim}) + col % ${kv.headDim}]`,
      guard: null,
    };
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
