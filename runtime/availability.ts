/**
 * What a load would do here, before anything beyond the manifest is fetched: which target plays the bundle
 * and why, what that takes in memory and storage, and what would not fit.
 */
import { type Manifest, type Sizes, sizeNames, WeftError } from "./bundle.ts";
import { mayHaveGpu } from "./dawn.ts";
import { readManifest } from "./load.ts";
import { urlOf } from "./local.ts";
import type { DeviceChoice } from "./open.ts";
import { openReader, type Place, type ReadOptions } from "./reader.ts";
import { noDevice } from "./refused.ts";
import type { Storage } from "./storage/cache.ts";
import type { WasmOptions } from "./wasm.ts";

export interface Availability {
  /** Would it load? */
  readonly ok: boolean;
  /** What would not fit, or is missing: what `load` would throw. */
  readonly problems: readonly WeftError[];
  readonly target: "webgpu" | "wasm";
  /** Why that target. */
  readonly why: string;
  /** Bytes that the device would take, in all and by purpose; null where not even the least fits. */
  readonly memory: { readonly total: number; readonly bytes: Readonly<Record<string, number>> } | null;
  /**
   * Sizes that the load would choose: less than `meant` where there is no room for that. Where sizes that
   * were asked for do not fit, those that would without asking; null where none do.
   */
  readonly capacities: Sizes | null;
  /** Sizes that the bundle is meant for. */
  readonly meant: Sizes;
  /** Of bundles at addresses that would be kept. */
  readonly storage: Storage | null;
}
interface Room {
  readonly sizes: Sizes;
  readonly bytes: Readonly<Record<string, number>>;
  readonly total: number;
}
type Plan = (options: WasmOptions) => Promise<Room>;

/** The target of a load, as `openDevice` chooses it. */
async function targetOf(
  choice: DeviceChoice,
  m: Manifest,
): Promise<{ target: "webgpu" | "wasm"; why: string; plan: Plan | WeftError }> {
  const wasm: Plan = async (options) => (await import("./wasm.ts")).planWasm(m, options);
  const onWasm = (why: string) => ({ target: "wasm", why, plan: wasm }) as const;
  if (choice === "wasm") return onWasm("it was asked for");
  if (choice === "auto" && !m.targets.webgpu) return onWasm("the bundle has no other target");
  if (choice === "auto" && !(await mayHaveGpu())) return onWasm("there is no WebGPU here");
  const { findAdapter, nameOf, planWebGpu } = await import("./webgpu.ts");
  const adapter = await findAdapter(choice === "software" ? "software" : "hardware");
  if (!adapter) {
    if (choice === "auto") return onWasm("WebGPU has no adapter on hardware here");
    return { target: "webgpu", why: "it was asked for", plan: noDevice(choice) };
  }
  return {
    target: "webgpu",
    why: choice === "auto" ? `WebGPU has ${nameOf(adapter)}` : "it was asked for",
    plan: async (options) => planWebGpu(m, adapter, options),
  };
}
/** Files that a load on a target reads. */
function filesFor(m: Manifest, target: "webgpu" | "wasm"): Manifest["files"] {
  const own = target === "wasm" ? "kernels\\.wasm" : "kernels/.*\\.wgsl";
  const needed = new RegExp(`^(weights/.*|host\\.wasm|config\\.json|tokenizer.*\\.json|.*\\.jinja|${own})$`);
  return Object.fromEntries(Object.entries(m.files).filter(([name]) => needed.test(name)));
}

export async function look(
  location: Place,
  choice: DeviceChoice,
  options: WasmOptions,
  read: ReadOptions,
): Promise<Availability> {
  const problems: WeftError[] = [];
  const attempt = async <T>(work: () => Promise<T>): Promise<T | null> => {
    try {
      return await work();
    } catch (e) {
      if (!(e instanceof WeftError)) throw e;
      problems.push(e);
      return null;
    }
  };
  const url = typeof location === "string" || location instanceof URL ? urlOf(String(location)) : null;
  const cache = url && read.cache !== false ? await import("./storage/cache.ts") : null;
  const name = typeof read.cache === "string" ? read.cache : undefined;
  const kept = url && cache ? await cache.lookAt(url, name, read) : null;
  const reader = kept?.reader ?? (await openReader(location, { ...read, cache: false }));
  const m = await readManifest(reader);
  const { target, why, plan } = await targetOf(choice, m);

  let room: Room | null = null;
  if (plan instanceof WeftError) problems.push(plan);
  else {
    room = await attempt(() => plan(options));
    // What was asked for does not fit: what would?
    if (!room && options.capacities)
      room = await plan({ ...options, capacities: undefined }).catch((e: unknown) => {
        if (e instanceof WeftError) return null;
        throw e;
      });
  }
  const asked = problems.length === 0;
  let storage: Storage | null = null;
  if (kept && cache) {
    const files = filesFor(m, target);
    const { stored, free } = await kept.room(files);
    const download = Object.values(files).reduce((n, f) => n + f.bytes, 0) - stored;
    storage = { download, stored, free };
    if (free !== null && download > free)
      problems.push(cache.noRoom(`storage for ${m.base.slice(0, 12)}`, download, free));
  }
  return {
    ok: problems.length === 0,
    problems,
    target,
    why,
    memory: room && asked ? { total: room.total, bytes: room.bytes } : null,
    capacities: room?.sizes ?? null,
    meant: Object.fromEntries(sizeNames.map((n) => [n, m.capacities[n]])) as Sizes,
    storage,
  };
}
