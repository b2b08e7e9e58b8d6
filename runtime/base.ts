/**
 * The base weights on a device: whose they are, by value; and how they come back after a merge or a full
 * training that was given up.
 */
import { type Manifest, WeftError } from "./bundle.ts";
import type { Device } from "./device.ts";
import {
  type Format,
  pack,
  packedWords,
  type Rounding,
  store,
  unpack,
  unpackPlanes,
  type Words,
  weightFormats,
} from "./formats.ts";
import { sha256 } from "./hash.ts";
import { BaseHash } from "./identity.ts";
import { uploadWeights } from "./load.ts";
import type { Change } from "./merge.ts";
import { reorder, siteOfParam } from "./order.ts";
import type { BundleReader } from "./reader.ts";
import { transpose } from "./tensors/dense.ts";

export interface BaseTensor {
  readonly name: string;
  readonly shape: number[];
  readonly data: Float32Array;
}

/** A base tensor as it is stored: the numbers of each plane of its format, row by row. */
export interface StoredTensor {
  readonly name: string;
  /** A matrix is [out, in], also where checkpoints have it otherwise. */
  readonly shape: readonly number[];
  readonly format: Format;
  readonly planes: readonly Words[];
}

interface Param {
  readonly group: number;
  readonly name: string;
  /** Its name in checkpoints. */
  readonly path: string;
  readonly offset: number;
  readonly n: number;
  /** Columns; null for a vector. */
  readonly k: number | null;
  readonly format: Format;
  readonly data: Float32Array;
  /** As the device has it: panels of a matrix, in its own order. */
  readonly raw: Float32Array;
}

const bytes = (a: Float32Array): Uint8Array => new Uint8Array(a.buffer, a.byteOffset, a.byteLength);

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

  private get lane(): number {
    return this.device.lanes - 1;
  }
  /** Before they are overwritten. */
  async keep(): Promise<void> {
    if (!this.trained || this.kept) return;
    const { plan } = this.device;
    const { layers } = this.manifest.model;
    const kept: Float32Array[] = [];
    for (let group = 0; group <= layers; group++) {
      const words = plan.spaces.weights[group === layers ? "outer" : "layer"];
      kept.push(await this.device.read({ space: "weights", group, offset: 0, words, lane: this.lane }));
    }
    this.kept = kept;
  }
  /**
   * As they were when they were kept, with `changes` by `layer tensor`; the bundle's where nothing was
   * trained.
   */
  async restore(changes: ReadonlyMap<string, Change> = new Map()): Promise<readonly Rounding[]> {
    const { kept, manifest, device, reader } = this;
    let lost: readonly Rounding[] = [];
    if (!this.trained)
      lost = await uploadWeights(
        reader,
        manifest,
        device,
        () => {},
        (layer, name) => changes.get(`${layer} ${name}`),
      );
    else {
      kept!.forEach((data, group) => {
        device.write({ space: "weights", group, offset: 0, lane: this.lane }, data);
      });
      if (changes.size)
        for await (const p of this.params()) {
          const change = changes.get(`${p.group} ${p.name}`);
          if (change) this.write(p, change);
        }
    }
    if (!changes.size) this.kept = null;
    return lost;
  }
  private write({ group, name, offset, n, k, format, data }: Param, change: Change): void {
    const { device, lane } = this;
    change(data);
    this.order(group, name, data, false);
    device.write(
      { space: "weights", group, offset, lane },
      k === null ? data : pack(format, store(format, data, n, k, name), n, k, device.plan.panel),
    );
  }
  private order(group: number, name: string, values: Float32Array, back: boolean): void {
    const { manifest } = this;
    if (group < manifest.model.layers) reorder(manifest, group, siteOfParam(manifest, name), values, back);
  }
  /** A full training is over: the weights are others now. */
  async renew(): Promise<void> {
    this.trained = true;
    this.kept = null;
    const identity = new BaseHash(this.manifest.model);
    for await (const { path, n, k, data } of this.params())
      identity.add(path, k === null ? [n] : [n, k], await sha256(bytes(data)));
    this.id = await identity.digest();
  }

  /** Every parameter as it is now, in the model's own order. */
  private async *params(): AsyncGenerator<Param> {
    const { device, manifest, lane } = this;
    const { plan } = device;
    const { layers } = manifest.model;
    for (let i = 0; i <= layers; i++) {
      // The outer tensors first, as checkpoints have them.
      const group = (i + layers) % (layers + 1);
      const outer = group === layers;
      for (const p of outer ? plan.outerParams : plan.layerParams) {
        const isVector = p.kind === "vector";
        const words = isVector ? p.n : packedWords(p.format, p.n, p.k, plan.panel);
        const raw = await device.read({ space: "weights", group, offset: p.offset, words, lane });
        const data = isVector ? raw : unpack(p.format, raw, p.n, p.k, plan.panel);
        this.order(group, p.name, data, true);
        const path = outer
          ? manifest.checkpoint.outer[p.name]!
          : manifest.checkpoint.layer[p.name]!.replace("{l}", String(group));
        const { name, offset, n, format } = p;
        yield { group, name, path, offset, n, k: isVector ? null : p.k, format, data, raw };
      }
    }
  }
  /** Every base tensor as it is now, in its format; in f32 where the device has its blocks in another order. */
  async *stored(): AsyncGenerator<StoredTensor> {
    const { manifest, device } = this;
    for await (const { path, n, k, format, data, raw } of this.params()) {
      const { planes, encode } = weightFormats[k === null ? "f32" : format];
      const shape = k === null ? [n] : [n, k];
      const inBlocks = planes.length > 1;
      const never = (): never => {
        throw new Error(`${path}: a value of ${format} that ${format} has not`);
      };
      if (inBlocks && !manifest.selection)
        yield { name: path, shape, format, planes: unpackPlanes(format, raw, n, k!, device.plan.panel) };
      else if (inBlocks || k === null)
        yield { name: path, shape, format: "f32", planes: weightFormats.f32.encode(data, n, k ?? 1, never) };
      else yield { name: path, shape, format, planes: encode(data, n, k, never) };
    }
  }
  /** Every base tensor as it is now, under its checkpoint name. */
  async tensors(): Promise<BaseTensor[]> {
    const out: BaseTensor[] = [];
    const { layers } = this.manifest.model;
    const { transposed } = this.manifest.checkpoint;
    for await (const { group, name, path, n, k, data } of this.params())
      if (k !== null && group < layers && transposed.includes(name))
        out.push({ name: path, shape: [k, n], data: transpose(data, n, k) });
      else out.push({ name: path, shape: k === null ? [n] : [n, k], data });
    return out;
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
