/** The bundle format: the one contract that compiler and runtime share. A directory, also served over HTTP as it is. */
export { type ErrorCode, type ErrorFields, WeftError } from "./errors.ts";
export * from "./formats.ts";
export * from "./identity.ts";
export * from "./safetensors.ts";

import type { Format } from "./formats.ts";

export const BUNDLE_FORMAT = "weft-bundle";
export const BUNDLE_VERSION = 5;

export interface FileEntry {
  readonly bytes: number;
  readonly sha256: string;
}
export interface TensorEntry {
  readonly name: string;
  readonly shape: readonly number[];
  /** Vectors are f32; matrices have the bundle's format, their scales, if any, right after their values. */
  readonly format: Format;
  readonly shard: string;
  /** Byte range inside the shard file. */
  readonly start: number;
  readonly bytes: number;
}
export interface ParamEntry {
  readonly name: string;
  readonly kind: "weight" | "vector" | "factor";
  readonly n: number;
  readonly k: number;
  /** Of a slot tensor: the branch it belongs to, and whether one row or as many as the adapter's rank are in use. */
  readonly branch: number | null;
  readonly rows: "rank" | "one";
  readonly offset: number;
  readonly words: number;
  /** Offset of its gradient in the accumulators; -1 for a tensor that is not trained. */
  readonly accum: number;
}
/** Channels that a bundle may keep in an order of its own; `heads` are query heads, in the groups that share a key head. */
export type ChannelAxis = "ffn" | "heads" | "kvHeads";
export interface SiteEntry {
  readonly index: number;
  readonly kind: "linear" | "entry" | "cache";
  readonly module: string;
  readonly inFeatures: number;
  readonly outFeatures: number;
  readonly bias: boolean;
  /** What its inputs and outputs run over. */
  readonly axes: { readonly in: ChannelAxis | null; readonly out: ChannelAxis | null };
  readonly coupling: {
    readonly group: string;
    readonly axis: "in" | "out";
    readonly unit: number;
    readonly shared: boolean;
  } | null;
}
/** A tensor of a branch: [rows in use, cols] in a slot. */
export interface BranchTensor {
  readonly name: string;
  /** As many rows as the adapter's rank, or one. */
  readonly rows: "rank" | "one";
  readonly cols: number;
  /** Which of the site's axes the columns run over, if either. */
  readonly axis?: "in" | "out";
  readonly trained: boolean;
  /** `uniform`: ±1/√cols (Kaiming with a = √5, as PEFT). `selection`: channels drawn when a job starts. `norm`: ‖rows of the site's matrix‖₂. `tokens`: embeddings of random tokens. `entries`: places in the matrix. `leading`: the bundle's own selection. `bias`: the site's bias. */
  readonly init:
    | "zeros"
    | "ones"
    | "uniform"
    | "selection"
    | "norm"
    | "tokens"
    | "entries"
    | "leading"
    | "bias";
  /** Its key in a PEFT file, after the module path; null for what follows from the others. */
  readonly key: string | null;
  /**
   * How the file has it: as in the slot, transposed, without the one row, or the chosen channels alone (int32); `beside`: the method's tensors of all
   * layers side by side in one, whose name is the key alone; `entries`, `places`: numbers of single entries, and their rows and columns (int32).
   */
  readonly shape: "rows" | "columns" | "vector" | "selection" | "beside" | "entries" | "places";
}
/** One adapter method at one site of a layer. */
export interface BranchEntry {
  readonly index: number;
  readonly method: string;
  readonly site: number;
  readonly capacity: number;
  readonly tensors: readonly BranchTensor[];
}
/** What the runtime must know about an adapter method beside its kernels. */
export interface MethodEntry {
  readonly name: string;
  /** `peft_type` of its folders. */
  readonly peftType: string;
  /** What its adapter_config.json says beside `peft_type`, where several methods share one: missing counts as false. */
  readonly when: Readonly<Record<string, unknown>>;
  readonly scale: "alpha/rank" | "one";
  /** What the rank of a branch counts, where it is not rows: as many entries as LoRA of the configured rank has numbers. */
  readonly counts?: "entries";
  /** Its rank counts tokens of its own, which every sequence begins with. */
  readonly virtual?: true;
  /** Does it adapt every layer, or only the first? */
  readonly layers?: "first";
  /** Modules that a job adapts when it names none. */
  readonly targets: readonly string[] | "all-linear";
  /** Rank when none is asked for; null: all that the bundle has room for. */
  readonly rank: number | null;
  /**
   * What its branch does to a matrix, which is how it merges: B·A of tensors `a` and `b`; the `delta` of the channels in `index`; the `values` of single
   * entries; rows of W + B·A scaled to magnitudes; gains; B·A beside one of W itself; B·A and another bias. Null: it is not linear and cannot merge.
   */
  readonly form:
    | "factors"
    | "selection"
    | "entries"
    | "magnitudes"
    | "gains"
    | "sequential"
    | "biased"
    | null;
  /** Does training drop inputs of its branches? */
  readonly dropout: boolean;
  /** Keys of its adapter_config.json, and the field of AdapterConfig that each holds. */
  readonly config: Readonly<Record<string, string>>;
  /** Keys that are always written as they are. */
  readonly fixed: Readonly<Record<string, unknown>>;
}
/**
 * How many workgroups a launch takes in one dimension: ceil(count · mul / div), `count` a header word or 1. `few_rows` is n_rows in a step of few rows
 * and 0 in one of many, `many_rows` the other way round: of two kernels for the same thing one runs. How many is many is the device's to say.
 */
export interface GridDim {
  readonly count: "one" | "n_rows" | "n_head" | "n_keys" | "few_rows" | "many_rows";
  readonly mul: number;
  readonly div: number;
}
export interface LaunchEntry {
  readonly kernel: string;
  readonly grid: readonly [GridDim, GridDim, GridDim];
  /** Mask bits (adapter branches, flags) of its bodies; empty when it always runs. */
  readonly bits: readonly number[];
}
export interface ProgramEntry {
  readonly name: string;
  readonly region: "layer" | "outer";
  readonly block: "step" | "unit" | "update";
  readonly launches: readonly LaunchEntry[];
}
export interface BlockEntry {
  readonly arrays: Readonly<Record<string, number>>;
  readonly words: number;
}
/** Words of each memory class, in a layer's group and in the outer group. */
export type ClassWords = Readonly<
  Record<
    "weights" | "kv" | "saved" | "adapters" | "accum" | "tables",
    { readonly layer: number; readonly outer: number }
  >
>;

export interface TargetPlan {
  readonly panel: number;
  readonly classes: ClassWords;
  readonly arenaWords: number;
  readonly metaWords: number;
  /** Memory of its own that each thread of the Wasm target needs; none on WebGPU. */
  readonly scratchWords: number;
  /** Words from the arena's start of what outlives a program. */
  readonly homes: Readonly<Record<"h" | "logits" | "dh" | "dkv" | "nll" | "rotary" | "norms", number>>;
  readonly slotWords: number;
  readonly jobWords: number;
  readonly layerParams: readonly ParamEntry[];
  readonly outerParams: readonly ParamEntry[];
  readonly factors: readonly ParamEntry[];
  /** Sums of squares of activations that a calibration leaves in a job's accumulators. */
  readonly statistics: readonly ParamEntry[];
  readonly blocks: Readonly<Record<"step" | "unit" | "update", BlockEntry>>;
  readonly header: readonly string[];
  readonly programs: readonly ProgramEntry[];
  readonly kernels: Readonly<Record<string, { readonly workgroup: number; readonly file: string }>>;
}
export interface CapacityEntry {
  readonly tokens: number;
  readonly sequences: number;
  readonly context: number;
  readonly headRows: number;
  readonly blocks: number;
  readonly slots: number;
  readonly jobs: number;
  readonly rank: number;
  readonly savedRows: number;
  readonly keptRows: number;
  readonly quantum: number;
  readonly unitRows: number;
  readonly units: number;
  readonly s2ft: { readonly sites: readonly string[]; readonly parameters?: number } | null;
}
/** How a model's makers sample from it. */
export interface GenerationEntry {
  readonly temperature?: number;
  readonly topK?: number;
  readonly topP?: number;
  readonly minP?: number;
  readonly repetitionPenalty?: number;
}
export interface Manifest {
  readonly format: typeof BUNDLE_FORMAT;
  readonly version: number;
  /** The model by value (BaseHash), however it is stored: what an adapter is trained on. */
  readonly base: string;
  readonly model: {
    readonly family: string;
    readonly hiddenSize: number;
    readonly layers: number;
    readonly heads: number;
    readonly kvHeads: number;
    readonly headDim: number;
    readonly ffn: number;
    readonly vocab: number;
    readonly context: number;
    readonly tied: boolean;
    readonly format: Format;
    readonly eps: number;
    /** Ids that end an answer; the first ends a training row. */
    readonly eos: readonly number[];
    readonly inverseFrequencies: readonly number[];
    readonly parameters: number;
  };
  /** What generation_config.json asks for; nothing applies it unasked. */
  readonly generation: GenerationEntry;
  /** S2FT's channels of the class `permuted`, by layer, in the order of the device: feed-forward channels, and key heads with what belongs to them. */
  readonly selection: {
    readonly layers: readonly { readonly ffn: readonly number[]; readonly groups: readonly number[] }[];
    readonly selector: string;
  } | null;
  readonly policy: string;
  /** What jobs can train: adapter methods, or `full` for every base tensor (exclusive). */
  readonly train: readonly string[];
  readonly capacities: CapacityEntry;
  readonly sites: readonly SiteEntry[];
  readonly methods: Readonly<Record<string, MethodEntry>>;
  readonly branches: readonly BranchEntry[];
  /** Saved activations: fields and bytes a token a layer per training class. */
  readonly saved: Readonly<
    Record<
      string,
      {
        readonly fields: readonly {
          readonly name: string;
          readonly cols: number;
          readonly index: string;
          readonly offset: number;
        }[];
        readonly bytes: {
          readonly naive: number;
          readonly read: number;
          readonly all: number;
          readonly boundary: number;
        };
      }
    >
  >;
  /** Checkpoint names of a layer's parameters, with `{l}` for the layer; and of the outer region's. */
  readonly checkpoint: {
    readonly layer: Readonly<Record<string, string>>;
    readonly outer: Readonly<Record<string, string>>;
  };
  readonly tensors: readonly TensorEntry[];
  readonly tokenizer: boolean;
  readonly chatTemplate: boolean;
  readonly targets: Readonly<Partial<Record<"wasm" | "webgpu", TargetPlan>>>;
  readonly files: Readonly<Record<string, FileEntry>>;
}
