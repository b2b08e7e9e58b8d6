/**
 * Slot-indexed parts of adapter branches: every row finds its own adapter (S-LoRA, Punica SGMV). Dense
 * factors (`shrink`, `expand`), selections of channels (`select`, `place`; of the first ones, `leading`,
 * `widen`), vectors (`slotVector`), tokens of an adapter's own (`overlay`). A slot that lacks the branch
 * contributes exactly nothing.
 */

import { mul } from "./elementwise.ts";
import { call, col, type Expr, type Ix, int, ixBin, konst, load, meta, row } from "./expr.ts";
import { type Attrs, type Domain, defineOp, type Graph, make1, type Type, type Value } from "./graph.ts";
import { colSum, outer } from "./linear.ts";

type Rows = Type & { kind: "rows" };
type Factor = Type & { kind: "factor" };

const shrinkOp = defineOp({
  name: "shrink",
  kind: "kernel",
  infer: ([x, f]) => {
    if ((x as Rows).cols !== (f as Factor).cols)
      throw new Error(`shrink: ${(x as Rows).cols} columns, factor has ${(f as Factor).cols}`);
    return [{ kind: "rows", domain: (x as Rows).domain, cols: (f as Factor).rows }];
  },
  grad: (node, [du]) => [() => expand(du!, node.ins[1]!), () => outer(du!, node.ins[0]!, node.ins[1]!)],
  eval: (node, [x, f], ctx) => {
    const { cols, branch, rows: maxRank } = node.ins[1]!.type as Factor;
    const { domain } = node.outs[0] as Rows;
    const rows = ctx.rows(domain);
    const u = new Float64Array(rows * maxRank);
    for (let t = 0; t < rows; t++) {
      const s = ctx.meta("slot", t);
      for (let r = 0; r < ctx.slot(s, branch).rank; r++) {
        let acc = 0;
        for (let c = 0; c < cols; c++) acc += x![t * cols + c]! * f![(s * maxRank + r) * cols + c]!;
        u[t * maxRank + r] = acc;
      }
    }
    return [u];
  },
  samples: [
    {
      ins: [
        { kind: "rows", domain: "T", cols: 37 },
        { kind: "factor", rows: 8, cols: 37, branch: 0 },
      ],
    },
  ],
});
/** u [rows, factor rows]: u[t, r] = x[t] · F[slot[t]][r]; 0 beyond the slot's rank. */
export const shrink = (x: Value, factor: Value): Value =>
  make1(shrinkOp, [x, factor], {}, `shrink_${factor.node.label}`);

const expandOp = defineOp({
  name: "expand",
  kind: "point",
  remote: true,
  infer: ([u, f]) => [{ kind: "rows", domain: (u as Rows).domain, cols: (f as Factor).cols }],
  point: ({ ins }) => ({ e: "expand", u: ins[0]!, factor: ins[1]!, row, col: { ix: "col" } }),
  grad: (node, [dy]) => [() => shrink(dy!, node.ins[1]!), () => outer(node.ins[0]!, dy!, node.ins[1]!)],
  samples: [
    {
      ins: [
        { kind: "rows", domain: "T", cols: 8 },
        { kind: "factor", rows: 8, cols: 37, branch: 0 },
      ],
    },
  ],
});
/** y[t] = Σ_r u[t, r] · F[slot[t]][r]. */
export const expand = (u: Value, factor: Value): Value =>
  make1(expandOp, [u, factor], {}, `expand_${factor.node.label}`);

const scaleOp = defineOp({
  name: "slot_scale",
  kind: "point",
  infer: (_, a) => [{ kind: "rows", domain: a.domain as Domain, cols: Number(a.cols) }],
  point: ({ attrs }) => {
    const at = attrs.rows === undefined ? col : ixBin("mod", col, Number(attrs.rows));
    return { e: "scale", branch: Number(attrs.branch), row, col: at };
  },
});
/**
 * u, what a branch's rows make of x, scaled by the row's adapter: alpha/r, or alpha/√r for rsLoRA; in a sum
 * of adapters each adapter's rows by its own, times its weight. `rows`: of parts of a row, so many columns
 * each.
 */
export const scaleBySlot = (u: Value, branch: number, rows?: number): Value => {
  const { domain, cols } = u.type as Rows;
  const attrs = { branch, domain, cols, ...(rows !== undefined && { rows }) };
  return mul(u, u.node.graph.make1(scaleOp, [], attrs));
};

/** `yes` for rows whose slot has the branch, else `no`. */
const where = (branch: number, yes: Expr, no: Expr): Expr => ({
  e: "if",
  ix: { ix: "rank", branch, row },
  yes,
  no,
});
/**
 * Columns of a selection tensor: the chosen channels in order, then for each channel its place in that order
 * plus one, 0 where it is not chosen.
 */
export const selectionCols = (rank: number, channels: number): number => rank + channels;

const selectOp = defineOp({
  name: "select",
  kind: "point",
  remote: true,
  conditional: true,
  infer: ([x], a) => [{ kind: "rows", domain: (x as Rows).domain, cols: Number(a.rank) }],
  point: ({ ins: [x, index], attrs }) => {
    const branch = Number(attrs.branch);
    const chosen = load(x!, row, { ix: "slot", tensor: index!, row, at: col });
    return where(
      branch,
      {
        e: "if",
        ix: ixBin("lt", col, { ix: "rank", branch, row }),
        yes: chosen,
        no: konst(0),
      },
      konst(0),
    );
  },
  grad: (node, [du]) => [() => place(du!, node.ins[1]!, (node.ins[0]!.type as Rows).cols), null],
});
/** u[t, r] = x[t, index[slot[t]][r]]: the chosen channels of x; 0 beyond the slot's rank. */
export const select = (x: Value, index: Value): Value => {
  const f = index.type as Factor;
  const rank = f.cols - (x.type as Rows).cols;
  return make1(selectOp, [x, index], { branch: f.branch, rank }, `select_${index.node.label}`);
};

const placeOp = defineOp({
  name: "place",
  kind: "point",
  remote: true,
  infer: ([u], a) => [{ kind: "rows", domain: (u as Rows).domain, cols: Number(a.cols) }],
  point: ({ ins: [u, index], attrs }) => {
    const at: Ix = { ix: "slot", tensor: index!, row, at: ixBin("add", col, Number(attrs.rank)) };
    return where(
      Number(attrs.branch),
      { e: "if", ix: at, yes: load(u!, row, ixBin("sub", at, int(1))), no: konst(0) },
      konst(0),
    );
  },
  grad: (node, [dy]) => [() => select(dy!, node.ins[1]!), null],
});
/** y [rows, cols]: y[t, index[slot[t]][r]] = u[t, r], 0 elsewhere: the transpose of `select`. */
export const place = (u: Value, index: Value, cols: number): Value => {
  const f = index.type as Factor;
  return make1(
    placeOp,
    [u, index],
    { branch: f.branch, rank: f.cols - cols, cols },
    `place_${index.node.label}`,
  );
};

const rebiasOp = defineOp({
  name: "rebias",
  kind: "point",
  infer: ([y]) => [y!],
  point: ({ ins: [, v], at }) =>
    where((v!.type as Factor).branch, call("add", at(0), call("sub", load(v!, row, col), at(2))), at(0)),
  grad: (node, [dy]) => [() => dy!, () => colSum(dy!, node.ins[1]!), null],
});
/**
 * y, which holds the bias b, with the slot's own bias v in its place; y itself for rows whose slot has none.
 */
export const rebias = (y: Value, v: Value, b: Value): Value =>
  make1(rebiasOp, [y, v, b], {}, `rebias_${v.node.label}`);

const leadingOp = defineOp({
  name: "leading",
  kind: "point",
  remote: true,
  conditional: true,
  infer: ([x], a) => [{ kind: "rows", domain: (x as Rows).domain, cols: Number(a.cols) }],
  point: ({ ins: [x], attrs }) => {
    const at = startsOf(attrs);
    const of = (from: number): Expr => {
      const place = at.length > 1 ? ixBin("div", col, at.length) : col;
      return load(x!, row, from ? ixBin("add", place, from) : place);
    };
    const slice = ixBin("mod", col, at.length);
    const chosen = at
      .slice(0, -1)
      .reduceRight<Expr>(
        (no, from, i) => ({ e: "if", ix: ixBin("lt", slice, i + 1), yes: of(from), no }),
        of(at.at(-1)!),
      );
    return where(Number(attrs.branch), chosen, konst(0));
  },
  grad: (node, [du]) => [
    () => make1(widenOp, [du!], { ...node.attrs, cols: (node.ins[0]!.type as Rows).cols }),
  ],
});
/** Where slices begin that channels are of, in order. */
const startsOf = ({ at }: Attrs): number[] => String(at).split(",").map(Number);
/** The first columns of x, as many as the factor has rows; 0 for rows whose slot lacks its branch. */
export const leading = (x: Value, factor: Value): Value => {
  const f = factor.type as Factor;
  return make1(leadingOp, [x], { branch: f.branch, cols: f.rows, at: "0" }, `leading_${factor.node.label}`);
};
const widenOp = defineOp({
  name: "widen",
  kind: "point",
  remote: true,
  infer: ([u], a) => [{ kind: "rows", domain: (u as Rows).domain, cols: Number(a.cols) }],
  point: ({ ins: [u], attrs }) => {
    const at = startsOf(attrs);
    const placed = at.reduce<Expr>((before, from, i) => {
      const place = from ? ixBin("sub", col, from) : col;
      const of = at.length > 1 ? ixBin("add", ixBin("mul", place, at.length), i) : place;
      const inside = {
        e: "if",
        ix: ixBin("lt", of, (u!.type as Rows).cols),
        yes: load(u!, row, of),
        no: konst(0),
      } as const;
      return from ? { e: "if", ix: ixBin("lt", col, from), yes: before, no: inside } : inside;
    }, konst(0));
    return where(Number(attrs.branch), placed, konst(0));
  },
  grad: (node, [dy]) => [
    () => make1(leadingOp, [dy!], { ...node.attrs, cols: (node.ins[0]!.type as Rows).cols }),
  ],
});
/**
 * y [rows, cols], zeros but where slices begin (`at`): the first channel of each slice from the first columns
 * of u, then the second, and so on. The transpose of `leading`, where there is one slice at 0.
 */
export const widen = (u: Value, branch: number, cols: number, at: readonly number[] = [0]): Value =>
  make1(widenOp, [u], { branch, cols, at: at.join() }, `widen_${u.node.label}`);

const slotVectorOp = defineOp({
  name: "slot_vector",
  kind: "point",
  infer: ([v], a) => [
    { kind: "rows", domain: a.domain as Domain, cols: (v as Factor).rows * (v as Factor).cols },
  ],
  point: ({ ins: [v], attrs }) =>
    where((v!.type as Factor).branch, load(v!, row, col), konst(Number(attrs.absent))),
  grad: (node, [dy]) => [() => colSum(dy!, node.ins[0]!)],
});
/**
 * The row's own vector of a branch, one row or one column of a factor; `absent` for rows whose slot lacks it
 * (1 for gains, 0 for offsets).
 */
export const slotVector = (v: Value, domain: Domain, absent: number): Value =>
  make1(slotVectorOp, [v], { domain, absent }, v.node.label);

/**
 * `yes` for the rows that stand for an adapter's own tokens: the first positions of the sequence, as many as
 * the slot's rank; else `no`.
 */
const whereVirtual = (branch: number, yes: Expr, no: Expr): Expr => ({
  e: "if",
  ix: ixBin("lt", meta("pos", row), { ix: "rank", branch, row }),
  yes,
  no,
});
const overlayOp = defineOp({
  name: "overlay",
  kind: "point",
  infer: ([x]) => [x!],
  point: ({ ins: [, f], at }) => {
    const { branch } = f!.type as Factor;
    return whereVirtual(branch, { e: "ranked", factor: f!, at: meta("pos", row), row, col }, at(0));
  },
  grad: (node, [dy]) => {
    const f = node.ins[1]!;
    return [
      () => make1(behindOp, [dy!], { branch: (f.type as Factor).branch }),
      () => outer(oneHot(dy!.node.graph, (dy!.type as Rows).domain, f.type as Factor), dy!, f),
    ];
  },
});
/**
 * x with the rows of virtual tokens replaced: y[t] = F[slot[t]][pos[t]] where pos[t] is below the slot's
 * rank, else x[t].
 */
export const overlay = (x: Value, factor: Value): Value =>
  make1(overlayOp, [x, factor], {}, `overlay_${factor.node.label}`);

/** 0 in the rows of virtual tokens: what the rest of the model hears of x. */
const behindOp = defineOp({
  name: "behind",
  kind: "point",
  infer: ([x]) => [x!],
  point: ({ at, attrs }) => whereVirtual(Number(attrs.branch), konst(0), at(0)),
  grad: (node, [dy]) => [() => make1(behindOp, [dy!], node.attrs)],
});
const oneHotOp = defineOp({
  name: "one_hot",
  kind: "point",
  conditional: true,
  infer: (_, a) => [{ kind: "rows", domain: a.domain as Domain, cols: Number(a.cols) }],
  point: ({ attrs }) => {
    const less = ixBin("lt", meta("pos", row), col);
    const notMore = ixBin("lt", meta("pos", row), ixBin("add", col, 1));
    return whereVirtual(
      Number(attrs.branch),
      { e: "if", ix: ixBin("sub", notMore, less), yes: konst(1), no: konst(0) },
      konst(0),
    );
  },
});
/** [rows, factor rows]: 1 where the column is the position of a virtual token's row. */
const oneHot = (graph: Graph, domain: Domain, f: Factor): Value =>
  graph.make1(oneHotOp, [], { domain, cols: f.rows, branch: f.branch }, "one_hot");

const dropoutOp = defineOp({
  name: "dropout",
  kind: "point",
  drops: true,
  infer: ([x]) => [x!],
  point: ({ at, attrs }) => maskExpr(at(0), Number(attrs.site)),
  grad: (node, [dy]) => [() => make1(dropoutOp, [dy!], node.attrs)],
});
/** x / keep where the counter-based draw keeps it, else 0; rows whose key is 0 (inference) pass unchanged. */
const maskExpr = (x: Expr, site: number): Expr => {
  const key = meta("drop_key", row);
  const drop: Expr = { e: "metaf", name: "drop_p", at: row };
  const u: Expr = { e: "rand", key, site, col: { ix: "col" } };
  // keep = step(u >= p): 1 when u - p is non-negative. min(max((u - p)·2^25 + 1, 0), 1) is exact because u
  // and p sit on a 2^-24 grid.
  const keep = call(
    "min",
    call("max", call("fma", call("sub", u, drop), konst(33554432), konst(1)), konst(0)),
    konst(1),
  );
  return {
    e: "if",
    ix: key,
    yes: call(
      "pin",
      call("mul", call("pin", call("mul", x, keep)), call("div", konst(1), call("sub", konst(1), drop))),
    ),
    no: x,
  };
};
export const dropout = (x: Value, site: number): Value => make1(dropoutOp, [x], { site });
