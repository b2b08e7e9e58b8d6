/** Crossing row domains and named storage: every crossing is explicit. */
import { int, ixBin, konst, load, meta, row } from "./expr.ts";
import { type Domain, defineOp, make1, type Type, type Value } from "./graph.ts";

type Rows = Type & { kind: "rows" };

const gatherOp = defineOp({
  name: "gather_rows",
  kind: "point",
  picks: true,
  remote: true,
  infer: ([x], a) => [
    { kind: "rows", domain: a.domain as Domain, cols: (x as Rows | (Type & { kind: "field" })).cols },
  ],
  // A one-column field broadcasts where it is inlined, so its column is 0, whatever the consumer's is.
  point: ({ ins, attrs }) =>
    load(ins[0]!, meta(String(attrs.index), row), (ins[0]!.type as Rows).cols === 1 ? int(0) : { ix: "col" }),
});
/** Rows of `x` (a row tensor or a stored field) picked by the metadata array `index`, into another domain. */
export const gatherRows = (x: Value, index: string, domain: Domain): Value =>
  make1(gatherOp, [x], { index, domain }, `gather_${x.node.label}`);

const sliceOp = defineOp({
  name: "gather_slice",
  kind: "point",
  remote: true,
  infer: (_, a) => [{ kind: "rows", domain: a.domain as Domain, cols: Number(a.cols) }],
  point: ({ ins, attrs }) =>
    load(ins[0]!, meta(String(attrs.index), row), ixBin("add", { ix: "col" }, Number(attrs.offset))),
});
/** Columns [offset, offset + cols) of stored rows: `state_read` of a gradient accumulated by key position. */
export const gatherSlice = (x: Value, index: string, domain: Domain, offset: number, cols: number): Value =>
  make1(sliceOp, [x], { index, domain, offset, cols }, `read_${x.node.label}`);

const columnsOp = defineOp({
  name: "columns",
  kind: "point",
  remote: true,
  infer: ([x], { cols }) => [{ ...(x as Rows), cols: Number(cols) }],
  point: ({ ins: [x], attrs }) => load(x!, row, ixBin("add", { ix: "col" }, Number(attrs.from))),
  halves: {
    of: ({ ins: [x], attrs: { from, cols } }) =>
      (x!.type as Rows).cols === 2 * Number(cols) && Number(from) % Number(cols) === 0 ? Number(cols) : null,
    point: ({ attrs: { from } }, [lower, upper]) => (from ? [upper, upper] : [lower, lower]),
  },
  grad: ({ ins: [x], attrs }, [dy]) => [() => amongColumns(dy!, Number(attrs.from), (x!.type as Rows).cols)],
  samples: [{ ins: [{ kind: "rows", domain: "T", cols: 11 }], attrs: { from: 3, cols: 6 } }],
});
/** Columns [from, from + cols) of x: a part of what one product gives for several. */
export const columns = (x: Value, from: number, cols: number): Value =>
  make1(columnsOp, [x], { from, cols }, `columns_${x.node.label}`);

const amongOp = defineOp({
  name: "among_columns",
  kind: "point",
  remote: true,
  infer: ([x], { cols }) => [{ ...(x as Rows), cols: Number(cols) }],
  point: ({ ins: [x], attrs }) => {
    const { cols } = x!.type as Rows;
    const from = Number(attrs.from);
    const at = ixBin("sub", { ix: "col" }, from);
    const inside = ixBin("mul", ixBin("lt", int(from - 1), { ix: "col" }), ixBin("lt", at, cols));
    // Both sides are evaluated: what is outside loads the first column.
    return { e: "if", ix: inside, yes: load(x!, row, ixBin("mul", inside, at)), no: konst(0) };
  },
  grad: ({ ins: [x], attrs }, [dy]) => [() => columns(dy!, Number(attrs.from), (x!.type as Rows).cols)],
  samples: [{ ins: [{ kind: "rows", domain: "T", cols: 6 }], attrs: { from: 3, cols: 11 } }],
});
/** x as the columns from `from` on of `cols`, among zeros. */
export const amongColumns = (x: Value, from: number, cols: number): Value =>
  make1(amongOp, [x], { from, cols }, `among_${x.node.label}`);

const storeOp = defineOp({
  name: "store_rows",
  kind: "effect",
  infer: ([f]) => [f!],
  writes: ({ ins, attrs }) => [{ to: "field", x: ins[1]!, index: String(attrs.index) }],
  eval: (node, [field, x], ctx) => {
    const t = node.ins[1]!.type as Rows;
    const out = Float64Array.from(field!);
    for (let r = 0; r < ctx.rows(t.domain); r++) {
      const dst = ctx.meta(String(node.attrs.index), r);
      if (dst >= 0) out.set(x!.subarray(r * t.cols, (r + 1) * t.cols), dst * t.cols);
    }
    return [out];
  },
});
/** field[index[row]] = x[row] for rows whose index is not negative; returns the field's next state. */
export const storeRows = (field: Value, x: Value, index: string): Value =>
  make1(storeOp, [field, x], { index }, `store_${field.node.label}`);

const embedOp = defineOp({
  name: "embed",
  kind: "point",
  remote: true,
  infer: ([w], a) => [{ kind: "rows", domain: a.domain as Domain, cols: (w as Type & { kind: "weight" }).k }],
  point: ({ ins, attrs }) => load(ins[0]!, meta(String(attrs.by), row), { ix: "col" }),
  grad: (node, [dh]) => [() => scatterRows(dh!, node.ins[0]!, String(node.attrs.by))],
});
/**
 * h[t] = W[ids[t]]: the embedding table may be the tied head, in its packed layout. By `pos`, the table has a
 * row for each position.
 */
export const embed = (w: Value, domain: Domain, by: "ids" | "pos" = "ids"): Value =>
  make1(embedOp, [w], { domain, by }, "embed");

const scatterOp = defineOp({
  name: "scatter_rows",
  kind: "kernel",
  infer: (_, a) => [{ kind: "grad", of: String(a.of) }],
  eval: (node, [dh], ctx) => {
    const { n, k } = node.ins[1]!.type as Type & { kind: "weight" };
    const out = new Float64Array(n * k);
    for (let t = 0; t < ctx.rows((node.ins[0]!.type as Rows).domain); t++) {
      const id = ctx.meta(String(node.attrs.by), t);
      for (let i = 0; i < k; i++) out[id * k + i] = out[id * k + i]! + dh![t * k + i]!;
    }
    return [out];
  },
});
/**
 * Gradient of the embedding table: rows with the same id fold in row order. Always adds to what the
 * accumulator holds.
 */
export const scatterRows = (dh: Value, w: Value, by: string): Value =>
  make1(scatterOp, [dh, w], { of: String(w.node.attrs.name), by }, "d_embed");
