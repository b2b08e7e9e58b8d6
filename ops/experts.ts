/**
 * Mixtures of experts. A row chooses k of E experts by number, in an order of its own, and what they give it
 * lies side by side: [rows, k · cols], the j-th part from the j-th that it chose. So no row's numbers depend
 * on which others chose the same; kernels go through the rows expert by expert. One file: all
 * read what a row chose in the same way.
 */
import { affine, div, mul } from "./elementwise.ts";
import { call, col, type Expr, type Ix, int, ixBin, konst, load, row } from "./expr.ts";
import { defineOp, type EvalCtx, make1, type Type, type Value } from "./graph.ts";
import { headScale } from "./heads.ts";
import { rowSum, softmax } from "./reduce.ts";

type Rows = Type & { kind: "rows" };
type Experts = Type & { kind: "experts" };
const rows = (cols: number): Type => ({ kind: "rows", domain: "T", cols });
const colsOf = (v: Value): number => (v.type as Rows).cols;

const topkOp = defineOp({
  name: "topk",
  constant: true,
  kind: "kernel",
  infer: ([x], { k }) => {
    const { cols } = x as Rows;
    if (Number(k) > cols) throw new Error(`topk: ${k} of ${cols}`);
    return [{ ...(x as Rows), cols: Number(k) }];
  },
  eval: (node, [x], ctx) => {
    const [cols, k] = [colsOf(node.ins[0]!), Number(node.attrs.k)];
    const n = ctx.rows((node.outs[0] as Rows).domain);
    const out = new Float64Array(n * k);
    for (let r = 0; r < n; r++) {
      const at = (e: number): number => x![r * cols + e]!;
      const order = Array.from({ length: cols }, (_, e) => e).sort((a, b) => at(b) - at(a) || a - b);
      out.set(order.slice(0, k), r * k);
    }
    return [out];
  },
  samples: [
    { ins: [rows(5)], attrs: { k: 2 } },
    { ins: [rows(70)], attrs: { k: 8 } },
  ],
});
/** The columns of each row's k largest, in descending order; of equal ones the first comes first. */
export const topk = (x: Value, k: number): Value => make1(topkOp, [x], { k }, "chosen");

/** The expert that a row chose as number j. */
const chosenAt = (chosen: Value, j: Ix): Ix => ({ ix: "element", value: chosen, row, at: j });
const pickOp = defineOp({
  name: "pick",
  kind: "point",
  remote: true,
  infer: (ins) => [ins[1]!],
  point: ({ ins: [x, chosen] }) => load(x!, row, chosenAt(chosen!, col)),
  grad: ({ ins: [x, chosen] }, [dy]) => [() => make1(putOp, [dy!, chosen!], { cols: colsOf(x!) }), null],
});
const putOp = defineOp({
  name: "put",
  constant: true,
  kind: "point",
  remote: true,
  infer: ([x], { cols }) => [{ ...(x as Rows), cols: Number(cols) }],
  point: ({ ins: [x, chosen] }) =>
    Array.from({ length: colsOf(x!) }, (_, j) => j).reduceRight<Expr>(
      (rest, j) => ({
        e: "if",
        ix: ixBin("lt", ixBin("xor", chosenAt(chosen!, int(j)), col), 1),
        yes: load(x!, row, int(j)),
        no: rest,
      }),
      konst(0),
    ),
});
/** y [rows, k]: y[t, j] = x[t, chosen[t, j]]. */
export const pick = (x: Value, chosen: Value): Value => make1(pickOp, [x, chosen]);

/**
 * Which k experts a row's logits choose, and what each weighs: its probability, of the chosen ones' alone
 * where `normed`.
 */
export function route(logits: Value, k: number, normed: boolean): { chosen: Value; weights: Value } {
  const probabilities = softmax(logits);
  const chosen = topk(probabilities, k);
  const weights = pick(probabilities, chosen);
  return { chosen, weights: normed ? div(weights, rowSum(weights)) : weights };
}

const foldOp = defineOp({
  name: "fold",
  kind: "point",
  remote: true,
  infer: ([x], { k }) => [{ ...(x as Rows), cols: (x as Rows).cols / Number(k) }],
  point: ({ ins: [x], attrs }) => {
    const k = Number(attrs.k);
    const part = (j: number): Expr => load(x!, row, ixBin("add", col, (j * colsOf(x!)) / k));
    return Array.from({ length: k - 1 }, (_, j) => part(j + 1)).reduce((s, p) => call("add", s, p), part(0));
  },
  grad: ({ attrs }, [dy]) => [() => repeat(dy!, Number(attrs.k))],
  samples: [{ ins: [rows(18)], attrs: { k: 3 } }],
});
/** The sum of a row's k parts, in their order: [rows, k · cols] → [rows, cols]. */
export const fold = (x: Value, k: number): Value => (k === 1 ? x : make1(foldOp, [x], { k }));
const repeatOp = defineOp({
  name: "repeat",
  kind: "point",
  remote: true,
  infer: ([x], { k }) => [{ ...(x as Rows), cols: (x as Rows).cols * Number(k) }],
  point: ({ ins: [x] }) => load(x!, row, ixBin("mod", col, colsOf(x!))),
  grad: ({ attrs }, [dy]) => [() => fold(dy!, Number(attrs.k))],
  samples: [{ ins: [rows(6)], attrs: { k: 3 } }],
});
/** A row k times, side by side. */
export const repeat = (x: Value, k: number): Value => (k === 1 ? x : make1(repeatOp, [x], { k }));
/** What the chosen experts gave a row, each as much as it weighs. */
export const weighed = (x: Value, weights: Value): Value => headScale(x, weights);

/** Every row's part j, with the matrix of the expert that it chose as number j: [row, j, matrix]. */
function* parts(chosen: Float64Array, k: number, n: number): Generator<[number, number, number]> {
  for (let t = 0; t < n; t++) for (let j = 0; j < k; j++) yield [t, j, chosen[t * k + j]!];
}
const rowsOf = (v: Value, ctx: EvalCtx): number => ctx.rows((v.type as Rows).domain);

const expertsOp = defineOp({
  name: "experts",
  kind: "kernel",
  infer: ([x, chosen, w]) => {
    const [xr, k, wt] = [x as Rows, (chosen as Rows).cols, w as Experts];
    if (xr.cols !== wt.k && xr.cols !== k * wt.k)
      throw new Error(`experts: x has ${xr.cols} columns, W expects ${wt.k} or ${k} times as many`);
    return [{ ...xr, cols: k * wt.n }];
  },
  grad: ({ ins: [x, chosen, w] }, [dy]) => {
    const k = colsOf(chosen!);
    const apart = (): Value => make1(expertsTOp, [dy!, chosen!, w!], {}, `d_${w!.node.label}`);
    return [
      () => (colsOf(x!) === (w!.type as Experts).k ? fold(apart(), k) : apart()),
      null,
      () => outerExperts(dy!, x!, w!, chosen!, (w!.type as Experts).count),
    ];
  },
  eval: (node, [x, chosen, w], ctx) => {
    const { n, k } = node.ins[2]!.type as Experts;
    const [top, wide] = [colsOf(node.ins[1]!), colsOf(node.ins[0]!)];
    const count = rowsOf(node.ins[0]!, ctx);
    const y = new Float64Array(count * top * n);
    for (const [t, j, e] of parts(chosen!, top, count))
      for (let o = 0; o < n; o++) {
        let acc = 0;
        const from = t * wide + (wide === k ? 0 : j * k);
        for (let i = 0; i < k; i++) acc += x![from + i]! * w![(e * n + o) * k + i]!;
        y[(t * top + j) * n + o] = acc;
      }
    return [y];
  },
});
/**
 * y [rows, k · n]: y[t, j] = W[chosen[t, j]] · x[t], or · x[t, j] where x [rows, k · ins] has a part for each
 * expert that a row chose.
 */
export const experts = (x: Value, chosen: Value, w: Value, label: string): Value =>
  make1(expertsOp, [x, chosen, w], {}, label);

const expertsTOp = defineOp({
  name: "experts_t",
  constant: true,
  kind: "kernel",
  infer: ([dy, chosen, w]) => [{ ...(dy as Rows), cols: (chosen as Rows).cols * (w as Experts).k }],
  eval: (node, [dy, chosen, w], ctx) => {
    const { n, k } = node.ins[2]!.type as Experts;
    const top = colsOf(node.ins[1]!);
    const count = rowsOf(node.ins[0]!, ctx);
    const dx = new Float64Array(count * top * k);
    for (const [t, j, e] of parts(chosen!, top, count))
      for (let o = 0; o < n; o++)
        for (let i = 0; i < k; i++) {
          const at = (t * top + j) * k + i;
          dx[at] = dx[at]! + dy![(t * top + j) * n + o]! * w![(e * n + o) * k + i]!;
        }
    return [dx];
  },
});

type Factor = Type & { kind: "factor" };
/** Columns of one expert's factor: those of all lie side by side. */
const insOf = (f: Value, count: number): number => (f.type as Factor).cols / count;
const shrinkOp = defineOp({
  name: "experts_shrink",
  kind: "kernel",
  infer: ([x, f, chosen]) => [{ ...(x as Rows), cols: (chosen as Rows).cols * (f as Factor).rows }],
  grad: ({ ins: [x, f, chosen], attrs }, [du]) => {
    const [count, k] = [Number(attrs.count), colsOf(chosen!)];
    const apart = (): Value => expandExperts(du!, f!, chosen!, count);
    return [
      () => (colsOf(x!) === insOf(f!, count) ? fold(apart(), k) : apart()),
      () => outerExperts(du!, x!, f!, chosen!, count),
      null,
    ];
  },
  eval: (node, [x, f, chosen], ctx) => {
    const { rows: most, cols, branch } = node.ins[1]!.type as Factor;
    const [top, wide] = [colsOf(node.ins[2]!), colsOf(node.ins[0]!)];
    const ins = insOf(node.ins[1]!, Number(node.attrs.count));
    const n = rowsOf(node.ins[0]!, ctx);
    const u = new Float64Array(n * top * most);
    for (const [t, j, e] of parts(chosen!, top, n)) {
      const s = ctx.meta("slot", t);
      for (let r = 0; r < ctx.slot(s, branch).rank; r++)
        for (let c = 0; c < ins; c++) {
          const at = (t * top + j) * most + r;
          const from = t * wide + (wide === ins ? 0 : j * ins);
          u[at] = u[at]! + x![from + c]! * f![(s * most + r) * cols + e * ins + c]!;
        }
    }
    return [u];
  },
});
/**
 * u [rows, k · factor rows]: u[t, j] = F[slot[t]] of the expert chosen[t, j] · x[t], or · x[t, j] where x has
 * a part for each; 0 beyond the slot's rank. Of `count` experts.
 */
export const shrinkExperts = (x: Value, factor: Value, chosen: Value, count: number): Value =>
  make1(shrinkOp, [x, factor, chosen], { count }, `shrink_${factor.node.label}`);

const expandOp = defineOp({
  name: "experts_expand",
  kind: "point",
  remote: true,
  infer: ([u, f, chosen], { count }) => [
    { ...(u as Rows), cols: ((chosen as Rows).cols * (f as Factor).cols) / Number(count) },
  ],
  point: ({ ins: [u, f, chosen], attrs }) => {
    const outs = insOf(f!, Number(attrs.count));
    const part = ixBin("div", col, outs);
    const of = ixBin("add", ixBin("mul", chosenAt(chosen!, part), outs), ixBin("mod", col, outs));
    const from = ixBin("mul", part, (f!.type as Factor).rows);
    return { e: "expand", u: u!, from, factor: f!, row, col: of };
  },
  grad: ({ ins: [u, f, chosen], attrs }, [dy]) => [
    () => shrinkExperts(dy!, f!, chosen!, Number(attrs.count)),
    () => outerExperts(u!, dy!, f!, chosen!, Number(attrs.count)),
    null,
  ],
});
/** y [rows, k · columns]: y[t, j] = Σ_r u[t, j, r] · F[slot[t]][r] of the expert chosen[t, j]. */
export const expandExperts = (u: Value, factor: Value, chosen: Value, count: number): Value =>
  make1(expandOp, [u, factor, chosen], { count }, `expand_${factor.node.label}`);

/** Element `at` of a selection that the row's slot has for the expert that the row chose as number `part`. */
const chosenOf = (index: Value, chosen: Value, part: Ix, count: number, at: Ix): Ix => {
  const own = ixBin("mul", chosenAt(chosen, part), insOf(index, count));
  return { ix: "slot", tensor: index, row, at: ixBin("add", own, at) };
};
const selectOp = defineOp({
  name: "experts_select",
  kind: "point",
  remote: true,
  conditional: true,
  infer: ([x, , chosen], { rank }) => [{ ...(x as Rows), cols: (chosen as Rows).cols * Number(rank) }],
  point: ({ ins: [x, index, chosen], attrs }) => {
    const [rank, branch, count] = [Number(attrs.rank), Number(attrs.branch), Number(attrs.count)];
    const [part, r] = [ixBin("div", col, rank), ixBin("mod", col, rank)];
    const channel = chosenOf(index!, chosen!, part, count, r);
    const at = ixBin("add", ixBin("mul", part, insOf(index!, count) - rank), channel);
    // A slot without the branch has a rank of 0.
    const within = ixBin("lt", r, { ix: "rank", branch, row });
    return { e: "if", ix: within, yes: load(x!, row, at), no: konst(0) };
  },
  grad: ({ ins: [, index, chosen], attrs }, [du]) => [
    () => make1(placeOp, [du!, index!, chosen!], attrs),
    null,
    null,
  ],
});
const placeOp = defineOp({
  name: "experts_place",
  kind: "point",
  remote: true,
  infer: ([u, index, chosen], { count, rank }) => [
    { ...(u as Rows), cols: (chosen as Rows).cols * ((index as Factor).cols / Number(count) - Number(rank)) },
  ],
  point: ({ ins: [u, index, chosen], attrs }) => {
    const [rank, branch, count] = [Number(attrs.rank), Number(attrs.branch), Number(attrs.count)];
    const channels = insOf(index!, count) - rank;
    const part = ixBin("div", col, channels);
    const place = ixBin("add", ixBin("mod", col, channels), rank);
    const at = chosenOf(index!, chosen!, part, count, place);
    const from = ixBin("add", ixBin("mul", part, rank), ixBin("sub", at, int(1)));
    const placed: Expr = { e: "if", ix: at, yes: load(u!, row, from), no: konst(0) };
    return { e: "if", ix: { ix: "rank", branch, row }, yes: placed, no: konst(0) };
  },
  grad: ({ ins: [, index, chosen], attrs }, [dy]) => [
    () => make1(selectOp, [dy!, index!, chosen!], attrs),
    null,
    null,
  ],
});
/** Of `channels` an expert; a selection has those that are chosen, then a place for each. */
const selectionOf = (index: Value, count: number, channels: number) => ({
  branch: (index.type as Factor).branch,
  rank: insOf(index, count) - channels,
  count,
});
/**
 * u [rows, k · rank] of x [rows, k · channels]: u[t, j, r] = x[t, j, index of the expert chosen[t, j]][r]; 0
 * beyond the slot's rank. `index` has the selections of all `count` experts, side by side.
 */
export const selectExperts = (x: Value, index: Value, chosen: Value, count: number): Value => {
  const attrs = selectionOf(index, count, colsOf(x) / colsOf(chosen));
  return make1(selectOp, [x, index, chosen], attrs, `select_${index.node.label}`);
};
/**
 * y [rows, k · channels] of u [rows, k · rank], 0 where nothing is placed: the transpose of `selectExperts`.
 */
export const placeExperts = (u: Value, index: Value, chosen: Value, count: number, channels: number): Value =>
  make1(placeOp, [u, index, chosen], selectionOf(index, count, channels), `place_${index.node.label}`);

const leadingOp = defineOp({
  name: "experts_leading",
  kind: "point",
  remote: true,
  conditional: true,
  infer: ([x], { parts, rank }) => [{ ...(x as Rows), cols: Number(parts) * Number(rank) }],
  point: ({ ins: [x], attrs }) => {
    const [rank, parts, branch] = [Number(attrs.rank), Number(attrs.parts), Number(attrs.branch)];
    const from = ixBin("mul", ixBin("div", col, rank), colsOf(x!) / parts);
    const yes = load(x!, row, ixBin("add", from, ixBin("mod", col, rank)));
    return { e: "if", ix: { ix: "rank", branch, row }, yes, no: konst(0) };
  },
  grad: ({ ins: [x], attrs }, [du]) => [
    () => make1(widenOp, [du!], { ...attrs, channels: colsOf(x!) / Number(attrs.parts) }),
  ],
});
const widenOp = defineOp({
  name: "experts_widen",
  kind: "point",
  remote: true,
  infer: ([u], { parts, channels }) => [{ ...(u as Rows), cols: Number(parts) * Number(channels) }],
  point: ({ ins: [u], attrs }) => {
    const [rank, channels, branch] = [Number(attrs.rank), Number(attrs.channels), Number(attrs.branch)];
    const channel = ixBin("mod", col, channels);
    const at = ixBin("add", ixBin("mul", ixBin("div", col, channels), rank), channel);
    const inside: Expr = {
      ...{ e: "if", ix: ixBin("lt", channel, rank), yes: load(u!, row, at), no: konst(0) },
    };
    return { e: "if", ix: { ix: "rank", branch, row }, yes: inside, no: konst(0) };
  },
  grad: ({ attrs }, [dy]) => [() => make1(leadingOp, [dy!], attrs)],
});
/**
 * u [rows, k · rank] of x [rows, k · channels]: the first columns of each of the k parts that a row has, as
 * many as the factor has rows; 0 for rows whose slot lacks its branch.
 */
export const leadingExperts = (x: Value, factor: Value, chosen: Value): Value => {
  const { rows: rank, branch } = factor.type as Factor;
  return make1(leadingOp, [x], { rank, branch, parts: colsOf(chosen) }, `leading_${factor.node.label}`);
};
/** y [rows, k · channels] of u [rows, k · rank], zeros behind: the transpose of `leadingExperts`. */
export const widenExperts = (u: Value, factor: Value, chosen: Value, channels: number): Value => {
  const { rows: rank, branch } = factor.type as Factor;
  const attrs = { rank, branch, parts: colsOf(chosen), channels };
  return make1(widenOp, [u], attrs, `widen_${u.node.label}`);
};

const sideBySide = ({ rows, cols }: Pick<Factor, "rows" | "cols">, count: number) => ({
  ...{ rows, ins: cols / count, row: cols, of: cols / count },
});
const outerOp = defineOp({
  name: "experts_outer",
  constant: true,
  kind: "kernel",
  infer: (_, a) => [{ kind: "grad", of: String(a.of) }],
  eval: (node, [u, x, chosen], ctx) => {
    const { type } = node.ins[3]!;
    const count = Number(node.attrs.count);
    // Columns of all experts lie side by side in a factor, or a vector; matrices one after another.
    const { rows, ins, row, of } =
      type.kind === "experts"
        ? { rows: type.n, ins: type.k, row: type.k, of: type.n * type.k }
        : sideBySide(type.kind === "vector" ? { rows: 1, cols: type.n } : (type as Factor), count);
    const [top, wide] = [colsOf(node.ins[2]!), colsOf(node.ins[1]!)];
    const out = new Float64Array(count * rows * ins);
    for (const [t, j, e] of parts(chosen!, top, rowsOf(node.ins[0]!, ctx)))
      for (let r = 0; r < rows; r++)
        for (let c = 0; c < ins; c++) {
          const at = r * row + e * of + c;
          const from = t * wide + (wide === ins ? 0 : j * ins);
          out[at] = out[at]! + u![(t * top + j) * rows + r]! * x![from + c]!;
        }
    return [out];
  },
});
/**
 * Gradient of experts' factors, or matrices: each row's u[t, j] ⊗ x[t], or ⊗ x[t, j], goes to the expert
 * chosen[t, j].
 */
const outerExperts = (u: Value, x: Value, to: Value, chosen: Value, count: number): Value =>
  make1(outerOp, [u, x, chosen, to], { of: String(to.node.attrs.name), count }, `d_${to.node.label}`);
/**
 * Sums of squares of experts' channels over rows, into `sums` [count · channels]: of x[t, j]², times what a
 * row's choice weighs there (`weights` [rows, k]; without them 1).
 */
export const squaresOfExperts = (
  x: Value,
  chosen: Value,
  sums: Value,
  count: number,
  weights: Value = affine(chosen, { scale: 0, shift: 1 }),
): Value => outerExperts(weights, mul(x, x), sums, chosen, count);
