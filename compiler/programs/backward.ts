/** A class's training of a layer: what its forward stores, and its pruned backward in both kept sets. */
import { gatherRows, inputName, storeRows, toposort, type Value, valueKey } from "../../ops/index.ts";
import { vjp } from "../autodiff.ts";
import { type BranchSpec, tensorName } from "../layers.ts";
import { extArray } from "../metadata.ts";
import { keptOf } from "./kept.ts";
import { isParameter } from "./parameters.ts";
import type { GraphProgram, SavedBytes, SavedField, TrainClass } from "./program.ts";
import { type Mapped, onUnitRows, substitute } from "./region.ts";

/** Fields, and where rows of a field are. */
export type Fields = (name: string, cols: number) => Value;
export interface Training {
  readonly fields: readonly SavedField[];
  readonly bytes: SavedBytes;
  /** Stores of the fields, in their order; over the rows of the forward that `part` came from. */
  readonly stores: readonly Value[];
  readonly backward: readonly GraphProgram[];
}

/** `part` is a layer of a kind with the branches of the class alone; `unitRows` what enters it in a unit. */
export function trainLayer(
  cls: TrainClass,
  kind: number,
  part: Mapped,
  unitRows: Value,
  branches: readonly BranchSpec[],
  field: Fields,
): Training {
  const unit = onUnitRows(part, unitRows);
  const dh = field("dh", (unit.h.type as { cols: number } & typeof unit.h.type).cols);
  const trained = new Set(
    branches.flatMap((b) => b.tensors.filter((t) => t.trained).map((t) => tensorName(b, t.name))),
  );
  const trainable = toposort([unit.out])
    .filter((n) => n.op === "input")
    .map((node): Value => ({ node, index: 0, type: node.outs[0]! }))
    .filter((v) => (cls === "full" ? isParameter(v) : trained.has(inputName(v))));
  const grads = vjp([[unit.out, gatherRows(dh, "save_row", "W")]], [unit.h, ...trainable]);
  const roots = [...trainable.flatMap((v) => grads.get(valueKey(v)) ?? []), grads.get(valueKey(unit.h))!];
  const kept = keptOf(cls, kind, unit, roots);
  const stores = kept.all.map((v, i) => {
    const { name, cols, index } = kept.fields[i]!;
    const from = part.from(unit.from(v));
    return storeRows(field(name, cols), from, index === "save_row" ? "save_row" : extArray(cls));
  });
  // Attention is never rerun: its keys and values are in the cache.
  const written = kept.boundary[1]!.node.ins[1]!;
  const backward = (["all", "boundary"] as const).map((mode): GraphProgram => {
    const replace = new Map<string, Value>([[valueKey(written), written.node.ins[0]!]]);
    kept[mode].forEach((v, i) => {
      const { name, cols, index } = kept.fields[i]!;
      replace.set(valueKey(v), gatherRows(field(name, cols), index, "W"));
    });
    const out = substitute(roots, replace);
    const back = storeRows(dh, out[out.length - 1]!, "save_row");
    return {
      name: `backward.${cls}.${mode}`,
      region: "layer",
      block: "unit",
      roots: [...out.slice(0, -1), back],
      homes: [],
    };
  });
  return { fields: kept.fields, bytes: kept.bytes, stores, backward };
}
