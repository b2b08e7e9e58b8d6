/** Weights of the base that are others on a device than in a bundle: in its order of channels, or changed. */
import type { Manifest } from "./bundle.ts";
import type { Change } from "./changes.ts";
import { type SingleSite, singleSites } from "./experts.ts";
import { inverse, ordersOf } from "./order.ts";

export { changed } from "./values.ts";

/**
 * A site's matrix [out, in], or its bias [out], from the model's order into the device's, or back; in place.
 */
export function reorder(
  m: Manifest,
  layer: number,
  site: SingleSite | undefined,
  values: Float32Array,
  back = false,
): void {
  if (!site) return;
  const { in: columns, out: rows } = ordersOf(m, layer, site);
  if (!rows && !columns) return;
  const from = values.slice();
  const width = values.length / site.outFeatures;
  const [r, c] = [
    rows && back ? inverse(rows) : rows,
    columns && width > 1 ? (back ? inverse(columns) : columns) : null,
  ];
  for (let o = 0; o < site.outFeatures; o++)
    for (let i = 0; i < width; i++) values[o * width + i] = from[(r ? r[o]! : o) * width + (c ? c[i]! : i)]!;
}
/** The site of a layer's parameter, by the parameter's name. */
function siteOfParam(m: Manifest, name: string): SingleSite | undefined {
  for (const site of m.sites) {
    const [before, after] = site.module.split("{e}");
    if (!name.startsWith(before!) || !name.includes(after ?? "")) continue;
    const own = singleSites(site).find((s) => name === `${s.module}.weight` || name === `${s.module}.bias`);
    if (own) return own;
  }
  return undefined;
}
/** A parameter of a layer, from the model's order into the device's, or back; in place. */
export function reorderParam(
  m: Manifest,
  layer: number,
  name: string,
  values: Float32Array,
  back = false,
): void {
  if (layer < m.model.layers) reorder(m, layer, siteOfParam(m, name), values, back);
}
/** What becomes of a parameter on its way into a device; null: it is as the bundle has it. */
export const moveOf = (
  m: Manifest,
  layer: number,
  name: string,
  change: Change | undefined,
): Change | null =>
  change || (m.selection && layer < m.model.layers && siteOfParam(m, name))
    ? (values) => {
        change?.(values);
        reorderParam(m, layer, name, values);
      }
    : null;
