/** A selection in files, as the numbers of its channels, int32; and that of a bundle which has chosen. */
import { channelAt, placesOf } from "../coupling.ts";
import type { SingleSite } from "../experts.ts";
import type { Manifest } from "../manifest.ts";
import { ordersOf } from "../order.ts";
import type { IndexInFiles } from "./tensor.ts";

/** The first that a bundle's selection keeps, in its order. */
export function leading(m: Manifest, layer: number, site: SingleSite, rank: number): number[] {
  const coupling = site.coupling!;
  const order = ordersOf(m, layer, site)[coupling.axis];
  const first = Array.from({ length: coupling.channels }, (_, c) => c);
  return placesOf(coupling, first)
    .slice(0, rank)
    .map((place) => order?.[place] ?? place);
}
export const selectionInFiles: IndexInFiles = {
  index: true,
  says: "int32 channels",
  shape: (rank) => [rank],
  parse: ({ t, layer, site, rank }, m, file, refuse) => {
    const chosen = [...file];
    const { at, channels } = site.coupling!;
    const wrong = chosen.findIndex(
      (c, r) => channelAt(site.coupling!, c) === null || chosen.indexOf(c) !== r,
    );
    if (wrong >= 0) {
      const slices = at.map((from) => `${from} to ${from + channels - 1}`).join(" or ");
      refuse(`distinct channels, ${slices}`, String(chosen[wrong]), { at: `[${wrong}]` });
    }
    if (t.init !== "leading") return chosen;
    // Where the bundle has chosen, its order is the adapter's.
    const own = leading(m, layer, site, rank);
    if (!own.every((c) => chosen.includes(c)))
      refuse(
        `the channels of this bundle's selection, ${own.slice(0, 4).join(", ")} …`,
        chosen.slice(0, 4).join(", "),
        { hint: "compile with the method s2ft to read any selection" },
      );
    return own;
  },
  inFile: (_, file) => [...file],
  print: (_, channels) => Int32Array.from(channels),
};
