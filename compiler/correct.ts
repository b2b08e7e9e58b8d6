/**
 * What rounding took of a model's matrices, given back by an adapter. Rows of a calibration go through the
 * layers one at a time, in the f64 interpreter: what is in memory is a layer's, not the model's. Each row
 * goes three times: through the matrices as their checkpoint has them, as the bundle has them, and as the
 * bundle has them with what was fitted so far. A correction (corrections/) sees what enters a matrix in the
 * first and the third.
 */
import { type EvalCtx, Graph, type Instead, interpret } from "../ops/index.ts";
import {
  BLOCK,
  CORRECTION,
  encode,
  IGNORE,
  kindOf,
  kindsOf,
  type Manifest,
  rotaryTables,
  type TensorData,
  transpose,
  WeftError,
} from "../runtime/bundle.ts";
import { targetsOf } from "../runtime/targets.ts";
import { corrections } from "./corrections/index.ts";
import { openProduct } from "./corrections/product.ts";
import { type Batch, type Fitted, STREAMS, Streams } from "./corrections/streams.ts";
import type { BundleFile } from "./files.ts";
import { RegionBuilder, type Stored } from "./layers.ts";
import type { Model } from "./models/model.ts";
import type { CompileOptions } from "./options.ts";
import type { Programs } from "./programs/index.ts";
import { buildLayer } from "./programs/region.ts";
import type { ModelSource } from "./source.ts";

type Said = NonNullable<CompileOptions["correction"]>;
/** Tokens that are looked at, and of those that are labels, how many tell what a correction is worth. */
const CALIBRATION_TOKENS = 1024;
const MEASURED = 256;
/** Of logits, numbers that are there at once. */
const LOGITS = 8 * 2 ** 20;

/** The first rows of the calibration, as many as are looked at, none longer than the context. */
function batchOf(rows: Said["rows"], context: number): Batch {
  const [ids, positions, next, starts]: number[][] = [[], [], [], []];
  let blocks = 0;
  for (const { input_ids, labels } of rows) {
    const n = Math.min(input_ids.length, context, CALIBRATION_TOKENS - ids!.length);
    for (let i = 0; i < n; i++) {
      ids!.push(input_ids[i]!);
      positions!.push(i);
      next!.push(i + 1 < n ? labels[i + 1]! : IGNORE);
      starts!.push(blocks);
    }
    blocks += Math.ceil(n / BLOCK);
  }
  const tables = Array.from({ length: STREAMS }, (_, s) => starts!.map((b) => s * blocks + b)).flat();
  return {
    ...{ rows: ids!.length, ids: ids!, positions: positions!, next: next! },
    ...{ tables, blocks: STREAMS * blocks },
  };
}

/**
 * Fit an adapter, and tell what it is worth: its files, as peft has them, and what the manifest says of it.
 * Throws WEFT_OPTION where nothing is rounded.
 */
export async function correct(
  source: ModelSource,
  model: Model,
  programs: Programs,
  said: Said & Stored & { readonly context: number; readonly rank: number },
  onLayer: (done: number) => void,
): Promise<{ readonly files: readonly BundleFile[]; readonly entry: NonNullable<Manifest["correction"]> }> {
  const { context, rank } = said;
  const correction = corrections.find((c) => c.name === said.method)!;
  const batch = batchOf(said.rows, context);
  const streams = new Streams(source, batch, await openProduct(), correction);
  const branches = programs.branches.filter((b) => b.method.name === "lora");
  const ranks = new Map(branches.map((b) => [`${b.site.module}.weight`, b.capacity]));
  const graph = new Graph();
  const outs = Array.from({ length: kindsOf(model) }, (_, kind) => {
    const { region } = buildLayer(graph, model, kind, context, said, []);
    return region.out;
  });
  const outer = new RegionBuilder(graph, "outer", "T", said, []);
  const kv = new Float64Array(batch.blocks * BLOCK * 2 * model.kvHeads * model.headDim);
  const rotary = Float64Array.from(rotaryTables(model.ropes, context));
  const ofOuter = streams.instead((name) => model.names.outer[name]!, new Map());

  const embedded = model.embed(outer, "T");
  let [h] = interpret([embedded], {}, contextOf(model, batch, 0), ofOuter) as [Float64Array];
  for (let l = 0; l < model.layers; l++) {
    onLayer(l);
    const path = model.names.layer.replace("{l}", String(l));
    const own = streams.instead((name) => path + name, ranks);
    const out = outs[kindOf(model, l)]!;
    [h] = interpret([out], { h, kv, rotary }, contextOf(model, batch, l), own) as [Float64Array];
  }
  if (!streams.fitted.length)
    throw new WeftError({
      code: "WEFT_OPTION",
      where: "correction",
      expected: "matrices of layers in a format that rounds them",
      found: "all as their checkpoint has them",
      hint: "give a format: --format q4",
    });
  // Of experts, whose adapters may have a rank of their own.
  const patterns = Object.fromEntries(
    branches
      .filter(({ site, capacity }) => site.experts && capacity !== rank)
      .map(({ site, capacity }) => [`${site.module.split("{e}")[0]!.replaceAll(".", "\\.")}.*`, capacity]),
  );
  const worth = measure(model, graph, outer, batch, h, ofOuter);
  return {
    files: filesOf(model, programs, streams.fitted, rank, patterns),
    entry: {
      ...{ method: said.method, rank, tokens: batch.rows },
      ...(streams.unreached.size && { unreached: streams.unreached.size }),
      ...worth,
    },
  };
}
/** What a layer's nodes ask of the batch. */
function contextOf(model: Model, b: Batch, layer: number): EvalCtx {
  const arrays: Readonly<Record<string, (i: number) => number>> = {
    pos: (i) => b.positions[i % b.rows]!,
    table: (i) => b.tables[i]!,
    raw: (i) => i,
  };
  return {
    rows: () => STREAMS * b.rows,
    meta: (name, i) => arrays[name]!(i!),
    metaf: (name) => {
      throw new Error(`a layer without branches asks for ${name}`);
    },
    slot: () => ({ rank: 0, scale: () => 0 }),
    layer,
    ofLayer: (name) => model.perLayer[name]?.[layer] ?? 0,
  };
}
/** Loss of the labels by stream, and KL(exact ‖ other) of what follows: means over some of the label rows. */
function measure(
  model: Model,
  graph: Graph,
  outer: RegionBuilder,
  batch: Batch,
  h: Float64Array,
  ofOuter: Instead,
): Pick<NonNullable<Manifest["correction"]>, "loss" | "divergence"> {
  const d = model.hiddenSize;
  const labels = batch.next.flatMap((label, r) => (label === IGNORE ? [] : [r]));
  const every = Math.max(1, labels.length / MEASURED);
  const rows = Array.from(
    { length: Math.floor(labels.length / every) },
    (_, i) => labels[Math.floor(i * every)]!,
  );
  const logits = model.head(outer, graph.input("head", "x", { kind: "rows", domain: "R", cols: d }));
  const [loss, divergence] = [new Float64Array(STREAMS), new Float64Array(STREAMS)];
  const most = Math.max(1, Math.floor(LOGITS / model.vocab));
  for (let at = 0; at < rows.length; at += most) {
    const some = rows.slice(at, at + most);
    const x = new Float64Array(STREAMS * some.length * d);
    for (let s = 0; s < STREAMS; s++)
      some.forEach((r, i) => {
        const from = (s * batch.rows + r) * d;
        x.set(h.subarray(from, from + d), (s * some.length + i) * d);
      });
    const ctx = { ...contextOf(model, batch, 0), rows: () => STREAMS * some.length };
    const [out] = interpret([logits], { x }, ctx, ofOuter) as [Float64Array];
    const logOf = (s: number, i: number): ((c: number) => number) => {
      const own = out.subarray((s * some.length + i) * model.vocab, (s * some.length + i + 1) * model.vocab);
      let [max, sum] = [Number.NEGATIVE_INFINITY, 0];
      for (const v of own) max = Math.max(max, v);
      for (const v of own) sum += Math.exp(v - max);
      const scale = max + Math.log(sum);
      return (c) => own[c]! - scale;
    };
    some.forEach((r, i) => {
      const exact = logOf(0, i);
      for (let s = 0; s < STREAMS; s++) {
        const other = logOf(s, i);
        loss[s] = loss[s]! - other(batch.next[r]!) / rows.length;
        let kl = 0;
        for (let c = 0; c < model.vocab; c++) kl += Math.exp(exact(c)) * (exact(c) - other(c));
        divergence[s] = divergence[s]! + kl / rows.length;
      }
    });
  }
  const [exact, rounded, fitted] = loss as unknown as [number, number, number];
  return {
    loss: { exact, rounded, corrected: fitted },
    divergence: { rounded: divergence[1]!, corrected: divergence[2]! },
  };
}
/** The adapter as a folder of peft. */
function filesOf(
  model: Model,
  programs: Programs,
  fitted: readonly Fitted[],
  most: number,
  patterns: Readonly<Record<string, number>>,
): BundleFile[] {
  const tensors = fitted.flatMap(({ a, b, path, ins, outs, rank }): TensorData[] => {
    const name = `base_model.model.${path.replace(/\.weight$/, "")}`;
    return [
      { name: `${name}.lora_A.weight`, shape: [rank, ins], dtype: "F32", data: a },
      { name: `${name}.lora_B.weight`, shape: [outs, rank], dtype: "F32", data: transpose(b, rank, outs) },
    ];
  });
  const modules = { model, sites: programs.sites, checkpoint: { modules: model.names.layer } };
  const config = {
    ...{ peft_type: "LORA", task_type: "CAUSAL_LM", base_model_name_or_path: null, inference_mode: true },
    // Bᵀ·A as it is: a scale of 1.
    ...{ r: most, lora_alpha: most, rank_pattern: patterns, alpha_pattern: patterns },
    ...{ lora_dropout: 0, use_rslora: false, use_dora: false, bias: "none" },
    fan_in_fan_out: model.names.transposed !== undefined,
    target_modules: targetsOf(modules, new Set(fitted.map((f) => f.path.replace(/\.weight$/, "")))),
  };
  return [
    [`${CORRECTION}/adapter_config.json`, new TextEncoder().encode(`${JSON.stringify(config, null, 2)}\n`)],
    [`${CORRECTION}/adapter_model.safetensors`, encode(tensors)],
  ];
}
