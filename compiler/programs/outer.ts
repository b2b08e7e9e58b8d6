/** The outer region: embedding and head, and their training. */
import { crossEntropy, gatherRows, storeRows, type Value, valueKey, zeros } from "../../ops/index.ts";
import { vjp } from "../autodiff.ts";
import type { RegionBuilder } from "../layers.ts";
import type { Model } from "../models/model.ts";
import type { Fields } from "./backward.ts";
import { parametersOf } from "./parameters.ts";
import type { GraphProgram } from "./program.ts";
import { substitute } from "./region.ts";

const outer = (
  name: string,
  block: GraphProgram["block"],
  roots: readonly Value[],
  home?: string,
): GraphProgram => ({
  name,
  region: "outer",
  block,
  roots,
  homes: home ? [{ value: roots[0]!, name: home }] : [],
});

/** Ids to hidden states; hidden states of trained rows kept for the head; hidden states to logits. */
export function servingPrograms(
  b: RegionBuilder,
  model: Model,
  h: Value,
  field: Fields,
): readonly GraphProgram[] {
  const embedded = model.embed(b, "T");
  const logits = model.head(b, gatherRows(h, "head_row", "R"));
  const hidden = field("hidden", model.hiddenSize);
  return [
    outer("embed", "step", [embedded], "h"),
    outer("stash", "step", [storeRows(hidden, h, "save_row")]),
    outer("head", "step", [logits], "logits"),
  ];
}

/** Loss of a chunk of label rows and its gradient; with `full`, of the head's own tensors too. */
export function headTraining(b: RegionBuilder, model: Model, full: boolean, field: Fields): GraphProgram {
  const d = model.hiddenSize;
  const hidden = field("hidden", d);
  const dh = field("dh", d);
  const x = hidden.node.graph.input("head", "hidden_rows", { kind: "rows", domain: "R", cols: d });
  const logits = model.head(b, x);
  const { nll, dlogits } = crossEntropy(logits);
  const trainable = full ? parametersOf(logits) : [];
  const grads = vjp([[logits, dlogits]], [x, ...trainable]);
  const cleared = storeRows(dh, zeros(hidden.node.graph, "W", d), "save_row");
  const roots = [
    storeRows(cleared, grads.get(valueKey(x))!, "head_dst"),
    storeRows(field("nll", 1), nll, "head_dst"),
    ...trainable.map((v) => grads.get(valueKey(v))!),
  ];
  const rows = gatherRows(hidden, "head_row", "R");
  return outer(
    full ? "head_train.full" : "head_train",
    "unit",
    substitute(roots, new Map([[valueKey(x), rows]])),
  );
}

/** Gradients of the embedding's own tensors from what arrives below the first layer. */
export function embedTraining(b: RegionBuilder, model: Model, field: Fields): GraphProgram {
  const rows = model.embed(b, "W");
  const wanted = parametersOf(rows);
  const dh = gatherRows(field("dh", model.hiddenSize), "save_row", "W");
  const grads = vjp([[rows, dh]], wanted);
  return outer(
    "embed_backward.full",
    "unit",
    wanted.map((v) => grads.get(valueKey(v))!),
  );
}
