/**
 * Weights in checkpoint order, packed in panels once for all targets, in shards of 64 MiB, or of one tensor
 * that is larger. They go through in pieces of whole panels: what is in memory does not grow with the model.
 */
import {
  type BaseHash,
  type Format,
  isIn,
  type Manifest,
  planesOf,
  type Rounding,
  restore,
  roundedTo,
  roundingOf,
  STORED_PANEL,
  safetensorsHeader,
  store,
  storedBytes,
  storePlanes,
  type TensorEntry,
} from "../runtime/bundle.ts";
import { type BundleFile, hasher } from "./files.ts";
import type { ParamSpec } from "./layers.ts";
import type { Model } from "./models/model.ts";
import type { Programs } from "./programs/index.ts";
import type { ModelSource } from "./source.ts";

/** A shard is read and verified as a whole where there are no ranges: what that takes at load. */
const SHARD_BYTES = 64 * 2 ** 20;
/** Bytes of f32 values read at once, unless one panel is larger. */
const PIECE_BYTES = 16 * 2 ** 20;

interface Tensor {
  /** 0 of those of none. */
  readonly layer: number;
  readonly name: string;
  /** [n, k] of a matrix, [n] of a vector. */
  readonly shape: readonly number[];
  readonly format: Format;
  readonly bytes: number;
}

/** The shards, each a stream; returns where every tensor is. `identity` hears all values on their way. */
export async function* packWeights(
  source: ModelSource,
  programs: Programs,
  model: Model,
  names: Manifest["checkpoint"],
  identity: BaseHash,
  onLayer: (done: number) => void,
): AsyncGenerator<BundleFile, { readonly tensors: TensorEntry[]; readonly rounding: number }> {
  const all = tensorsOf(programs, model, names);
  const lost: Rounding[] = [];
  const entries: TensorEntry[] = [];
  for (const [i, shard] of shardsOf(all).entries()) {
    const file = `weights/model-${String(i).padStart(5, "0")}.safetensors`;
    const header = safetensorsHeader(shard.flatMap(storedTensors));
    let at = header.length;
    for (const { name, shape, format, bytes } of shard) {
      entries.push({ name, shape: [...shape], format, shard: file, start: at, bytes });
      at += bytes;
    }
    yield [file, bytesOf(header, shard, source, identity, lost)];
    const next = all[all.indexOf(shard.at(-1)!) + 1];
    onLayer(next ? next.layer : model.layers);
  }
  return { tensors: entries, rounding: roundingOf(lost) };
}
function tensorsOf(programs: Programs, model: Model, names: Manifest["checkpoint"]): Tensor[] {
  const tensor = (layer: number, name: string, { kind, n, k, format }: ParamSpec): Tensor =>
    kind === "weight"
      ? { layer, name, shape: [n, k], format, bytes: storedBytes(format, n, k) }
      : { layer, name, shape: [n], format: "f32", bytes: n * 4 };
  return [
    ...programs.outerParams.map((p) => tensor(0, names.outer[p.name]!, p)),
    ...Array.from({ length: model.layers }, (_, l) =>
      programs.layerParams
        .filter((p) => isIn(model, l, p))
        .map((p) => tensor(l, names.layer[p.name]!.replace("{l}", String(l)), p)),
    ).flat(),
  ];
}
function shardsOf(tensors: readonly Tensor[]): Tensor[][] {
  const shards: Tensor[][] = [];
  let bytes = 0;
  for (const t of tensors) {
    if (!shards.length || bytes + t.bytes > SHARD_BYTES) {
      shards.push([]);
      bytes = 0;
    }
    shards.at(-1)!.push(t);
    bytes += t.bytes;
  }
  return shards;
}
/** What a shard's header says of a tensor: of a matrix the panels of each plane. */
function storedTensors({ name, shape, format, bytes }: Tensor): Parameters<typeof safetensorsHeader>[0] {
  const [n, k] = shape as [number, number?];
  if (k === undefined) return [{ name, shape, dtype: "F32", bytes }];
  return planesOf(format, n, k, STORED_PANEL).map(({ suffix, dtype, terms, from, to }) => ({
    name: name + suffix,
    shape: [Math.ceil(n / STORED_PANEL), terms, STORED_PANEL],
    dtype,
    bytes: to - from,
  }));
}
/** Rows of a piece that are sampled: its first panels. */
const SAMPLED = 4 * STORED_PANEL;
function sampled(
  format: Format,
  values: Float32Array,
  packed: Uint8Array,
  rows: number,
  k: number,
): Rounding {
  const n = Math.min(rows, SAMPLED);
  const first = planesOf(format, n, k, STORED_PANEL);
  const sample = new Uint8Array(storedBytes(format, n, k));
  planesOf(format, rows, k, STORED_PANEL).forEach((p, i) => {
    const { from, to } = first[i]!;
    sample.set(packed.subarray(p.from, p.from + to - from), from);
  });
  return roundedTo(restore(format, sample, n, k), values);
}
/** `rows` rows of a matrix from `row` on, whose values are given, as the bundle has them. */
function packedRows(
  { where, weights }: ModelSource,
  { name, shape, format }: Pick<Tensor, "name" | "shape" | "format">,
  values: Float32Array,
  row: number,
  rows: number,
): Uint8Array {
  const planes = weights.planes(name, shape, format, row, row + rows);
  const k = shape[1]!;
  return planes
    ? storePlanes(format, planes, rows, k)
    : store(format, values, rows, k, `${where}: ${name}`, row);
}
/** Rows [from, to) of a matrix as its checkpoint has them, and what is left of them in the bundle. */
export function roundedRows(
  source: ModelSource,
  tensor: Pick<Tensor, "name" | "shape" | "format">,
  from: number,
  to: number,
): { readonly exact: Float32Array; readonly held: Float32Array } {
  const { name, shape, format } = tensor;
  const exact = source.weights.read(name, shape, from, to);
  if (format === "f32") return { exact, held: exact };
  const packed = packedRows(source, tensor, exact, from, to - from);
  return { exact, held: restore(format, packed, to - from, shape[1]!) };
}
async function* bytesOf(
  header: Uint8Array,
  shard: readonly Tensor[],
  source: ModelSource,
  identity: BaseHash,
  lost: Rounding[],
): AsyncGenerator<Uint8Array> {
  yield header;
  for (const { name, shape, format } of shard) {
    const [n, k = 1] = shape as [number, number?];
    const hash = hasher();
    const step = Math.max(1, Math.floor(PIECE_BYTES / (k * 4 * STORED_PANEL))) * STORED_PANEL;
    // Planes after the first lie behind all of it.
    const behind: Uint8Array[][] = [];
    for (let row = 0; row < n; row += step) {
      const rows = Math.min(step, n - row);
      const values = source.weights.read(name, shape, row, row + rows);
      const raw = new Uint8Array(values.buffer, values.byteOffset, values.byteLength);
      hash.update(raw);
      if (shape.length === 1) yield raw;
      else {
        const packed = packedRows(source, { name, shape, format }, values, row, rows);
        if (format !== "f32") lost.push(sampled(format, values, packed, rows, k));
        const [first, ...others] = planesOf(format, rows, k, STORED_PANEL).map((p) =>
          packed.subarray(p.from, p.to),
        );
        yield first!;
        others.forEach((plane, i) => {
          behind[i] = [...(behind[i] ?? []), plane];
        });
      }
    }
    yield* behind.flat();
    identity.add(name, shape, hash.digest());
  }
}
