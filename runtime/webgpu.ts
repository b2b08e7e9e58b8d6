/**
 * The WebGPU target: one bind group a group of chambers, one compute pass a step, metadata by dynamic offset.
 */
import { kvFormats, type Manifest, planOf, products, sizesFor } from "./bundle.ts";
import { openAdapter } from "./dawn.ts";
import {
  type Device,
  type DeviceInfo,
  type Families,
  type Later,
  type LoadProgress,
  planProgress,
  type RoomOptions,
} from "./device.ts";
import { formatOf, planeBytes } from "./formats.ts";
import { limitsHere } from "./memory.ts";
import { isNode } from "./node.ts";
import { servingPrograms } from "./programs.ts";
import { allocate, largestOf, measureWebGpu, shardsFor, sizesOf, webGpuLimits } from "./webgpu/memory.ts";
import { Kernels, readKernels } from "./webgpu/pipelines.ts";
import { play } from "./webgpu/play.ts";
import { Watch } from "./webgpu/watch.ts";

export { measureWebGpu, shardsFor, webGpuLimits };

type WebGpuOptions = RoomOptions & {
  readonly onProgress?: ((p: LoadProgress) => void) | undefined;
  readonly families?: Families | undefined;
  /** Are candidates picked out of logits rows? Default: on hardware. */
  readonly picks?: boolean | undefined;
  /** Are kernels compiled before they are needed? Default: on hardware. */
  readonly ahead?: boolean | undefined;
  /** Is the list that is expected next encoded while the device works? Default: on hardware. */
  readonly encodesAhead?: boolean | undefined;
  /** Is it measured which kernels serve how many rows, and kept? Default: on hardware, in Node. */
  readonly tunes?: boolean | undefined;
  /** Do lanes exchange what they read? Default: where they can, in software, which reads for each in turn. */
  readonly quads?: boolean | undefined;
  /** Is what kernels take measured? Default: no. */
  readonly timestamps?: boolean | undefined;
};
type FileOf = (name: string) => Promise<Uint8Array>;
const GPU: Families = { fewRows: 8 };
/** It has few lanes behind WebGPU and pays for every barrier: kernels without them, however few the rows. */
const CPU: Families = { fewRows: null };

/**
 * Open the bundle's `webgpu` plan; null when there is no adapter of the wanted kind. Throws WEFT_CAPACITY
 * when the adapter cannot hold the plan, WEFT_DEVICE when it refuses a kernel or the device, or has no clock
 * that was asked for, WEFT_DEVICE_LOST when it goes away meanwhile; the device is destroyed then.
 */
export async function openWebGpu(
  manifest: Manifest,
  file: FileOf,
  kind: "hardware" | "software",
  options: WebGpuOptions = {},
): Promise<Device | null> {
  const adapter = await findAdapter(kind);
  return adapter && openOn(adapter, manifest, file, options);
}
/** An adapter of the wanted kind, or null. */
export async function findAdapter(kind: "hardware" | "software"): Promise<GPUAdapter | null> {
  const adapter = await openAdapter(kind);
  return adapter && isSoftware(adapter) === (kind === "software") ? adapter : null;
}
const idOf = ({ info }: GPUAdapter): string =>
  JSON.stringify([info.vendor, info.architecture, info.device, info.description]);
const isSoftware = (adapter: GPUAdapter): boolean =>
  (adapter.info as { isFallbackAdapter?: boolean }).isFallbackAdapter ||
  /swiftshader|llvmpipe|lavapipe|software|basic render/i.test(idOf(adapter));
export const nameOf = ({ info }: GPUAdapter): string =>
  info.description || info.device || info.vendor || "WebGPU adapter";
/**
 * What a load of these options would take on an adapter. Throws WEFT_CAPACITY when not even the smallest
 * fits.
 */
export async function planWebGpu(manifest: Manifest, adapter: GPUAdapter, options: RoomOptions) {
  const { limits } = adapter;
  const { layers } = manifest.model;
  const where = `adapter ${nameOf(adapter)}`;
  const chamber = Math.min(limits.maxStorageBufferBindingSize, limits.maxBufferSize);
  const room = limitsHere({ ...webGpuLimits, chamber }, options.memory);
  const most = Math.min(chamber, options.shard ?? chamber);
  const sizes = sizesFor(manifest, "webgpu", options, room, measureWebGpu(layers));
  const plan = planOf(manifest, "webgpu", sizes);
  // Kernels count the numbers of a matrix in an i32.
  const weights = largestOf(plan, layers, "weights");
  const { layerParams, outerParams } = manifest.targets.webgpu!;
  const least = Math.min(
    ...[...layerParams, ...outerParams].flatMap((p) => formatOf(p.format).planes.map(planeBytes)),
  );
  const fits = 2 ** 31 * least;
  if (weights > fits) throw (await import("./refused.ts")).tooMany(where, manifest, weights, fits);
  const bytes = sizesOf(plan, layers);
  return { sizes, plan, bytes, most, total: Object.values(bytes).reduce((a, b) => a + b, 0), where };
}
/** What measures kernels. Throws WEFT_DEVICE where the adapter has no clock. */
async function clockOf(adapter: GPUAdapter, where: string) {
  if (!adapter.features.has("timestamp-query")) throw (await import("./refused.ts")).untimed(where);
  return import("./webgpu/timing.ts");
}
async function openOn(
  adapter: GPUAdapter,
  manifest: Manifest,
  file: FileOf,
  options: WebGpuOptions,
): Promise<Device> {
  const { limits } = adapter;
  const { sizes, plan, bytes, most, where } = await planWebGpu(manifest, adapter, options);
  const { layers } = manifest.model;
  const clock = options.timestamps ? await clockOf(adapter, where) : null;
  const software = isSoftware(adapter);
  const quads = (options.quads ?? software) && adapter.features.has("subgroups");
  const families = options.families ?? (software ? CPU : GPU);
  if (manifest.products === "integers") (await import("./refused.ts")).multipliesBytes(where, families);
  const units = manifest.products === "matrix" ? (await import("./matrix.ts")).unitsOn(adapter, file) : null;
  const device = await adapter
    .requestDevice({
      requiredFeatures: [
        ...(["timestamp-query", "subgroups"] as const).filter((_, i) => [clock, quads][i]),
        ...((units?.features ?? []) as GPUFeatureName[]),
      ],
      requiredLimits: {
        maxStorageBufferBindingSize: limits.maxStorageBufferBindingSize,
        maxBufferSize: limits.maxBufferSize,
      },
    })
    .catch(async (cause: Error) => {
      throw (await import("./refused.ts")).notGiven(where, cause);
    });
  const watch = new Watch(device);
  try {
    options.onProgress?.(planProgress(bytes));
    const memory = await watch.scoped(Object.values(bytes), () => allocate(device, plan, layers, most));
    // A software device works on the cores that encode. What a list takes is read before the next.
    const encodesAhead = !clock && (options.encodesAhead ?? !software);
    const picks = (options.picks ?? !software) && plan.homes.candidates !== null;
    const texts = await readKernels(plan, quads, units?.file ?? file);
    const kernels = new Kernels(watch, plan, memory.layouts, texts, { families, picks, software, quads });
    const { programs = [] } = plan;
    // What trains in full is checked at load, in place: its gradients take as much as the model.
    const whole = manifest.train.includes("full");
    await kernels.prepare(whole ? programs : servingPrograms(programs));
    watch.loaded();
    // A software device would compile on the cores that serve.
    const arriving = (options.ahead ?? !software) ? kernels.ahead(programs) : Promise.resolve();
    const { numerics } = kvFormats[manifest.kv];
    const info: DeviceInfo = {
      target: "webgpu",
      numerics: `webgpu${units?.numerics ?? products[manifest.products]}${numerics}`,
      name: nameOf(adapter),
      software,
    };
    const later: Later = {
      prepare: (programs) => kernels.prepare(programs),
      apart: async (sizes, first) => {
        const small = planOf(manifest, "webgpu", sizes);
        const bytes = sizesOf(small, first);
        const own = await watch.scoped(Object.values({ ...bytes, weights: 0 }), () =>
          allocate(device, small, layers, most, { first, weights: memory }),
        );
        const release = async (): Promise<void> => own.destroy();
        const alike = { info, families, picks, encodesAhead, timing: null, tunes: null, later };
        return play(watch, small, own, kernels, { ...alike, bytes, sizes, release });
      },
    };
    const release = async (): Promise<void> => {
      await kernels.end();
      await arriving;
      watch.destroy();
    };
    return play(watch, plan, memory, kernels, {
      ...{ info, bytes, sizes, families, picks, encodesAhead, later: whole ? null : later, release },
      timing: clock && new clock.Timing(watch, plan),
      tunes: isNode && families.fewRows && (options.tunes ?? !software) ? idOf(adapter) : null,
    });
  } catch (e) {
    // Whatever failed after the device was gone failed because of that.
    const { lost } = watch;
    watch.destroy();
    throw lost ?? e;
  }
}
