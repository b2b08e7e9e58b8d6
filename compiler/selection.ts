/** Which channels `s2ft_permuted` trains, chosen before a bundle is compiled. */
import { isIn, type Manifest, WeftError } from "../runtime/bundle.ts";
import type { SiteSpec } from "./layers.ts";
import type { Model } from "./models/model.ts";

/** A selection names distinct channels of every layer, and is there when a method needs it. */
export function checkSelection(
  selection: Manifest["selection"],
  model: Model,
  methods: readonly string[],
): Manifest["selection"] {
  const permuted = methods.includes("s2ft_permuted");
  if (permuted !== (selection !== null))
    throw new WeftError({
      code: "WEFT_OPTION",
      where: "selection",
      expected: permuted
        ? "the channels that s2ft_permuted trains"
        : "the method s2ft_permuted, which trains them",
      found: permuted ? "none" : methods.join(", "),
      hint: "weft compile --calibrate DATA chooses them",
    });
  if (!selection) return null;
  if (selection.layers.length !== model.layers)
    throw new WeftError({
      code: "WEFT_OPTION",
      where: "selection",
      expected: `${model.layers} layers`,
      found: String(selection.layers.length),
    });
  selection.layers.forEach((layer, l) => {
    for (const [name, list, all] of [
      ["ffn", layer.ffn, model.ffn],
      ["groups", layer.groups, model.kvHeads],
    ] as const)
      if (!areDistinct(list, all))
        throw new WeftError({
          code: "WEFT_OPTION",
          where: `selection, layer ${l}: ${name}`,
          expected: `distinct numbers below ${all}`,
          found: JSON.stringify(list),
        });
  });
  return selection;
}
const areDistinct = (list: readonly number[], all: number): boolean =>
  new Set(list).size === list.length && list.every((c) => Number.isInteger(c) && c >= 0 && c < all);

/** A selection names channels of a site, or of each of its experts, in every layer that has it. */
export function checkSelected(
  { layers }: NonNullable<Manifest["selection"]>,
  model: Model,
  { module, coupling, experts, ...site }: SiteSpec,
): void {
  const { group, channels } = coupling!;
  layers.forEach((layer, l) => {
    if (!isIn(model, l, site)) return;
    const lists = experts ? (layer.experts ?? []) : [layer[group === "ffn" ? "ffn" : "groups"]];
    const each = lists.length === (experts ?? 1) && lists.every((list) => list.length);
    const known = !experts || lists.every((list) => areDistinct(list, channels));
    if (each && known) return;
    const of = experts ? `, below ${channels}, for each of ${experts} experts` : "";
    throw new WeftError({
      code: "WEFT_OPTION",
      where: `selection, layer ${l}`,
      expected: `channels of ${module}${of}`,
      found: each ? "others" : "none",
      hint: "name fewer sites in capacities.s2ft",
    });
  });
}
