/**
 * The base weights on a device: whose they are, by value; and how they come back after a merge or a full
 * training that was given up.
 */
import { type Manifest, WeftError } from "./bundle.ts";
import type { Device } from "./device.ts";
import type { Change } from "./merge.ts";
import type { BaseTensor, On, StoredTensor } from "./parameters.ts";
import type { BundleReader } from "./reader.ts";
import type { Rounding } from "./values.ts";

export type { BaseTensor, StoredTensor };

/** Who reads single tensors is rare. */
const parameters = () => import("./parameters.ts");

export class BaseWeights {
  /**
   * Identity of the weights that adapters are trained on: the bundle's, or of what a full training made of
   * them. A merged adapter does not change it.
   */
  id: string;
  /** They are no longer the bundle's. */
  private trained = false;
  /**
   * Every chamber of weights that were trained here: they exist nowhere else. Kept from the moment that
   * something may overwrite them, until it is over.
   */
  private kept: Float32Array[] | null = null;
  constructor(
    private readonly manifest: Manifest,
    private readonly device: Device,
    private readonly reader: BundleReader,
  ) {
    this.id = manifest.base;
  }

  private get on(): On {
    const { manifest, device } = this;
    return { manifest, device, lane: device.lanes - 1 };
  }
  /** Before they are overwritten. */
  async keep(): Promise<void> {
    if (this.trained) this.kept ??= await (await parameters()).chambers(this.on);
  }
  /**
   * As they were when they were kept, with `changes` by `layer tensor`; the bundle's where nothing was
   * trained.
   */
  async restore(changes: ReadonlyMap<string, Change> = new Map()): Promise<readonly Rounding[]> {
    const { restore } = await parameters();
    const lost = await restore(this.on, this.trained ? this.kept! : this.reader, changes);
    if (!changes.size) this.kept = null;
    return lost;
  }
  /** A full training is over: the weights are others now. */
  async renew(): Promise<void> {
    const { identity } = await parameters();
    this.trained = true;
    this.kept = null;
    this.id = await identity(this.on);
  }
  /**
   * Every base tensor as it is now, in its format; in f32 where the device has its blocks in another order.
   */
  async *stored(): AsyncGenerator<StoredTensor> {
    yield* (await parameters()).stored(this.on);
  }
  /** Every base tensor as it is now, under its checkpoint name. */
  async tensors(): Promise<BaseTensor[]> {
    return (await parameters()).tensors(this.on);
  }
}

/** What names an adapter of another base meets: requests, jobs and merges of this one refuse it. */
export const otherBase = (adapter: string, its: string, ours: string): WeftError =>
  new WeftError({
    code: "WEFT_ADAPTER_MISMATCH",
    where: `adapter ${adapter}`,
    expected: `an adapter of base ${ours.slice(0, 12)}`,
    found: `one of base ${its.slice(0, 12)}`,
    hint: "it was trained on other base weights; train or load one for these",
  });
