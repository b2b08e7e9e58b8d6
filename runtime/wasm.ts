/**
 * The Wasm target: every chamber in one linear memory of fixed size; kernels called one after another, by one
 * thread or by a crew of them.
 */
import {
  kvFormats,
  type Limits,
  type Manifest,
  type Measure,
  type Plan,
  planOf,
  products,
  showBytes,
  sizesFor,
  WeftError,
} from "./bundle.ts";
import { crewBytes, openCrew, threadsHere } from "./crew.ts";
import {
  chamberWords,
  type Device,
  isShared,
  type LoadProgress,
  type MemorySpace,
  memorySpaces,
  planProgress,
  type Range,
  type RoomOptions,
} from "./device.ts";
import { limitsHere } from "./memory.ts";
import { MAX_THREADS } from "./options.ts";
import { STEP_TIMEOUT } from "./supervise.ts";
import { turn } from "./turn.ts";

type Kernel = (bind: number, meta: number, scratch: number, part: number, parts: number) => void;
const PAGE = 65536;
/** Of a memory that 32 bits address. */
const MOST_PAGES = 65536;
/** Without threads of its own a device lets the event loop run this often, milliseconds. */
const SLICE_MS = 8;

export interface WasmOptions extends RoomOptions {
  /**
   * Threads that compute; 1 computes where the engine is. Default: as many as the machine has cores. Results
   * are the same bits for any number.
   */
  readonly threads?: number | undefined;
  /**
   * Command lists that run side by side: 2 (the default from two threads on) gives jobs a list of their own
   * beside the requests', 1 puts both in one. Results are the same bits.
   */
  readonly lanes?: number | undefined;
  /**
   * Kernels with fused multiply-adds, a class of numerics of its own. Default: where the bundle has them and
   * the machine can.
   */
  readonly relaxed?: boolean | undefined;
  /** Hears the memory plan before memory is taken. */
  readonly onProgress?: ((p: LoadProgress) => void) | undefined;
  /** Milliseconds that threads may take to start; 0: as long as they want. */
  readonly stepTimeout?: number | undefined;
  readonly signal?: AbortSignal | undefined;
}

/** Can this engine run relaxed SIMD? A function of one relaxed multiply-add. */
export const hasRelaxed = (): boolean =>
  WebAssembly.validate(
    // biome-ignore format: one section a line
    Uint8Array.of(
      0, 0x61, 0x73, 0x6d, 1, 0, 0, 0,
      1, 5, 1, 0x60, 0, 1, 0x7b,
      3, 2, 1, 0,
      10, 19, 1, 17, 0, 0x41, 0, 0xfd, 15, 0x41, 0, 0xfd, 15, 0x41, 0, 0xfd, 15, 0xfd, 0x85, 2, 11,
    ),
  );

/** Where everything lies in memory, bytes. */
function planMemory(
  plan: Plan,
  layers: number,
  threads: number,
  lanes: number,
): { base: ReadonlyMap<string, number>; bytes: Readonly<Record<string, number>>; pages: number } {
  const base = new Map<string, number>();
  const bytes: Record<string, number> = {};
  let at = 0;
  const place = (name: string, space: string, size: number): void => {
    base.set(name, at);
    bytes[space] = (bytes[space] ?? 0) + size;
    at += Math.ceil(size / 256) * 256;
  };
  // Bind records, one of eight words a group: where its chambers are, and the lane's own.
  for (let lane = 0; lane < lanes; lane++) place(`bind.${lane}`, "tables", (layers + 1) * 32);
  place("control", "tables", crewBytes(threads, lanes));
  place("scratch", "scratch", threads * plan.scratchWords * 4);
  for (let lane = 0; lane < lanes; lane++)
    for (const space of memorySpaces)
      if (isShared(space)) place(`${space}.${lane}`, space, chamberWords(plan, layers, space, 0) * 4);
  for (let g = 0; g <= layers; g++)
    for (const space of memorySpaces)
      if (!isShared(space)) place(`${space}.${g}`, space, chamberWords(plan, layers, space, g) * 4);
  return { base, bytes, pages: Math.ceil(at / PAGE) + 1 };
}

/** What is zeros is left alone: pages that nobody wrote take no memory. */
function clearWords(words: Uint32Array, from: number, to: number): void {
  const step = PAGE / 4;
  for (let at = from; at < to; at += step) {
    const end = Math.min(to, at + step);
    let i = at;
    while (i < end && words[i] === 0) i++;
    if (i < end) words.fill(0, i, end);
  }
}

/** One memory of 32-bit addresses. */
export const wasmLimits: Limits = { memory: MOST_PAGES * PAGE, chamber: MOST_PAGES * PAGE };
export const measureWasm =
  (layers: number, threads: number, lanes: number): Measure =>
  (plan) => {
    const { bytes, pages } = planMemory(plan, layers, threads, lanes);
    return { bytes, total: pages * PAGE, largest: [0, ""] };
  };

/**
 * The module with its memory import declared unshared, for places where memory cannot be shared: the limits'
 * flag is 3 (a maximum, shared) or 1.
 */
function unshared(module: Uint8Array): Uint8Array {
  const out = module.slice();
  let at = 8;
  const number = (): number => {
    let n = 0;
    for (let shift = 0; ; shift += 7) {
      const b = out[at++] ?? 0;
      n |= (b & 127) << shift;
      if (b < 128) return n;
    }
  };
  const skip = (): void => {
    const n = number();
    at += n;
  };
  while (at < out.length) {
    if (out[at++] !== 2) {
      skip();
      continue;
    }
    number();
    if (number() === 1) {
      skip();
      skip();
      if (out[at] === 2 && out[at + 1] === 3) {
        out[at + 1] = 1;
        return out;
      }
    }
    break;
  }
  throw new WeftError({
    code: "WEFT_BUNDLE",
    where: "kernels.wasm",
    expected: "one import, a shared memory",
    found: "none",
  });
}

/**
 * What a load of these options would take: threads, sizes, and where everything lies. Throws WEFT_CAPACITY
 * when not even the smallest fits (the limit is 4 GiB), WEFT_OPTION and WEFT_DEVICE for threads that cannot
 * be.
 */
export async function planWasm(manifest: Manifest, options: WasmOptions = {}) {
  const here = await threadsHere();
  const threads = options.threads ?? Math.min(here, MAX_THREADS);
  if (!Number.isInteger(threads) || threads < 1 || threads > MAX_THREADS)
    throw new WeftError({
      code: "WEFT_OPTION",
      where: "threads",
      expected: `an integer from 1 to ${MAX_THREADS}`,
      found: String(threads),
    });
  const shared = typeof SharedArrayBuffer === "function";
  if (threads > 1 && (!shared || (here === 1 && typeof process === "undefined")))
    throw new WeftError({
      code: "WEFT_DEVICE",
      where: "threads",
      expected: "memory that threads can share",
      found: "a page that is not cross-origin isolated",
      hint:
        "serve it with Cross-Origin-Opener-Policy: same-origin and Cross-Origin-Embedder-Policy: " +
        "require-corp, " +
        "or leave threads out",
    });
  const most = threads > 1 && manifest.train.length ? 2 : 1;
  const lanes = options.lanes ?? most;
  if (!Number.isInteger(lanes) || lanes < 1 || lanes > 2)
    throw new WeftError({ code: "WEFT_OPTION", where: "lanes", expected: "1 or 2", found: String(lanes) });
  if (lanes > most)
    throw new WeftError({
      code: "WEFT_OPTION",
      where: "lanes",
      expected: "1: what one list runs needs no other",
      found: String(lanes),
      hint: threads > 1 ? "compile with --train" : "a second list needs a second thread",
    });
  const { layers } = manifest.model;
  const limits = limitsHere(wasmLimits, options.memory);
  const sizes = sizesFor(manifest, "wasm", options, limits, measureWasm(layers, threads, lanes));
  const plan = planOf(manifest, "wasm", sizes);
  const memory = planMemory(plan, layers, threads, lanes);
  return { threads, shared, lanes, sizes, plan, ...memory, total: memory.pages * PAGE };
}

/** Start a device for the bundle's `wasm` plan. Throws as `planWasm`, and for what the machine refuses. */
export async function openWasm(
  manifest: Manifest,
  bytesOfModule: Uint8Array,
  options: WasmOptions = {},
): Promise<Device> {
  const { threads, shared, lanes, sizes, plan, base, bytes, pages } = await planWasm(manifest, options);
  const { layers } = manifest.model;
  options.onProgress?.(planProgress(bytes));
  let memory: WebAssembly.Memory;
  try {
    memory = new WebAssembly.Memory({ initial: pages, maximum: pages, shared });
  } catch (cause) {
    throw new WeftError({
      code: "WEFT_DEVICE",
      where: "wasm memory",
      expected: showBytes(pages * PAGE),
      found: (cause as Error).message,
      cause,
    });
  }
  const module = await WebAssembly.compile(
    (shared ? bytesOfModule : unshared(bytesOfModule)) as BufferSource,
  ).catch((cause: Error) => {
    throw new WeftError({
      code: "WEFT_BUNDLE",
      where: "kernels.wasm",
      expected: "a WebAssembly module",
      found: cause.message,
      cause,
    });
  });
  const names = Object.keys(plan.kernels);
  const exported = new Set(
    WebAssembly.Module.exports(module).flatMap((e) => (e.kind === "function" ? [e.name] : [])),
  );
  const missing = names.filter((n) => !exported.has(n));
  if (missing.length)
    throw new WeftError({
      code: "WEFT_BUNDLE",
      where: "kernels.wasm",
      expected: `exports ${missing.join(", ")}`,
      found: "none",
    });
  const words = new Uint32Array(memory.buffer);
  const floats = new Float32Array(memory.buffer);
  const addressOf = (space: MemorySpace, group: number, lane: number): number =>
    base.get(`${space}.${isShared(space) ? lane : group}`)!;
  const places = Array.from({ length: lanes }, (_, lane) => ({
    bind: base.get(`bind.${lane}`)!,
    meta: addressOf("meta", 0, lane),
  }));
  for (const [lane, { bind }] of places.entries())
    for (let g = 0; g <= layers; g++)
      for (const [i, space] of memorySpaces.entries())
        words[bind / 4 + g * 8 + i] = addressOf(space, g, lane);
  const scratch = base.get("scratch")!;

  let play: (lane: number, commands: Int32Array) => Promise<void>;
  let rest = (_lane: number): void => {};
  let lost = new Promise<WeftError>(() => {});
  let disposed = false;
  let dispose = async (): Promise<void> => {};
  if (threads > 1) {
    const crew = await openCrew({
      module,
      memory,
      kernels: names,
      control: base.get("control")!,
      lanes: places,
      scratch,
      scratchBytes: plan.scratchWords * 4,
      threads,
      signal: options.signal,
      timeout: options.stepTimeout ?? STEP_TIMEOUT,
    });
    ({ play, rest, lost, dispose } = crew);
  } else {
    const { exports } = await WebAssembly.instantiate(module, { env: { memory } });
    const kernels = names.map((n) => exports[n] as Kernel);
    const { bind, meta } = places[0]!;
    play = async (_lane, commands) => {
      let since = performance.now();
      for (let i = 0; i < commands.length; i += 6) {
        kernels[commands[i]!]!(bind + commands[i + 1]! * 32, meta + commands[i + 2]!, scratch, 0, 1);
        if (performance.now() - since < SLICE_MS) continue;
        await turn();
        if (disposed) return;
        since = performance.now();
      }
    };
  }
  // What is written, cleared or read while a lane plays a list waits for its end, as on any queue.
  const queues = places.map(() => ({ busy: null as Promise<unknown> | null, later: [] as (() => void)[] }));
  const queueOf = (lane = 0): (typeof queues)[number] => queues[lane]!;
  const inOrder = (lane: number | undefined, f: () => void): void => {
    const { busy, later } = queueOf(lane);
    if (busy) later.push(f);
    else f();
  };
  const wordAt = (r: Omit<Range, "words">): number => addressOf(r.space, r.group, r.lane ?? 0) / 4 + r.offset;
  const slice = (r: Range): Float32Array => floats.slice(wordAt(r), wordAt(r) + r.words);
  const stats = { launches: 0, encodeMs: 0, ahead: 0, kernels: null };
  const kv = kvFormats[manifest.kv].numerics;
  const many = `${threads} thread${threads > 1 ? "s" : ""}`;
  return {
    stats,
    info: {
      target: "wasm",
      numerics: `${options.relaxed ? "wasm relaxed" : "wasm"}${products[manifest.products]}${kv}`,
      name: `CPU (${options.relaxed ? "relaxed " : ""}SIMD WebAssembly, ${many})`,
      software: false,
    },
    plan,
    sizes,
    families: { fewRows: null },
    picks: false,
    tunes: null,
    lanes,
    later: null,
    memory: bytes,
    write: (where, data) => {
      const copy = queueOf(where.lane).busy ? data.slice() : data;
      inOrder(where.lane, () =>
        words.set(new Uint32Array(copy.buffer, copy.byteOffset, copy.length), wordAt(where)),
      );
    },
    clear: (r) => inOrder(r.lane, () => clearWords(words, wordAt(r), wordAt(r) + r.words)),
    run: async (lane, commands, block, reads) => {
      const queue = queueOf(lane);
      while (queue.busy) await queue.busy;
      stats.launches += commands.length / 6;
      words.set(block, places[lane]!.meta / 4);
      const played = play(lane, commands)
        .then(() => reads.map(slice))
        .finally(() => {
          queue.busy = null;
          for (const f of queue.later.splice(0)) f();
        });
      queue.busy = played.catch(() => {});
      return played;
    },
    rest,
    read: async (r) => {
      const queue = queueOf(r.lane);
      while (queue.busy) await queue.busy;
      return slice(r);
    },
    readAll: async (ranges) => {
      const queue = queueOf(ranges[0]?.lane);
      while (queue.busy) await queue.busy;
      return ranges.map(slice);
    },
    lost,
    dispose: () => {
      disposed = true;
      for (const q of queues) q.later = [];
      return dispose();
    },
  };
}
