/** Options of `compile`, each described once. Unknown keys and wrong values are refused with WEFT_OPTION. */
import * as v from "valibot";
import { kvNames, productNames } from "../runtime/bundle.ts";
import {
  boolean,
  bytes,
  callback,
  type Of,
  object,
  oneOf,
  positive,
  record,
  text,
  tokenIds,
} from "../runtime/schema.ts";
import { correctionNames } from "./corrections/index.ts";
import { askable, type FormatOption } from "./formats.ts";
import type { Capacities } from "./target.ts";

const names = v.array(text);
/** The error is of the shape that was given. */
const format = v.lazy(
  (x): v.GenericSchema<unknown, FormatOption> =>
    typeof x === "object" ? record(oneOf(askable)) : oneOf(askable),
);
export const compileEntries = {
  /** Default: both. */
  targets: v.optional(v.array(oneOf(["wasm", "webgpu"]))),
  /** What jobs can train: adapter methods, `full`. Default: lora. */
  train: v.optional(names),
  /** Adapter methods that requests can use, beside those that are trained. Default: lora. */
  methods: v.optional(names),
  /**
   * How matrices are stored: one format for all, or by module (`{ default: "q4", embed_tokens: "int8" }`).
   * Default: `keep`, each in the format that holds it as its checkpoint has it, or loses least; f32 to train
   * `full`.
   */
  format: v.optional(format),
  /**
   * How the cache holds keys and values: `f16` takes half the memory and is a class of numerics of its own.
   * Default: f32.
   */
  kv: v.optional(oneOf(kvNames)),
  /**
   * Also emit the Wasm kernels with fused multiply-adds, which machines with relaxed SIMD take: faster, and a
   * class of numerics of its own. Default: no.
   */
  relaxed: v.optional(boolean),
  /**
   * What products with matrices are made of, each a class of numerics of its own. `integers`: int8 and q4 as
   * they are; what they multiply is rounded (to 16 bits on Wasm, to 15 on WebGPU), every 32 values with a
   * scale of their own. `matrix`, on WebGPU alone: both sides rounded to f16, for matrix units. Default: f32.
   */
  products: v.optional(oneOf(productNames)),
  /** Which policy grants steps. Default coserve. */
  policy: v.optional(text),
  /**
   * S2FT's class `permuted`: the channels that its adapters train, which the device then keeps first (`weft
   * compile --calibrate` chooses them). Default: none.
   */
  selection: v.optional(
    object({
      layers: v.array(
        object({ ffn: tokenIds, groups: tokenIds, experts: v.exactOptional(v.array(tokenIds)) }),
      ),
      selector: text,
    }),
  ),
  /**
   * Fit an adapter of the largest rank to what rounding takes of the matrices, by these rows (ids and
   * labels): `eora` or `lrec` (compiler/corrections). Default: none.
   */
  correction: v.optional(
    object({
      method: oneOf(correctionNames),
      rows: v.array(object({ input_ids: tokenIds, labels: v.array(v.number()), at: v.exactOptional(text) })),
    }),
  ),
  /** What the bundle has room for (target.ts), each with its default. */
  capacities: v.optional(
    v.custom<Partial<Capacities>>((x) => typeof x === "object" && x !== null, "an object"),
  ),
  /** Off: every node is a kernel of its own. Same bits, more launches. Default: on. */
  fuse: v.optional(boolean),
  /**
   * Take compiled kernels from the user's cache, and keep them there (`WEFT_CACHE` names the folder).
   * Default: on.
   */
  cache: v.optional(boolean),
  /**
   * Optimise modules little, and give kernels of CPUs behind WebGPU small tiles: a quarter of the time to
   * compile, and slower to run. The same bits. For trials. Default: off.
   */
  quick: v.optional(boolean),
  /** Overrides of a target's limits, for tests of small devices. */
  limits: v.optional(
    object({ bindingBytes: v.exactOptional(bytes), workgroupInvocations: v.exactOptional(positive) }),
  ),
  /** Hears what is done of each phase. */
  onProgress: v.optional(callback<(p: { phase: string; done: number; total: number }) => void>()),
};
export const CompileOptions = object(compileEntries);
export type CompileOptions = Of<typeof CompileOptions>;
