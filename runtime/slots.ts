/** Adapters in the order in which a device keeps channels. */
import type { Manifest } from "./bundle.ts";
import { type BranchState, indexOf, placedBy, placedOf } from "./content.ts";
import { putBack, singleBranch, singleSites } from "./experts.ts";
import { inverse, ordersOf } from "./order.ts";
import { type Order, type Placed, rowsOf } from "./tensors/tensor.ts";

/** One layer of an adapter: from the model's order into the device's, or back. */
export function reorderSlot(
  m: Manifest,
  layer: number,
  branches: readonly BranchState[],
  data: Float32Array,
  back = false,
): Float32Array {
  const out = data.slice();
  const all = placedOf(m, branches, out, layer);
  placedOf(m, branches, data, layer).forEach((placed, i) => {
    if (!placed.length) return;
    for (const [one, site] of singleSites(placed[0]!.site).entries()) {
      const orders = ordersOf(m, layer, site);
      if (!orders.in && !orders.out) continue;
      const to = singleBranch(all[i]!, one, site);
      reorderBranch(singleBranch(placed, one, site), to, orders, back);
      putBack(all[i]!, one, to);
    }
  });
  return out;
}
function reorderBranch(
  placed: readonly Placed[],
  moved: readonly Placed[],
  orders: { readonly in: Order; readonly out: Order },
  back: boolean,
): void {
  // A channel's number moves to its position, or back.
  const turn = (order: Order): Order => order && (back ? order : inverse(order));
  const index = indexOf(placed);
  let rows: Order = null;
  if (index) {
    const { p, kind } = index;
    const chosen = kind.turned(p, kind.get(p), { in: turn(orders.in), out: turn(orders.out) });
    if (kind.ascending) rows = [...chosen.keys()].sort((x, y) => chosen[x]! - chosen[y]!);
    kind.set(placedBy(moved, p.t.name), rows ? rows.map((r) => chosen[r]!) : chosen);
  }
  placed.forEach((p, k) => {
    const order = p.t.axis ? orders[p.t.axis] : null;
    if (p !== index?.p)
      move(p, moved[k]!, p.t.rows === "rank" ? rows : null, order && back ? inverse(order) : order);
  });
}
/** Row r, column c of a tensor: what `from` has at rows[r], columns[c]. */
function move({ t, values, rank }: Placed, to: Placed, rows: Order, columns: Order): void {
  if (!rows && !columns) return;
  for (let r = 0; r < rowsOf({ t, rank }); r++)
    for (let c = 0; c < t.cols; c++) {
      const from = (rows ? rows[r]! : r) * t.cols + (columns ? columns[c]! : c);
      to.values[r * t.cols + c] = values[from]!;
    }
}
