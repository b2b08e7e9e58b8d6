/**
 * Where adapters come from: a browser's own WebGPU, or in Node Dawn (the optional `webgpu` package), over a
 * software driver if asked for. In a bundle for pages dawn.page.ts stands in its place.
 */
import { WeftError } from "./errors.ts";
import { askAdapter, type Gpu } from "./gpu.ts";
import { isNode, node } from "./node.ts";
import { loadSoftwareDriver } from "./swiftshader.ts";

/**
 * Disabled, Dawn zeroes workgroups' memory in a loop: of a null constant SwiftShader makes a store for each
 * word, and compiles a kernel with tiles for seconds (docs/measured.md).
 */
export const ZEROED_IN_A_LOOP = "use_vulkan_zero_initialize_workgroup_memory_extension";

/** The user's flags of `WEFT_DAWN`, a space between two, and what a software driver needs. */
function flagsFor(kind: "hardware" | "software"): string[] {
  const flags = (process.env.WEFT_DAWN ?? "").split(" ").filter((f) => f !== "");
  if (kind === "hardware") return flags;
  // Of flags with one name the last counts.
  const disable = "disable-dawn-features=";
  const theirs = flags.findLast((f) => f.startsWith(disable));
  return [...flags, theirs ? `${theirs},${ZEROED_IN_A_LOOP}` : `${disable}${ZEROED_IN_A_LOOP}`];
}

let opened: { readonly kind: "hardware" | "software"; readonly gpu: Gpu } | null = null;

/** Kept alive for the life of the process: Dawn needs that. Null where the package is not installed. */
async function openDawn(kind: "hardware" | "software"): Promise<Gpu | null> {
  if (opened && opened.kind !== kind && kind === "software")
    throw new WeftError({
      code: "WEFT_DEVICE",
      where: "device: software",
      expected: "a process that has not opened hardware WebGPU",
      found: "one that has",
      hint: "use one kind of device a process",
    });
  if (opened) return opened.gpu;
  // A name the bundler does not follow: the package is an optional peer.
  const name = "webgpu";
  const dawn = (await import(name).catch(() => null)) as {
    create: (flags: string[]) => Gpu;
    globals: object;
  } | null;
  if (!dawn) return null;
  Object.assign(globalThis, dawn.globals);
  opened = { kind, gpu: dawn.create(flagsFor(kind)) };
  return opened.gpu;
}

/**
 * An adapter of the wanted kind, of navigator.gpu or of Dawn; null where there is none. Throws WEFT_DEVICE
 * when it cannot be asked for.
 */
export async function openAdapter(kind: "hardware" | "software"): Promise<GPUAdapter | null> {
  const own = typeof navigator === "undefined" ? undefined : (navigator as Partial<Navigator>).gpu;
  if (!own && !isNode) return null;
  const load = !own && kind === "software" && !opened;
  const restore = load ? await loadSoftwareDriver() : () => {};
  if (!restore) return null;
  try {
    return await askAdapter(kind, async () => own ?? openDawn(kind));
  } finally {
    // Drivers are looked for when the first adapter is asked for; later ones come from the same list.
    restore();
  }
}
/**
 * May this machine have a GPU? On Linux one without any device file of one has none: looking for it would
 * only make Vulkan's loader complain on stderr to somebody who did not ask for a GPU.
 */
export async function mayHaveGpu(): Promise<boolean> {
  if (!isNode || process.platform !== "linux") return true;
  const { fs } = await node();
  const names = await Promise.all(["/dev", "/dev/dri"].map((dir) => fs.readdir(dir).catch(() => [])));
  return names.flat().some((name) => /^(renderD\d|nvidia\d|nvidiactl$|dxg$|kfd$|mali\d|kgsl)/.test(name));
}

/** Wait for work of the device that has this queue. */
type Settled = <T>(work: Promise<T>, alive: () => void, queue: GPUQueue) => Promise<T>;
/**
 * Wait for a software device. Dawn in Node asks whether work has finished on every turn of the event loop,
 * with garbage and a finalizer each time: that takes a core from a driver that computes on the same ones, and
 * collections of half a second. So turns are slowed down, by a twentieth of the time waited and at most a
 * millisecond. `alive` throws when there is nothing to wait for any more.
 */
export const settled: Settled = async (work, alive) => {
  if (opened?.kind !== "software") return work;
  const still = new Int32Array(new SharedArrayBuffer(4));
  let pending = true;
  const end = (): void => {
    pending = false;
  };
  work.then(end, end);
  for (const t0 = performance.now(); pending; ) {
    Atomics.wait(still, 0, 0, Math.min(1, (performance.now() - t0) / 20));
    await new Promise((resolve) => setImmediate(resolve));
    alive();
  }
  return work;
};

/**
 * Devices that a process may exit with. Their threads would run on while the driver is unloaded, and crash:
 * destroying waits for them.
 */
const live = new Set<WeakRef<GPUDevice>>();
/** Have `device` destroyed when the process exits; returns what forgets it. */
export function destroyAtExit(device: GPUDevice): () => void {
  if (!opened) return () => {};
  if (!live.size) process.on("exit", destroyAll);
  const ref = new WeakRef(device);
  live.add(ref);
  return () => {
    live.delete(ref);
    if (!live.size) process.off("exit", destroyAll);
  };
}
function destroyAll(): void {
  for (const ref of live) ref.deref()?.destroy();
}
