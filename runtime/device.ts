/**
 * What plays a bundle's command list: chambers of memory, and kernels over them. One file a target implements
 * it.
 */
import {
  type KvFormat,
  type MemorySpace,
  type ParamEntry,
  type Plan,
  type Products,
  type ProgramEntry,
  type products,
  type Sizes,
  WeftError,
} from "./bundle.ts";

export { type MemorySpace, memorySpaces } from "./contract.ts";

/** What computes, what products are made of (of f16 also where no unit makes them), how the cache rounds. */
export type Numerics = `${"wasm" | "wasm relaxed" | "webgpu"}${OfProducts}${KvFormat["numerics"]}`;
type OfProducts = (typeof products)[Products] | " matrix plain";

export interface DeviceInfo {
  readonly target: "wasm" | "webgpu";
  /** Results are the same bits within a class (on one machine), and close across classes. */
  readonly numerics: Numerics;
  /** What computes: adapter name, or the CPU. */
  readonly name: string;
  readonly software: boolean;
}
/** What launches of one kernel took in a list, by the device's own clock. */
export interface KernelTime {
  readonly kernel: string;
  readonly launches: number;
  readonly ms: number;
}
/** A range of one chamber, in words. */
export interface Range {
  readonly space: MemorySpace;
  /** Layer index; the number of layers for the outer group; behind it, those of single matrices. */
  readonly group: number;
  readonly offset: number;
  readonly words: number;
  /** Whose arena it is, and whose lists it comes after; 0 when left out. */
  readonly lane?: number;
}
/** Which of the kernels for the same thing serve how many rows. */
export interface Families {
  /**
   * Rows beside whole tiles that products for a few rows take at most; attention then takes single rows by
   * splits. 0: tiles take all rows; null: plain kernels do.
   */
  readonly fewRows: number | null;
}
/** What a device whose kernels are compiled where they run leaves for later than its load. */
export interface Later {
  /**
   * Compile what such programs launch and has not been. Throws WEFT_DEVICE for a kernel that the device
   * refuses.
   */
  prepare(programs: readonly ProgramEntry[]): Promise<void>;
  /**
   * A device over the same weights and kernels, with memory of its own: of such sizes, for the first `layers`
   * layers. What is let go with it is that memory.
   */
  apart(sizes: Sizes, layers: number): Promise<Device>;
}
/**
 * A lane plays command lists one after another, with an arena and metadata of its own. A device with two
 * plays two lists at once, on threads of their own: requests have the first lane, jobs the last. What the
 * lists of both may touch is the caller's to keep apart.
 */
export interface Device {
  readonly info: DeviceInfo;
  readonly plan: Plan;
  /** What was chosen when it was opened. */
  readonly sizes: Sizes;
  readonly families: Families;
  readonly lanes: number;
  /**
   * Does it pick candidates out of logits rows, so that not all of a row is read back? Who computes on the
   * memory that is read has nothing to gain.
   */
  readonly picks: boolean;
  /**
   * What tells its adapter from others, where which kernels serve how many rows is to be measured; else null.
   */
  readonly tunes: string | null;
  /** Null where all kernels are there from the start. */
  readonly later: Later | null;
  /** Bytes held, by memory space. */
  readonly memory: Readonly<Record<string, number>>;
  /**
   * Since the device was opened: kernels launched, and milliseconds spent turning commands into launches
   * (none on Wasm, where a launch is a call); lists that were encoded before they were asked for. Of the list
   * that was played last: what its kernels took, where `timestamps` asked for that.
   */
  readonly stats: {
    launches: number;
    encodeMs: number;
    ahead: number;
    kernels: readonly KernelTime[] | null;
  };
  write(at: Omit<Range, "words">, data: Float32Array | Uint32Array | Int32Array): void;
  clear(range: Range): void;
  /** Run commands (six words each) over the metadata, then read ranges back in order. */
  run(
    lane: number,
    commands: Int32Array,
    meta: Uint32Array,
    reads: readonly Range[],
  ): Promise<Float32Array[]>;
  /** A lane has nothing to run for now: the other may have its threads. */
  rest(lane: number): void;
  read(range: Range): Promise<Float32Array>;
  /** Several ranges of one lane, in order: one trip to the device instead of one a range. */
  readAll(ranges: readonly Range[]): Promise<Float32Array[]>;
  /**
   * Resolves with why, once the device can compute no more (a thread died, the adapter is gone); may stay
   * pending after `dispose`. Never rejects.
   */
  readonly lost: Promise<WeftError>;
  /** Let go of threads and memory; resolves when they are gone. What runs never answers, or rejects. */
  dispose(): Promise<void>;
}

/** Words of a class in a group. */
export function chamberWords(plan: Plan, layers: number, space: MemorySpace, group: number): number {
  if (space === "meta") return plan.metaWords;
  if (space === "arena") return plan.arenaWords;
  if (group > layers) {
    const own = plan.own[group - layers - 1]!;
    return space === "weights" || space === "accum" ? own[space] : 0;
  }
  return group === layers ? plan.spaces[space].outer : plan.spaces[space].layer;
}
export const isShared = (space: MemorySpace): boolean => space === "meta" || space === "arena";

export const paramNamed = (params: readonly ParamEntry[], name: string): ParamEntry => {
  const p = params.find((x) => x.name === name);
  if (!p)
    throw new WeftError({
      code: "WEFT_BUNDLE",
      where: "manifest",
      expected: `a parameter ${name}`,
      found: "none",
    });
  return p;
};

/** What a load may say of memory. */
export interface RoomOptions {
  /** Bytes that the device may take. Default: as much as the bundle is meant for, or as there is. */
  readonly memory?: number | undefined;
  /**
   * Bytes of a shard of an embedding or a head on WebGPU, at most. Default: what the device binds. A smaller
   * one changes no result.
   */
  readonly shard?: number | undefined;
  /** Some of the sizes themselves. */
  readonly capacities?: Partial<Sizes> | undefined;
}

/**
 * Progress of loading: what is done of what is to do, in units of the phase's own. `fetch` and `upload` count
 * bytes of weights, and take turns, a file after the other; what came from a cache counts as fetched. `fetch`
 * begins with a total of 0, before the manifest is there.
 */
export interface LoadProgress {
  readonly phase: "fetch" | "plan" | "upload" | "check" | "ready";
  readonly done: number;
  readonly total: number;
  /** With `plan`, before anything is allocated: bytes by memory space; `total` is their sum. */
  readonly bytes?: Readonly<Record<string, number>>;
}
export function planProgress(bytes: Readonly<Record<string, number>>): LoadProgress {
  return { phase: "plan", done: 0, total: Object.values(bytes).reduce((a, b) => a + b, 0), bytes };
}
