/**
 * manifest.json, described once: what the compiler writes and the runtime reads. Types are derived from the
 * schemas; consistent.ts checks what ties their parts together. One file, as what a bundle says is one page.
 */
import * as v from "valibot";
import { LAUNCH_VECTORS } from "./contract.ts";
import { formats } from "./formats.ts";
import { kvNames } from "./kv.ts";
import { productNames } from "./products.ts";
import {
  above0,
  atLeast0,
  boolean,
  bytes,
  count,
  exactly,
  fileName,
  finite,
  integer,
  number,
  numbers,
  type Of,
  object,
  oneOf,
  positive,
  record,
  sha256Hex,
  text,
  triple,
} from "./schema.ts";
import { startNames, type TensorKindName, tensorKinds } from "./tensors/index.ts";
import { termNames } from "./terms.ts";

export const BUNDLE_FORMAT = "weft-bundle";
export const BUNDLE_VERSION = 25;

const FileEntry = object({ bytes, sha256: sha256Hex });
const format = oneOf(formats);
/** A place of few words is an index of 32 bits in kernels. */
const indices = numbers("an integer from 0 up", (x) => Number.isInteger(x) && x >= 0 && x < 2 ** 31);
const rows = oneOf(["rank", "one"]);
/** The kinds of layers that have it, where not all do. */
const kinds = v.exactOptional(indices);

const TensorEntry = object({
  name: text,
  shape: v.pipe(
    v.array(positive),
    v.check((s) => s.length === 1 || s.length === 2, "one or two dimensions"),
  ),
  /** Vectors are f32; of matrices the scales, if any, lie right after the values. */
  format,
  shard: fileName,
  /** Byte range inside the shard file. */
  start: bytes,
  bytes,
});
const ParamEntry = object({
  name: text,
  kind: oneOf(["weight", "vector", "factor"]),
  n: positive,
  k: positive,
  /** How a matrix is stored; f32 for all else. */
  format,
  /**
   * Of a slot tensor: the branch it belongs to, and whether one row or as many as the adapter's rank are
   * used.
   */
  branch: v.nullable(count),
  rows,
  offset: count,
  words: count,
  /** Offset of its gradient in the accumulators; -1 for a tensor that is not trained. */
  accum: integer(-1),
  /** Of a matrix that is a group of its own, which a device may hold in shards: its number among those. */
  own: v.nullable(count),
  kinds,
});
/** `qkv` and `gateUp`: those of matrices that are one, after another. */
const ChannelAxis = oneOf(["ffn", "heads", "kvHeads", "qkv", "gateUp"]);
const side = oneOf(["in", "out"]);
const SiteEntry = object({
  index: count,
  kind: oneOf(["linear", "experts", "entry", "cache"]),
  /** Of experts' matrices it has `{e}` for the expert. */
  module: text,
  /** How many experts there are, each with a matrix. */
  experts: v.exactOptional(positive),
  inFeatures: positive,
  outFeatures: positive,
  bias: boolean,
  /** What its inputs and outputs run over. */
  axes: object({ in: v.nullable(ChannelAxis), out: v.nullable(ChannelAxis) }),
  /** Channels that it shares with others, and where on that axis each slice of so many begins. */
  coupling: v.nullable(
    object({ group: text, axis: side, unit: positive, shared: boolean, channels: positive, at: indices }),
  ),
  kinds,
});
const BranchTensor = object({
  name: text,
  /** As many rows as the adapter's rank, or one. */
  rows,
  cols: positive,
  /** Which of the site's axes the columns run over, if either. */
  axis: v.exactOptional(side),
  trained: boolean,
  kind: oneOf(Object.keys(tensorKinds) as TensorKindName[]),
  /** How it begins: one of its kind's starts. */
  init: oneOf(startNames),
  /** Its key in a PEFT file, after the module path; null for what follows from the others. */
  key: v.nullable(text),
  /** How a file has numbers, where not as a slot has them: transposed, or in one dimension. */
  shape: v.exactOptional(oneOf(["columns", "vector"])),
});
const BranchEntry = object({
  index: count,
  method: text,
  site: count,
  capacity: positive,
  tensors: v.array(BranchTensor),
});
/** Fields of an adapter's configuration that a method's files may hold. */
const configFields = [
  "rank",
  "alpha",
  "rslora",
  "dropout",
  "rankPattern",
  "alphaPattern",
  "selector",
] as const;
/** How Hugging Face PEFT, or a folder of its shape, has a method. */
const PeftEntry = object({
  /** `peft_type` of its folders. */
  type: text,
  /**
   * What its adapter_config.json says beside `peft_type`, where several methods share one: missing counts as
   * false.
   */
  when: record(v.unknown()),
  /** Keys of its adapter_config.json, and the field of AdapterConfig that each holds. */
  config: record(oneOf(configFields)),
  /** Keys that are always written as they are. */
  fixed: record(v.unknown()),
  /** Those of them that say what is computed: a file that differs is refused. */
  meaning: v.array(text),
});
/** One thing that a branch does to its site's matrix and bias: a term, and its tensors' names by role. */
const TermEntry = object({ term: oneOf(termNames), of: record(text) });
const MethodEntry = object({
  name: text,
  peft: PeftEntry,
  scale: oneOf(["alpha/rank", "one"]),
  /** Its rank counts tokens of its own, which every sequence begins with. */
  virtual: v.exactOptional(exactly(true)),
  /** Does it adapt every layer, or only the first? */
  layers: v.exactOptional(exactly("first")),
  /** Modules that a job adapts when it names none. */
  targets: v.union([exactly("all-linear"), v.array(text)], "all-linear or a list of modules"),
  /** Rank when none is asked for; null: all that the bundle has room for. */
  rank: v.nullable(positive),
  /** What its branches do, in order; null: it is not linear in what enters, and cannot merge. */
  change: v.nullable(v.array(TermEntry)),
  /** Does training drop inputs of its branches? */
  dropout: boolean,
});
/** How many workgroups a launch takes in one dimension: ceil(count · mul / div). */
const GridDim = object({
  /**
   * A header word or 1. `tile_rows` are those in whole tiles, and `rest_rows` what is left over where it is a
   * few: of two kernels for the same thing each takes its rows. `plain_rows` is all of them on a device
   * without such, where the others are 0, and `wide_rows` all of them on the others. `lone_row` is 1 where
   * `rest_rows` are 1, and `more_rows` all others. With `head`: the same of n_head. Of the keys of a unit's
   * sequences `plain_keys` are all, and `tile_keys` tiles of 32; `tile_spans` are `div` times these, or the
   * unit's rows, whichever is more. Of attention `tile_groups` are tiles of rows,
   * `few_splits` splits of single rows, and `few_merges` those rows that have several.
   * `candidate_head` is n_head on a device that picks candidates, and 0 on others.
   */
  count: oneOf([
    "one",
    "n_rows",
    "n_head",
    "plain_keys",
    "tile_keys",
    "tile_spans",
    "tile_rows",
    "rest_rows",
    "plain_rows",
    "lone_row",
    "more_rows",
    "wide_rows",
    "tile_head",
    "rest_head",
    "plain_head",
    "wide_head",
    "tile_groups",
    "few_splits",
    "few_merges",
    "candidate_head",
  ]),
  mul: count,
  div: positive,
});
const LaunchEntry = object({
  kernel: text,
  grid: triple(GridDim, "three dimensions"),
  /** Mask bits (adapter branches, flags) of its bodies; empty when it always runs. */
  bits: indices,
  kinds,
});
/** Of launches that do the same thing for different rows: is this the one for many? Others have no such. */
export const isForMany = (l: Of<typeof LaunchEntry>): boolean =>
  !l.grid.some((g) => /^(plain|few|rest|lone)_/.test(g.count));
/** Does it run in a step of a lone row, on a device with kernels for a few? */
export const isForOne = (l: Of<typeof LaunchEntry>): boolean =>
  !l.grid.some((g) => /^(plain|tile|more)_/.test(g.count));
const block = oneOf(["step", "unit", "update"]);
const ProgramEntry = object({
  name: text,
  region: oneOf(["layer", "outer"]),
  block,
  launches: v.array(LaunchEntry),
});
const BlockEntry = object({ kind: block, arrays: record(count), words: count });
/**
 * Words in a layer's group and in the outer group: a chamber of 2 GiB is as large as indices in bytes reach.
 */
const words = number("words of at most 2 GiB", (x) => Number.isInteger(x) && x >= 0 && x < 2 ** 29);
const Chambers = object({ layer: words, outer: words });
/** Words of a matrix's own group: no one binding has them all. */
const OwnChambers = object({ weights: bytes, accum: bytes });
const TargetEntry = object({
  panel: number("8 or 16 columns", (x) => x === 8 || x === 16),
  /** Words that chambers take, whatever a load chooses, and for one of what it chooses (room.ts). */
  room: object({
    weights: Chambers,
    /** Gradients and moments of full training. */
    accum: Chambers,
    /** The arena up to `homes.dh`. */
    arena: words,
    /** Of a layer: a cache block. */
    block: words,
    /** Of a saved row: its last hidden state, and its gradients that cross units (in the arena). */
    hidden: words,
    work: words,
  }),
  /** Memory of its own that each thread of the Wasm target needs; none on WebGPU. */
  scratchWords: words,
  /** Words from the arena's start of what outlives a program; `dh` and `dkv` are parts of a row's `work`. */
  homes: object({
    h: words,
    logits: words,
    dh: words,
    dkv: words,
    rotary: words,
    norms: words,
    /** Null where a device picks none. */
    candidates: v.nullable(words),
  }),
  slots: object({
    /** Words of a page, and of a slot's row of the table. */
    page: words,
    row: words,
    /**
     * Of each branch: where it begins in that row and how many quads it has there; in which of a slot's pages
     * its vectors are, and where in it.
     */
    branches: v.array(object({ at: words, quads: count, page: count, home: words })),
    /** Of each method: a slot's pages of vectors, which are its first, and words of a quad. */
    methods: record(object({ homes: count, quad: words })),
  }),
  jobWords: words,
  /** Groups of single matrices: see `own` of a parameter. */
  own: v.array(OwnChambers),
  layerParams: v.array(ParamEntry),
  outerParams: v.array(ParamEntry),
  factors: v.array(ParamEntry),
  /** Sums of squares of activations that a calibration leaves in a job's accumulators. */
  statistics: v.array(ParamEntry),
  blocks: object({ step: BlockEntry, unit: BlockEntry, update: BlockEntry }),
  header: v.array(text),
  programs: v.array(ProgramEntry),
  /**
   * `quads`: of a device whose lanes exchange what they read, the file to take instead of `file`.
   * `launch`: the numbers that it brings to a module that others share. `runs`: how many of its bodies in
   * turn go through one text, which a pipeline may be of; empty where one has all. `weights`: does it change
   * the base? Only updates of full training do. `shards`: it is over a matrix that is a group of its own, and
   * launched once a shard; `over`, if any, is the dimension of its workgroups that goes over the matrix's
   * rows.
   */
  kernels: record(
    object({
      workgroup: positive,
      file: fileName,
      quads: v.optional(fileName),
      launch: v.pipe(
        v.array(count),
        v.check((l) => l.length <= 4 * LAUNCH_VECTORS, `at most ${4 * LAUNCH_VECTORS} numbers`),
      ),
      runs: v.array(positive),
      weights: oneOf(["read", "written"]),
      shards: v.nullable(object({ of: count, over: v.nullable(oneOf(["x", "y"])) })),
    }),
  ),
});
/** The most that a load may choose: what kernels address behind their norms lies behind so many. */
export const MOST_JOBS = 16;
const CapacityEntry = object({
  tokens: positive,
  sequences: positive,
  context: positive,
  headRows: positive,
  blocks: positive,
  slots: positive,
  pages: positive,
  jobs: positive,
  rank: positive,
  experts: count,
  savedRows: positive,
  keptRows: positive,
  quantum: positive,
  unitRows: positive,
  units: positive,
  s2ft: v.nullable(object({ sites: v.array(text), parameters: v.exactOptional(positive) })),
});

/** How a model's makers sample from it. */
const GenerationEntry = object({
  temperature: v.exactOptional(atLeast0),
  topK: v.exactOptional(count),
  topP: v.exactOptional(above0),
  minP: v.exactOptional(atLeast0),
  repetitionPenalty: v.exactOptional(above0),
});

const frequencies = numbers("a finite number", Number.isFinite);
/** A rotary table: of the pairs (i, i + half) of a head's first dims, how fast each turns. */
const RopeEntry = object({
  /** Radians a position, of each pair, in f64; 0 does not turn. */
  inverseFrequencies: frequencies,
  /** What cosines and sines are multiplied by. */
  scale: finite,
  /** LongRoPE: other frequencies, for bundles with room for more positions than `beyond`. */
  long: v.exactOptional(object({ beyond: positive, inverseFrequencies: frequencies })),
});

export const ManifestSchema = object({
  format: exactly(BUNDLE_FORMAT),
  version: exactly(BUNDLE_VERSION),
  /** The model by value (BaseHash), however it is stored: what an adapter is trained on. */
  base: sha256Hex,
  model: object({
    family: text,
    hiddenSize: positive,
    layers: positive,
    heads: positive,
    kvHeads: positive,
    headDim: positive,
    ffn: positive,
    vocab: positive,
    context: positive,
    tied: boolean,
    /** The formats of its matrices, in one word: `q4+int8`. */
    format: text,
    /** What rounding to them took: of sampled rows, root of the squared error by the squares. 0: nothing. */
    rounding: atLeast0,
    eps: above0,
    /** Ids that end an answer; the first ends a training row. */
    eos: indices,
    /** Rotary tables: all layers turn by the first, or each says by which. None: nothing turns. */
    ropes: v.array(RopeEntry),
    parameters: bytes,
    /** Other numbers that the maths depends on, as part of what a base is known by. */
    constants: record(finite),
    /** Integers that differ between layers: positions that a row sees, the table it turns by, its kind. */
    perLayer: object({
      window: v.exactOptional(indices),
      rope: v.exactOptional(indices),
      kind: v.exactOptional(indices),
    }),
  }),
  /** What generation_config.json asks for; nothing applies it unasked. */
  generation: GenerationEntry,
  /**
   * S2FT's channels of the class `permuted`, by layer, in the order of the device: feed-forward channels, key
   * heads with what belongs to them, and each expert's channels.
   */
  selection: v.nullable(
    object({
      layers: v.array(object({ ffn: indices, groups: indices, experts: v.exactOptional(v.array(indices)) })),
      selector: text,
    }),
  ),
  /**
   * The adapter that was fitted to what rounding took: how, on how many tokens of a calibration; how many
   * experts, of all layers, none of them reached. On some of these tokens, the mean loss of labels in the
   * model as its checkpoint has it, rounded, and rounded and corrected; and of the two, how far what follows
   * is from that of the first (Kullback-Leibler, nats a token).
   */
  correction: v.nullable(
    object({
      method: text,
      rank: positive,
      tokens: positive,
      unreached: v.exactOptional(positive),
      loss: object({ exact: finite, rounded: finite, corrected: finite }),
      divergence: object({ rounded: finite, corrected: finite }),
    }),
  ),
  policy: text,
  /** How the cache holds keys and values. */
  kv: oneOf(kvNames),
  /** What products with matrices are made of. */
  products: oneOf(productNames),
  /** What jobs can train: adapter methods, or `full` for every base tensor (exclusive). */
  train: v.array(text),
  /** Optimizers by index, and what an update is told in the order of its words. */
  updates: object({ optimizers: v.array(text), words: v.array(text) }),
  capacities: CapacityEntry,
  sites: v.array(SiteEntry),
  methods: record(MethodEntry),
  branches: v.array(BranchEntry),
  /** Saved activations: fields and bytes a token a layer per training class. */
  saved: record(
    object({
      fields: v.array(object({ name: text, cols: positive, index: text, offset: count, kinds })),
      /** Words of a row's records in a layer: the fields indexed by save_row, and by ext_row. */
      words: object({ boundary: words, kept: words }),
      bytes: object({ naive: finite, read: finite, all: finite, boundary: finite }),
    }),
  ),
  /**
   * Checkpoint names of a layer's parameters, with `{l}` for the layer, and of the outer region's; what the
   * paths of a layer's modules begin with; which outer parameter has a row for each token.
   */
  checkpoint: object({
    layer: record(text),
    outer: record(text),
    modules: text,
    embedding: text,
    /** Matrices of a layer that checkpoints have as [in, out]. */
    transposed: v.array(text),
  }),
  tensors: v.array(TensorEntry),
  tokenizer: boolean,
  chatTemplate: boolean,
  targets: object({ wasm: v.exactOptional(TargetEntry), webgpu: v.exactOptional(TargetEntry) }),
  files: record(FileEntry, fileName),
});

export type FileEntry = Of<typeof FileEntry>;
export type TensorEntry = Of<typeof TensorEntry>;
export type Chambers = Of<typeof OwnChambers>;
export type ParamEntry = Of<typeof ParamEntry>;
/**
 * Channels that a bundle may keep in an order of its own; `heads` are query heads, in groups that share a key
 * head.
 */
export type ChannelAxis = v.InferOutput<typeof ChannelAxis>;
export type SiteEntry = Of<typeof SiteEntry>;
/** A tensor of a branch: [rows in use, cols] in a slot. */
export type BranchTensor = Of<typeof BranchTensor>;
/** One adapter method at one site of a layer. */
export type BranchEntry = Of<typeof BranchEntry>;
/** What the runtime must know about an adapter method beside its kernels. */
export type MethodEntry = Of<typeof MethodEntry>;
export type TermEntry = Of<typeof TermEntry>;
export type GridDim = Of<typeof GridDim>;
export type LaunchEntry = Of<typeof LaunchEntry>;
export type ProgramEntry = Of<typeof ProgramEntry>;
export type BlockEntry = Of<typeof BlockEntry>;
export type TargetEntry = Of<typeof TargetEntry>;
export type RopeEntry = Of<typeof RopeEntry>;
export type GenerationEntry = Of<typeof GenerationEntry>;
export type CapacityEntry = Of<typeof CapacityEntry>;
export type Manifest = Of<typeof ManifestSchema>;
