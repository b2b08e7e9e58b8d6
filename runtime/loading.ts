/** Opening an engine: what `load` takes, and what it would do here. */
import * as v from "valibot";
import type { Availability } from "./availability.ts";
import { bytesOf, sizeNames } from "./bundle.ts";
import { Engine } from "./engine.ts";
import type { Verdicts } from "./invariance.ts";
import { isNode } from "./node.ts";
import { deviceChoices, openDevice } from "./open.ts";
import { checked, engineEntries, MAX_THREADS, picked } from "./options.ts";
import { type BundleReader, openReader, type Place } from "./reader.ts";
import { boolean, callback, integer, type Of, object, oneOf, positive, record, text } from "./schema.ts";
import { abortable } from "./signals.ts";

type SizeEntries = Record<(typeof sizeNames)[number], v.ExactOptionalSchema<typeof positive, undefined>>;
const memorySize = v.custom<number | string>((x) => bytesOf(x) > 0, "bytes, or a text like 512MB");

/** How an address is read. */
export const remoteEntries = {
  /**
   * Keep a bundle that comes from an address, and read it from there the next time: in a page in its own
   * storage (OPFS, else IndexedDB), in Node in the user's cache (`WEFT_CACHE=off` keeps nothing). A name
   * instead of its address. Default: where something can be kept.
   */
  cache: v.optional(v.union([boolean, text], "yes, no, or a name")),
  /** Instead of the global `fetch`. */
  fetch: v.optional(callback<typeof globalThis.fetch>()),
  /** Headers of every request. */
  headers: v.optional(record(text)),
};
export const LoadOptions = object({
  ...engineEntries,
  ...remoteEntries,
  /** Default `auto`: WebGPU on a hardware adapter, else Wasm. A software adapter only by name. */
  device: v.optional(oneOf(deviceChoices)),
  /**
   * Threads of the Wasm target. Default: as many as the machine has cores (in a page: if it is cross-origin
   * isolated). Never changes a result.
   */
  threads: v.optional(integer(1, MAX_THREADS + 1)),
  /**
   * Command lists that run side by side: 2 (the default of the Wasm target from two threads on) gives jobs a
   * list beside the requests', 1 puts both in one. Never changes a result.
   */
  lanes: v.optional(v.picklist([1, 2], "1 or 2")),
  /**
   * Take the bundle's kernels with fused multiply-adds (`compile --relaxed`). Default: where the machine can.
   * A class of numerics of its own.
   */
  relaxed: v.optional(boolean),
  /**
   * Tell `onStep` what each kernel takes, by the clock of the WebGPU device: needs its `timestamp-query`.
   * Steps take longer meanwhile; never changes a result. Default: no.
   */
  timestamps: v.optional(boolean),
  /**
   * Bytes that the device may take, or a text like "512MB" or "3 GiB". Less than the bundle is meant for
   * makes room for fewer requests and smaller jobs, more for more requests; results are the same bits.
   * Default: what the bundle is meant for, as far as the device has it.
   */
  memory: v.optional(memorySize),
  /**
   * Of adapters: bytes of memory that their numbers may take on the host, or a text like "4GB". Those used
   * least recently are put on disk beyond it (in a page, where there is none, one more is refused). Default:
   * as many as there are.
   */
  adapters: v.optional(object({ memory: v.exactOptional(memorySize) })),
  /** Sizes that are not to follow from `memory`: see `compile`. */
  capacities: v.optional(
    object(Object.fromEntries(sizeNames.map((n) => [n, v.exactOptional(positive)])) as SizeEntries),
  ),
});
export type LoadOptions = Of<typeof LoadOptions>;

/** What of a load is the reader's. */
export const readEntries = { ...remoteEntries, signal: engineEntries.signal };
const isReader = (bundle: Place | BundleReader): bundle is BundleReader =>
  typeof bundle === "object" && "read" in bundle;

/**
 * What `load` would do here with a bundle and these options, before anything beyond the manifest is fetched:
 * which target and why, what it takes, what would not fit. Throws what reading the manifest throws.
 */
export async function availability(bundle: Place, options: LoadOptions = {}): Promise<Availability> {
  checked(LoadOptions, options);
  const { device = "auto", threads, lanes, relaxed, capacities } = options;
  const memory = options.memory === undefined ? undefined : bytesOf(options.memory);
  const { look } = await import("./availability.ts");
  return look(bundle, device, { threads, lanes, relaxed, memory, capacities }, picked(readEntries, options));
}

/** What this process found of bundles on its devices. */
const verdicts: Verdicts = new Map();
/**
 * Load a bundle: a folder, an address, or a reader of it. Throws WeftError before anything is allocated if
 * the bundle is not what its manifest says. An abort rejects at once, in every phase.
 */
export async function openEngine(bundle: Place | BundleReader, options: LoadOptions = {}): Promise<Engine> {
  checked(LoadOptions, options);
  const { device, threads, lanes, relaxed, timestamps, stepTimeout, signal, capacities } = options;
  const memory = options.memory === undefined ? undefined : bytesOf(options.memory);
  const kept = options.adapters?.memory;
  return abortable(
    signal,
    async () =>
      Engine.open(
        isReader(bundle) ? bundle : await openReader(bundle, picked(readEntries, options)),
        (m, file, onProgress) =>
          openDevice(device ?? "auto", m, file, {
            ...{ threads, lanes, relaxed, memory, capacities },
            ...{ timestamps, stepTimeout, signal, onProgress },
          }),
        {
          ...picked(engineEntries, options),
          adapters: kept === undefined ? undefined : { memory: bytesOf(kept) },
        },
        verdicts,
        isNode ? async () => (await import("./spill.ts")).openSpill() : null,
      ),
    (late) => late.dispose(),
  );
}
