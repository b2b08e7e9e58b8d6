/**
 * Layers of a model may be of several kinds, as dense ones among mixtures: each kind has a graph of its own,
 * with what parameters, sites and launches of programs are of it. What says no kinds is of all.
 */
interface OfKinds {
  readonly kinds?: readonly number[];
}
/** By layer, which kind it is of; without, all are of one. */
interface Layers {
  readonly layers: number;
  readonly perLayer: { readonly kind?: readonly number[] };
}

export const kindOf = ({ perLayer }: Pick<Layers, "perLayer">, layer: number): number =>
  perLayer.kind?.[layer] ?? 0;
/** How many kinds there are. */
export const kindsOf = ({ perLayer: { kind = [] } }: Pick<Layers, "perLayer">): number =>
  1 + Math.max(0, ...kind);
/** Have layers of a kind what is of these? */
export const isOf = ({ kinds }: OfKinds, kind: number): boolean => !kinds || kinds.includes(kind);
/** Has a layer what is of these? */
export const isIn = (model: Pick<Layers, "perLayer">, layer: number, of: OfKinds): boolean =>
  isOf(of, kindOf(model, layer));
/** The layers that have it. */
export const layersWith = (model: Layers, of: OfKinds): number[] =>
  Array.from({ length: model.layers }, (_, l) => l).filter((l) => isIn(model, l, of));
