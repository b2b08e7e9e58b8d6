/**
 * Rows that products make anew. A norm is a launch for what little it does, and where a step has one row, as
 * that of a token, most of what it costs is that the product behind it waits for it. So the product of a row
 * that is alone has the norm's own sums, in the norm's own order, and multiplies with what it makes of them:
 * the same bits; so do first products of adapters. The norm then has that row only where something else reads
 * it, as training does. Several rows share a launch, and each would have to be made in every workgroup: they
 * are read.
 */
import {
  type Expr,
  type Ix,
  ixUsesCol,
  pairsOf,
  sameValue,
  type Type,
  type Value,
  valueKey,
  walkExpr,
} from "../../ops/index.ts";
import { formatOf, type Products } from "../../runtime/bundle.ts";
import type { Body, Made, Operand, Stat } from "../kernels/body.ts";
import { graphKernels, onlySaves } from "../kernels/index.ts";
import type { Group } from "./groups.ts";

type Factor = Type & { kind: "factor" };
type Bodies = ReadonlyMap<Group, Body>;

const partsOf = (e: Expr): Expr[] => {
  const out: Expr[] = [];
  walkExpr(e, (part) => out.push(part));
  return out;
};
/** An element and the reductions that it needs, which may need others before them. */
function madeOf(expr: Expr, all: readonly Stat[]): Made {
  const needed = new Set<number>();
  const need = (e: Expr): void => {
    for (const part of partsOf(e)) {
      if (part.e !== "stat" || needed.has(part.id)) continue;
      needed.add(part.id);
      need(all.find(({ id }) => id === part.id)!.expr);
    }
  };
  need(expr);
  return { stats: all.filter(({ id }) => needed.has(id)), expr };
}
const exprsOf = ({ stats, expr }: Made): Expr[] => [...stats.map((s) => s.expr), expr];
const readsOf = (made: Made): Value[] =>
  exprsOf(made).flatMap((e) => partsOf(e).flatMap((part) => (part.e === "load" ? [part.value] : [])));
/** Is it made of numbers that lie side by side, without a loop or a branch? */
const isPlain = (e: Expr): boolean =>
  partsOf(e).every((part) => {
    if (part.e !== "load") return part.e === "const" || part.e === "call" || part.e === "stat";
    const { value, row, col } = part;
    const whole = (ix: Ix): boolean => ix.ix === "col" || !ixUsesCol(ix);
    return (value.type.kind === "rows" || value.type.kind === "vector") && whole(col) && !ixUsesCol(row);
  });

/** Branches whose sums over entries of `v` an epilogue has; null: it reads `v` in another way, too. */
function entriesOf(b: Body, v: Value): number[] | null {
  const out: number[] = [];
  let others = false;
  for (const { expr } of b.stores)
    walkExpr(expr, (part, reads) => {
      if (!reads.some((read) => sameValue(read, v))) return;
      if (part.e === "sparse") out.push((part.values.type as Factor).branch);
      else others = true;
    });
  return others ? null : out;
}
/** Does a product of this kind with a matrix of such a format round what it multiplies? */
const rounds: Readonly<Record<Products, (format: string) => boolean>> = {
  f32: () => false,
  integers: (format) => formatOf(format).wgsl.integers !== null,
  matrix: () => true,
};
const isOf = (o: Operand, v: Value): boolean => sameValue(o.undropped ?? o.value, v) && o.index === null;

/**
 * `saves`: the mask bit without which no field is written, if there is one. What is among `roots` has all of
 * its rows. `products`: what those with matrices are made of; rows that are rounded for them are read.
 */
export function madeAnew(
  bodies: Bodies,
  roots: readonly Value[],
  saves: number | null,
  products: Products,
): Bodies {
  const kept = new Set(roots.map(valueKey));
  const out = new Map(bodies);
  /** May a body make `v` where it multiplies it with a matrix? */
  const makes = (g: Group, b: Body, v: Value): boolean => {
    const { makes } = graphKernels[b.skeleton];
    return (
      Boolean(makes) &&
      b.domain === "T" &&
      !g.alone &&
      pairsOf(b.operands).every(
        ([x, { value }]) =>
          isOf(x, v) &&
          (x.undropped === null || makes === "undropped") &&
          !(value.type.kind === "weight" && rounds[products](value.type.format)),
      ) &&
      entriesOf(b, v) !== null
    );
  };
  for (const [g, b] of bodies) {
    if (b.skeleton !== "row" || b.domain !== "T" || b.bits.length) continue;
    const rest = new Set<number>();
    const products = new Map<Group, Made>();
    const allowed = b.stores.every((s) => {
      if (s.to !== "rows") {
        if (s.to !== "field" || saves === null) return false;
        rest.add(saves);
        return true;
      }
      if (kept.has(valueKey(s.value))) return false;
      const made = madeOf(s.expr, b.stats);
      const plain = s.cols === b.cols && exprsOf(made).every(isPlain);
      return [...bodies].every(([reader, r]) => {
        if (reader === g || !r.reads.some((v) => sameValue(v, s.value))) return true;
        if (plain && makes(reader, r, s.value)) {
          products.set(reader, made);
          for (const bit of entriesOf(r, s.value)!) rest.add(bit);
          return true;
        }
        const bits = saves !== null && onlySaves(r) ? [saves] : r.bits;
        for (const bit of bits) rest.add(bit);
        return bits.length > 0;
      });
    });
    if (!allowed || !products.size) continue;
    out.set(g, { ...b, rest: [...rest].sort((one, other) => one - other) });
    for (const [reader, made] of products) {
      const r = out.get(reader)!;
      const operands = r.operands.map((o, i) => (i % 2 ? o : { ...o, made }));
      const reads = new Map([...r.reads, ...readsOf(made)].map((v) => [valueKey(v), v]));
      out.set(reader, { ...r, operands, reads: [...reads.values()] });
    }
  }
  return out;
}
