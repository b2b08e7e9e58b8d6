/**
 * A class's training of a layer: what its forward stores; its pruned backward, which reads kept values where
 * a unit has its own; and before it what brings them there: of rows whose values were all stored a copy, of
 * others a rerun.
 */
import { gatherRows, inputName, storeRows, toposort, type Value, valueKey } from "../../ops/index.ts";
import { classPrograms } from "../../runtime/bundle.ts";
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
  const stored = ({ name, cols, index }: SavedField): Value => gatherRows(field(name, cols), index, "W");
  // Attention is never rerun: its keys and values are in the cache.
  const written = kept.boundary[1]!.node.ins[1]!;
  const bounds = new Map<string, Value>([[valueKey(written), written.node.ins[0]!]]);
  kept.boundary.forEach((v, i) => void bounds.set(valueKey(v), stored(kept.fields[i]!)));
  const inner = kept.all.slice(kept.boundary.length);
  const fields = kept.fields.slice(kept.boundary.length);
  const { graph } = unit.h.node;
  const own = inner.map((v, i) => graph.input("layer/W", fields[i]!.name, v.type));
  const program = (name: string, ends: readonly Value[], homes: readonly Value[]): GraphProgram => ({
    name,
    region: "layer",
    block: "unit",
    roots: ends,
    homes: homes.map((value, i) => ({ value, name: fields[i]!.name })),
  });
  const copied = fields.map(stored);
  const rerun = substitute(inner, bounds);
  const read = new Map([...bounds, ...inner.map((v, i) => [valueKey(v), own[i]!] as const)]);
  const out = substitute(roots, read);
  const back = storeRows(dh, out[out.length - 1]!, "save_row");
  return {
    fields: kept.fields,
    bytes: kept.bytes,
    stores,
    backward: [
      program(classPrograms.copy(cls), copied, copied),
      program(classPrograms.rerun(cls), rerun, rerun),
      program(classPrograms.backward(cls), [...out.slice(0, -1), back], own),
    ],
  };
}
