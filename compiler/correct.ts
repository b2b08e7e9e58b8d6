/**
 * What rounding took of a model's matrices, given back by an adapter. Rows of a calibration go through the
 * layers one at a time, in the f64 interpreter: what is in memory is a layer's, not the model's. Each row
 * goes three times: through the matrices as their checkpoint has them, as the bundle has them, and as the
 * bundle has them with what was fitted so far. A correction (corrections/) sees what enters a matrix in the
 * first and the third.
 */
import {
  type EvalCtx,
  Graph,
  type Instead,
  inputName,
  interpret,
  type Node,
  type Type,
} from "../ops/index.ts";
import {
  BLOCK,
  CORRECTION,
  encode,
  type Format,
  IGNORE,
  kindOf,
  kindsOf,
  type Manifest,
  rotaryTables,
  STORED_PANEL,
  type TensorData,
  transpose,
  WeftError,
} from "../runtime/bundle.ts";
import type { Correction } from "./corrections/correction.ts";
import { corrections } from "./corrections/index.ts";
import type { Factors } from "./corrections/lowrank.ts";
import { openProduct, type Product } from "./corrections/product.ts";
import type { BundleFile } from "./files.ts";
import { RegionBuilder, type Stored } from "./layers.ts";
import type { Model } from "./models/model.ts";
import type { CompileOptions } from "./options.ts";
import { roundedRows } from "./pack.ts";
import type { Programs } from "./programs/index.ts";
import { buildLayer } from "./programs/region.ts";
import type { ModelSource } from "./source.ts";

type Said = NonNullable<CompileOptions["correction"]>;
type Weight = Type & { kind: "weight" };
type Experts = Type & { kind: "experts" };
/** How often each row goes through the layers: exact, rounded, corrected. */
const STREAMS = 3;
/** Tokens that are looked at, and of those that are labels, how many tell what a correction is worth. */
const CALIBRATION_TOKENS = 1024;
const MEASURED = 256;
/**
 * Of a matrix that is only multiplied, numbers that are read at once; of logits, those that are there at
 * once.
 */
const PIECE = 4 * 2 ** 20;
const LOGITS = 8 * 2 ** 20;

/** Sequences one after another, and those again for every stream. */
interface Batch {
  /** Of one stream. */
  readonly rows: number;
  readonly ids: readonly number[];
  readonly positions: readonly number[];
  /** The label of a row's next token; IGNORE where there is none. */
  readonly next: readonly number[];
  /** Of each row, where its sequence's blocks begin, in all streams. */
  readonly tables: readonly number[];
  readonly blocks: number;
}
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

/** What a linear layer was given. */
type Fitted = Factors & { readonly path: string; readonly outs: number; readonly ins: number };

/** Products with weights, a stream at a time; what is fitted on the way is in `fitted`. */
class Streams {
  readonly fitted: Fitted[] = [];
  /** What was split: several matrices read one value. */
  private readonly parts = new WeakMap<Float64Array, readonly Float32Array[]>();
  constructor(
    private readonly source: ModelSource,
    private readonly batch: Batch,
    private readonly product: Product,
    private readonly correction: Correction,
    private readonly rank: number,
  ) {}

  /**
   * What nodes give that have to do with weights. `pathOf`: where a checkpoint has a parameter; `corrected`:
   * matrices that an adapter reaches, by their names in the region.
   */
  instead(pathOf: (name: string) => string, corrected: ReadonlySet<string>): Instead {
    return (node, ins) => {
      if (node.op === "input") {
        const t = node.outs[0]!;
        if (t.kind === "vector")
          return [Float64Array.from(this.source.weights.read(pathOf(String(node.attrs.name)), [t.n]))];
        // Matrices are read by who multiplies with them.
        return t.kind === "weight" || t.kind === "experts" ? [] : null;
      }
      const weight = node.ins.find((v) => v.type.kind === "weight" || v.type.kind === "experts");
      if (!weight) return null;
      const name = inputName(weight);
      if (node.op === "embed") return [this.embedded(weight.type as Weight, pathOf(name), node)];
      if (node.op === "linear")
        return [this.linear(weight.type as Weight, pathOf(name), ins[0]!, corrected.has(name))];
      if (node.op === "experts") return [this.experts(weight.type as Experts, pathOf(name), node, ins)];
      throw new Error(`${node.op} has no streams`);
    };
  }
  private rounded({ n, k, format }: Omit<Weight, "kind">, path: string, from = 0, to = n) {
    const tensor = { name: path, shape: [n, k], format: format as Format };
    return roundedRows(this.source, tensor, from, to);
  }
  /** x [3 · rows, cols] as each stream has it. */
  private split(x: Float64Array): readonly Float32Array[] {
    const known = this.parts.get(x);
    if (known) return known;
    const words = x.length / STREAMS;
    const parts = Array.from({ length: STREAMS }, (_, s) =>
      Float32Array.from(x.subarray(s * words, (s + 1) * words)),
    );
    this.parts.set(x, parts);
    return parts;
  }
  private embedded(t: Weight, path: string, node: Node): Float64Array {
    const { ids, positions, rows } = this.batch;
    const at = node.attrs.by === "pos" ? positions : ids;
    const out = new Float64Array(STREAMS * rows * t.k);
    const panels = new Map<number, { exact: Float32Array; held: Float32Array }>();
    at.forEach((id, r) => {
      const first = id - (id % STORED_PANEL);
      const panel = panels.get(first) ?? this.rounded(t, path, first, Math.min(t.n, first + STORED_PANEL));
      panels.set(first, panel);
      [panel.exact, panel.held, panel.held].forEach((values, s) => {
        const from = (id - first) * t.k;
        out.set(values.subarray(from, from + t.k), (s * rows + r) * t.k);
      });
    });
    return out;
  }
  private linear(t: Weight, path: string, x: Float64Array, corrected: boolean): Float64Array {
    const { n, k } = t;
    const entering = this.split(x);
    const rows = entering[0]!.length / k;
    const out = new Float64Array(STREAMS * rows * n);
    const multiply = (from: number, to: number): ReturnType<Streams["rounded"]> => {
      const both = this.rounded(t, path, from, to);
      [both.exact, both.held, both.held].forEach((values, s) => {
        const y = this.product(entering[s]!, values, rows, to - from, k);
        for (let r = 0; r < rows; r++)
          out.set(y.subarray(r * (to - from), (r + 1) * (to - from)), (s * rows + r) * n + from);
      });
      return both;
    };
    if (!corrected) {
      const step = Math.max(1, Math.floor(PIECE / (k * STORED_PANEL))) * STORED_PANEL;
      for (let from = 0; from < n; from += step) multiply(from, Math.min(n, from + step));
      return out;
    }
    const { exact, held } = multiply(0, n);
    if (exact.every((v, i) => v === held[i])) return out;
    const [entersExact, , enters] = entering as [Float32Array, Float32Array, Float32Array];
    const shape = [n, k] as const;
    const { product, rank } = this;
    const { a, b } = this.correction.fit(product, { shape, exact, held, entersExact, enters }, rank);
    this.fitted.push({ a, b, path, outs: n, ins: k });
    const y = product(product(enters, a, rows, rank, k), transpose(b, rank, n), rows, n, rank);
    const last = (STREAMS - 1) * rows * n;
    for (let i = 0; i < y.length; i++) out[last + i] = out[last + i]! + y[i]!;
    return out;
  }
  /** Each expert's matrix is read once, for the rows of all streams that chose it. */
  private experts(t: Experts, path: string, node: Node, [x, chosen]: readonly Float64Array[]): Float64Array {
    const { n, k } = t;
    const [wide, top] = node.ins.slice(0, 2).map((v) => (v.type as Type & { kind: "rows" }).cols) as [
      number,
      number,
    ];
    const rows = chosen!.length / top;
    const out = new Float64Array(rows * top * n);
    for (let e = 0; e < t.count; e++) {
      const streams: number[][] = Array.from({ length: STREAMS }, () => []);
      chosen!.forEach((c, at) => {
        if (c === e) streams[Math.floor(at / (top * this.batch.rows))]!.push(at);
      });
      if (!streams.some((s) => s.length)) continue;
      const { exact, held } = this.rounded(t, path.replace("{e}", String(e)));
      streams.forEach((places, s) => {
        const own = new Float32Array(places.length * k);
        places.forEach((at, i) => {
          const from = Math.floor(at / top) * wide + (wide === k ? 0 : (at % top) * k);
          own.set(x!.subarray(from, from + k), i * k);
        });
        const y = this.product(own, s ? held : exact, places.length, n, k);
        places.forEach((at, i) => {
          out.set(y.subarray(i * n, (i + 1) * n), at * n);
        });
      });
    }
    return out;
  }
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
  const streams = new Streams(source, batch, await openProduct(), correction, rank);
  const corrected = new Set(
    programs.branches
      .filter((b) => b.method.name === "lora" && b.site.kind === "linear")
      .map((b) => `${b.site.module}.weight`),
  );
  const graph = new Graph();
  const outs = Array.from({ length: kindsOf(model) }, (_, kind) => {
    const { region } = buildLayer(graph, model, kind, context, said, []);
    return region.out;
  });
  const outer = new RegionBuilder(graph, "outer", "T", said, []);
  const kv = new Float64Array(batch.blocks * BLOCK * 2 * model.kvHeads * model.headDim);
  const rotary = Float64Array.from(rotaryTables(model.ropes, context));
  const ofOuter = streams.instead((name) => model.names.outer[name]!, new Set());

  const embedded = model.embed(outer, "T");
  let [h] = interpret([embedded], {}, contextOf(model, batch, 0), ofOuter) as [Float64Array];
  for (let l = 0; l < model.layers; l++) {
    onLayer(l);
    const path = model.names.layer.replace("{l}", String(l));
    const own = streams.instead((name) => path + name, corrected);
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
  const worth = measure(model, graph, outer, batch, h, ofOuter);
  return {
    files: filesOf(model, streams.fitted, rank),
    entry: { method: said.method, rank, tokens: batch.rows, ...worth },
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
function filesOf(model: Model, fitted: readonly Fitted[], rank: number): BundleFile[] {
  const tensors = fitted.flatMap(({ a, b, path, ins, outs }): TensorData[] => {
    const name = `base_model.model.${path.replace(/\.weight$/, "")}`;
    return [
      { name: `${name}.lora_A.weight`, shape: [rank, ins], dtype: "F32", data: a },
      { name: `${name}.lora_B.weight`, shape: [outs, rank], dtype: "F32", data: transpose(b, rank, outs) },
    ];
  });
  const moduleOf = (path: string): string =>
    path
      .replace(/\.weight$/, "")
      .split(/\.\d+\./)
      .at(-1)!;
  const config = {
    ...{ peft_type: "LORA", task_type: "CAUSAL_LM", base_model_name_or_path: null, inference_mode: true },
    // Bᵀ·A as it is: a scale of 1.
    ...{ r: rank, lora_alpha: rank, lora_dropout: 0, use_rslora: false, use_dora: false, bias: "none" },
    fan_in_fan_out: model.names.transposed !== undefined,
    target_modules: [...new Set(fitted.map((f) => moduleOf(f.path)))],
  };
  return [
    [`${CORRECTION}/adapter_config.json`, new TextEncoder().encode(`${JSON.stringify(config, null, 2)}\n`)],
    [`${CORRECTION}/adapter_model.safetensors`, encode(tensors)],
  ];
}
