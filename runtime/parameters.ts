/** The base weights on a device one by one: read, written, and what they are by value. */
import type { Manifest } from "./bundle.ts";
import { chamberWords, type Device, type Range } from "./device.ts";
import { type Format, pack, type Words, weightFormats } from "./formats.ts";
import { sha256 } from "./hash.ts";
import { BaseHash } from "./identity.ts";
import { isIn } from "./kinds.ts";
import { uploadWeights } from "./load.ts";
import type { Change } from "./merge.ts";
import type { BundleReader } from "./reader.ts";
import { reorderParam } from "./reorder.ts";
import { blockRows, groupOf, groupsOf, matrixWords } from "./shards.ts";
import { transpose } from "./tensors/dense.ts";
import { formatValues, type Rounding, store, unpack, unpackPlanes } from "./values.ts";

/** Where they are, and the lane behind whose lists they are read. */
export interface On {
  readonly manifest: Manifest;
  readonly device: Device;
  readonly lane: number;
}
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
  /** Its layer; of others, the number of layers. */
  readonly group: number;
  readonly name: string;
  /** Its name in checkpoints. */
  readonly path: string;
  readonly at: Omit<Range, "words">;
  readonly n: number;
  /** Columns; null for a vector. */
  readonly k: number | null;
  readonly format: Format;
  readonly data: Float32Array;
  /** Rows of a block of a matrix on the device. */
  readonly block: number;
  /** As the device has it: panels of a matrix, in its own order. */
  readonly raw: Float32Array;
}

const bytes = (a: Float32Array): Uint8Array => new Uint8Array(a.buffer, a.byteOffset, a.byteLength);

/** Change one in place. */
function write(on: On, { group, name, at, n, k, format, block, data }: Param, change: Change): void {
  const { device } = on;
  change(data);
  reorderParam(on.manifest, group, name, data);
  device.write(
    at,
    k === null ? data : pack(format, store(format, data, n, k, name), n, k, device.plan.panel, block),
  );
}
/** Every chamber of weights as it is now. */
export async function chambers({ manifest, device, lane }: On): Promise<Float32Array[]> {
  const { plan } = device;
  const { layers } = manifest.model;
  const kept: Float32Array[] = [];
  for (let group = 0; group < groupsOf(plan, layers); group++) {
    const words = chamberWords(plan, layers, "weights", group);
    kept.push(await device.read({ space: "weights", group, offset: 0, words, lane }));
  }
  return kept;
}
/** Chambers that were kept, or the bundle's weights, with `changes` by `layer tensor`. */
export async function restore(
  on: On,
  from: readonly Float32Array[] | BundleReader,
  changes: ReadonlyMap<string, Change>,
): Promise<readonly Rounding[]> {
  const { manifest, device, lane } = on;
  if (!isKept(from)) {
    const changeOf = (layer: number, name: string): Change | undefined => changes.get(`${layer} ${name}`);
    return uploadWeights(from, manifest, device, () => {}, changeOf);
  }
  for (const [group, data] of from.entries())
    device.write({ space: "weights", group, offset: 0, lane }, data);
  if (changes.size)
    for await (const p of all(on)) {
      const change = changes.get(`${p.group} ${p.name}`);
      if (change) write(on, p, change);
    }
  return [];
}
const isKept = (from: readonly Float32Array[] | BundleReader): from is readonly Float32Array[] =>
  Array.isArray(from);
/** What they are by value. */
export async function identity(on: On): Promise<string> {
  const hash = new BaseHash(on.manifest.model);
  for await (const { path, n, k, data } of all(on))
    hash.add(path, k === null ? [n] : [n, k], await sha256(bytes(data)));
  return hash.digest();
}

/** Every parameter as it is now, in the model's own order. */
async function* all(on: On): AsyncGenerator<Param> {
  const { device, manifest, lane } = on;
  const { plan } = device;
  const { layers } = manifest.model;
  for (let i = 0; i <= layers; i++) {
    // The outer tensors first, as checkpoints have them.
    const group = (i + layers) % (layers + 1);
    const outer = group === layers;
    for (const p of outer ? plan.outerParams : plan.layerParams) {
      if (!outer && !isIn(manifest.model, group, p)) continue;
      const isVector = p.kind === "vector";
      const words = isVector ? p.n : matrixWords(p, plan.panel);
      const at = { space: "weights", group: groupOf(p, group), offset: p.offset, lane } as const;
      const raw = await device.read({ ...at, words });
      const block = blockRows(p);
      const data = isVector ? raw : unpack(p.format, raw, p.n, p.k, plan.panel, block);
      reorderParam(manifest, group, p.name, data, true);
      const path = outer
        ? manifest.checkpoint.outer[p.name]!
        : manifest.checkpoint.layer[p.name]!.replace("{l}", String(group));
      const { name, n, format } = p;
      yield { group, name, path, at, n, k: isVector ? null : p.k, format, block, data, raw };
    }
  }
}
/** Every base tensor as it is now, in its format; in f32 where the device has its blocks in another order. */
export async function* stored(on: On): AsyncGenerator<StoredTensor> {
  const { manifest, device } = on;
  for await (const { path, n, k, format, block, data, raw } of all(on)) {
    const its = k === null ? "f32" : format;
    const { planes } = weightFormats[its];
    const shape = k === null ? [n] : [n, k];
    const inBlocks = planes.length > 1;
    const never = (): never => {
      throw new Error(`${path}: a value of ${format} that ${format} has not`);
    };
    if (inBlocks && !manifest.selection)
      yield { name: path, shape, format, planes: unpackPlanes(format, raw, n, k!, device.plan.panel, block) };
    else if (inBlocks || k === null)
      yield { name: path, shape, format: "f32", planes: formatValues.f32.encode(data, n, k ?? 1, never) };
    else yield { name: path, shape, format, planes: formatValues[its].encode(data, n, k, never) };
  }
}
/** Every base tensor as it is now, under its checkpoint name. */
export async function tensors(on: On): Promise<BaseTensor[]> {
  const out: BaseTensor[] = [];
  const { layers } = on.manifest.model;
  const { transposed } = on.manifest.checkpoint;
  for await (const { group, name, path, n, k, data } of all(on))
    if (k !== null && group < layers && transposed.includes(name))
      out.push({ name: path, shape: [k, n], data: transpose(data, n, k) });
    else out.push({ name: path, shape: k === null ? [n] : [n, k], data });
  return out;
}
