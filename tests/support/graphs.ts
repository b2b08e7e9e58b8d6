/**
 * Runs a graph of ops on a target, alone: compiles it as one program and plays it on a device, beside the f64
 * interpreter. One file: a batch, its data and its layout in memory are one description, read twice.
 */
import { compileKernels } from "../../compiler/emit/asc.ts";
import { emitLaunchAs, prelude } from "../../compiler/emit/assemblyscript.ts";
import { emitLaunchWgsl, gridOf, launchedOf, variantsOf } from "../../compiler/emit/wgsl.ts";
import { fuse } from "../../compiler/fuse.ts";
import type { KernelEnv, ParamAddress, Variant } from "../../compiler/kernel.ts";
import { heads } from "../../compiler/kernels/text/wgsl_matrix.ts";
import { PLAIN_ROWS, QUICK_ROWS } from "../../compiler/kernels/text/wgsl_plain.ts";
import { type Layout, placeValues } from "../../compiler/layout.ts";
import { blockLayouts } from "../../compiler/metadata.ts";
import { align, type Capacities, type Target, targets } from "../../compiler/target.ts";
import {
  type EvalCtx,
  inputName,
  isInput,
  type Type,
  toposort,
  type Value,
  valueKey,
} from "../../ops/index.ts";
import {
  BLOCK,
  COMMAND_WORDS,
  headerWords,
  kvStride,
  layerWord,
  type Manifest,
  QUAD,
  QUAD_WORDS,
  quadsOf,
  ranked,
  SLOT_ROW,
  type TargetEntry,
} from "../../runtime/bundle.ts";
import type { Device } from "../../runtime/device.ts";
import { floatToHalf, halfToFloat } from "../../runtime/dtypes.ts";
import { type Format, pack, packedWords } from "../../runtime/formats.ts";
import type { Products } from "../../runtime/products.ts";
import { restore, store, unpack } from "../../runtime/values.ts";
import { openWasm } from "../../runtime/wasm.ts";
import { openWebGpu } from "../../runtime/webgpu.ts";
import { uniform } from "./random.ts";
import { long } from "./scale.ts";

export const capacities: Capacities = {
  tokens: 48,
  sequences: 4,
  context: 96,
  headRows: 16,
  blocks: 16,
  slots: 3,
  pages: null,
  jobs: 1,
  rank: 8,
  experts: 8,
  savedRows: 96,
  keptRows: 96,
  quantum: 32,
  unitRows: 32,
  units: 2,
  s2ft: null,
};
const BRANCHES = 7;
/** Positions that a row sees where attention has a window. */
const WINDOW = 7;
export interface Batch {
  readonly rows: number;
  readonly heads: number;
  /** Arrays of the metadata block, f32 ones as numbers. */
  readonly arrays: Readonly<Record<string, readonly number[]>>;
  readonly header: Readonly<Record<string, number>>;
  readonly ranks: readonly number[];
  readonly scales: readonly number[];
}
/** In a sum of adapters each quad has a scale of its own. */
const scaleOf = (b: Batch, slot: number, r: number): number =>
  b.scales[slot]! * (1 + Math.floor(r / QUAD) / 2);
const isFloat = (name: string): boolean => name === "drop_p" || name === "weight";

/** Rows of two sequences at odd positions, of several slots, with random ids. */
export function batch(seed: string, rows: number, heads: number, kind: "step" | "unit", vocab = 11): Batch {
  const u = uniform(`batch ${seed}`, 4096);
  const pick = (i: number, n: number): number => Math.floor(((u[i]! + 1) / 2) * n);
  const pos0 = 5 + pick(0, 20);
  const layout = blockLayouts(capacities, [])[kind];
  const at = layout.arrays.tables!;
  const perSequence = Math.ceil(capacities.context / 32);
  const two = kind === "step" ? Math.floor(rows / 2) : 0;
  const seqOf = (r: number): number => (r < two ? 1 : 0);
  return {
    rows,
    heads,
    arrays: {
      ids: Array.from({ length: rows }, (_, r) => pick(r + 1, vocab)),
      pos: Array.from({ length: rows }, (_, r) => (r < two ? r + 3 : pos0 + r - two)),
      slot: Array.from({ length: rows }, (_, r) => (kind === "unit" ? 2 : pick(r + 99, 4))),
      table: Array.from({ length: rows }, (_, r) => at + seqOf(r) * perSequence),
      save_row: Array.from({ length: rows }, (_, r) =>
        kind === "step" && r % 3 === 0 ? -1 : pos0 + r - two + (r < two ? 40 : 0),
      ),
      ext_row: Array.from({ length: rows }, (_, r) => r),
      drop_key: Array.from({ length: rows }, (_, r) => (r % 4 === 1 ? 0 : 77 + r)),
      drop_p: Array.from({ length: rows }, () => 0.25),
      head_row: Array.from({ length: heads }, (_, r) => pick(r + 300, rows)),
      head_dst: Array.from({ length: heads }, (_, r) => r),
      label: Array.from({ length: heads }, (_, r) => pick(r + 400, vocab)),
      weight: Array.from({ length: heads }, (_, r) => 0.1 + r * 0.05),
      seg_row: [0],
      seg_rows: [rows],
      seg_head: [0],
      seg_heads: [heads],
      seg_base: [0],
      seg_fresh: [1],
      seg_keys: [pos0 + rows],
      tables: [3, 0, 5, 7, 2, 9],
    },
    header: {
      n_rows: rows,
      n_head: heads,
      mask_0: 0x7fffffff,
      mask_4: 3,
      slot: kind === "unit" ? 2 : 0,
      n_keys: kind === "unit" ? pos0 + rows : 0,
      n_segments: 1,
    },
    ranks: [0, 4, 8, 3],
    scales: [0, 0.5, 2, 1.25],
  };
}

/** Words between the rows of a field, which is part of a record. */
const GAP = 12;
/** Rows [n, cols] as parts of records; the rest of them is poison. */
function spread(data: Float32Array, cols: number): Float32Array {
  const out = new Float32Array((data.length / cols) * (cols + GAP)).fill(Number.NaN);
  for (let r = 0; r * cols < data.length; r++)
    out.set(data.subarray(r * cols, (r + 1) * cols), r * (cols + GAP));
  return out;
}
const rowsOf = (b: Batch, t: Type & { kind: "rows" }): number => (t.domain === "R" ? b.heads : b.rows);
export function context(b: Batch): EvalCtx {
  const layout = blockLayouts(capacities, []);
  const raw = (i: number): number =>
    b.arrays.tables![i - (b.header.n_keys ? layout.unit : layout.step).arrays.tables!]!;
  return {
    rows: (d) => (d === "R" ? b.heads : b.rows),
    meta: (name, i) => (name === "raw" ? raw(i!) : i === null ? (b.header[name] ?? 0) : b.arrays[name]![i]!),
    metaf: (name, i) => (i === null ? (b.header[name] ?? 0) : Math.fround(b.arrays[name]![i]!)),
    slot: (s) => ({ rank: b.ranks[s]!, scale: (r) => scaleOf(b, s, r) }),
    layer: 3,
    ofLayer: (name) => ({ window: WINDOW, rope: 1 })[name],
  };
}
type Weight = Type & { kind: "weight" };
type Kv = Type & { kind: "kv" };
/** Numbers of the cache as a device has them: what pads a row is poison. */
function cached({ format, headDim }: Kv, values: Float32Array): Float32Array | Uint32Array {
  const stride = kvStride(headDim);
  const padded = new Float32Array((values.length / headDim) * stride).fill(Number.NaN);
  for (let r = 0; r * headDim < values.length; r++)
    padded.set(values.subarray(r * headDim, (r + 1) * headDim), r * stride);
  return format === "f16" ? new Uint32Array(Uint16Array.from(padded, floatToHalf).buffer) : padded;
}
type Experts = Type & { kind: "experts" };
/** Each expert's own of what all have. */
const eachExpert = ({ count, n, k, format }: Experts, all: Float32Array) =>
  Array.from({ length: count }, (_, e) => {
    const weight: Weight = { kind: "weight", n, k, format };
    return { weight, values: all.slice(e * n * k, (e + 1) * n * k) };
  });
/** Words of a matrix, as the bundle has them one after another. */
const wordsOf = ({ format, n, k }: Weight | Experts, panel: number): number =>
  align(packedWords(format as Format, n, k, panel));
const packedFor = ({ format, n, k }: Weight, values: Float32Array, name: string, panel: number) =>
  pack(format as Format, store(format as Format, values, n, k, name), n, k, panel);
/** What a matrix holds that is stored as it is: rounding again may round to another grid. */
function stored(weight: Weight, values: Float32Array, name: string): Float32Array {
  const { n, k } = weight;
  const format = weight.format as Format;
  const held = restore(format, store(format, values, n, k, name), n, k);
  return held.every((v, i) => v === values[i]) ? held : stored(weight, held, name);
}
/** Random data for a graph's inputs, f32 values. */
export function inputData(roots: readonly Value[], b: Batch, seed: string): Record<string, Float64Array> {
  const out: Record<string, Float64Array> = {};
  for (const node of toposort(roots)) {
    const v: Value = { node, index: 0, type: node.outs[0]! };
    if (!isInput(v)) continue;
    const t = v.type;
    const name = inputName(v);
    const size = {
      rows: () => rowsOf(b, t as never) * (t as { cols: number }).cols,
      weight: () => (t as { n: number; k: number }).n * (t as { k: number }).k,
      experts: () => (t as Experts).count * (t as Experts).n * (t as Experts).k,
      vector: () => (t as { n: number }).n,
      factor: () => 4 * (t as { rows: number }).rows * (t as { cols: number }).cols,
      field: () => capacities.savedRows * (t as { cols: number }).cols,
      kv: () =>
        capacities.blocks *
        64 *
        (t as { heads: number; headDim: number }).heads *
        (t as { headDim: number }).headDim,
      table: () => (t as { rows: number }).rows * (t as { cols: number }).cols,
      grad: () => 0,
    }[t.kind]();
    const values = uniform(`${seed} ${name}`, size);
    // A matrix has values that its format can hold.
    const held = (): Float32Array => {
      const all = Float32Array.from(values);
      if (t.kind === "weight") return stored(t, all, name);
      if (t.kind === "kv" && t.format === "f16") return all.map((x) => halfToFloat(floatToHalf(x)));
      if (t.kind !== "experts") return all;
      return Float32Array.from(eachExpert(t, all).flatMap((e) => [...stored(e.weight, e.values, name)]));
    };
    out[name] = Float64Array.from(held());
    if (t.kind === "factor" && t.rows > 1) {
      // Rows beyond a slot's rank are zero, as in a real slot.
      for (let s = 0; s < 4; s++)
        out[name]!.fill(0, (s * t.rows + b.ranks[s]!) * t.cols, (s + 1) * t.rows * t.cols);
    }
  }
  return out;
}

/**
 * Compile `roots` (row values or gradients) and run them on a target. Results in the interpreter's layouts.
 */
export async function runOn(
  target: "wasm" | "webgpu",
  roots: readonly Value[],
  inputs: Readonly<Record<string, Float64Array>>,
  b: Batch,
  options: {
    fuse?: boolean;
    threads?: number;
    variant?: Variant;
    products?: Products;
    /** Of the plain variant. Those for trials have most of the code, and compile in half of the time. */
    plainRows?: number;
    mutate?: (source: string) => string;
  } = {},
): Promise<{ outputs: Float32Array[]; launches: number }> {
  const t: Target = targets[target];
  const launches = fuse(roots, { fuse: options.fuse ?? true, products: options.products ?? "f32" });
  const blocks = blockLayouts(capacities, []);
  const kind = b.header.n_keys ? "unit" : "step";
  const inputNodes = toposort(roots)
    .map((node): Value => ({ node, index: 0, type: node.outs[0]! }))
    .filter(isInput);
  // Inputs: rows, fields and tables in the arena; weights, factors and caches in their chambers.
  let arena = 2048;
  let weights = 0;
  let kv = 64;
  let accum = 0;
  const fixed = new Map<
    string,
    { space: "arena" | "weights" | "adapters" | "kv"; offset: number; stride: number }
  >();
  const params = new Map<string, ParamAddress>();
  /** Of each branch: words of its vectors, words of a quad, and how many quads. */
  const slots = Array.from({ length: BRANCHES }, () => ({ home: 0, quad: 0, quads: 0 }));
  for (const v of inputNodes) {
    const name = inputName(v);
    const ty = v.type;
    if (ty.kind === "weight" || ty.kind === "vector") {
      const words = align(ty.kind === "weight" ? Math.ceil(ty.n / t.panel) * t.panel * ty.k : ty.n);
      fixed.set(name, { space: "weights", offset: weights, stride: 0 });
      params.set(name, {
        name,
        kind: ty.kind,
        n: ty.n,
        k: ty.kind === "weight" ? ty.k : 1,
        format: "f32",
        branch: null,
        rows: "one",
        offset: weights,
        words,
        accum,
        own: null,
      });
      weights += words;
      accum += words;
    } else if (ty.kind === "factor") {
      const words = align(ty.rows * ty.cols, 4);
      const s = slots[ty.branch]!;
      const rows = ty.rows > 1 ? "rank" : "one";
      const quads = ranked({ rows, cols: ty.cols });
      const offset = quads ? s.quad : s.home;
      fixed.set(name, { space: "adapters", offset, stride: ty.cols });
      params.set(name, {
        name,
        kind: "factor",
        n: ty.rows,
        k: ty.cols,
        format: "f32",
        branch: ty.branch,
        rows,
        offset,
        words,
        accum,
        own: null,
      });
      if (quads) {
        s.quads = Math.max(s.quads, quadsOf(ty.rows));
        s.quad += align(QUAD * ty.cols, 4);
      } else s.home += words;
      accum += align(words);
    } else if (ty.kind === "experts") {
      const stride = wordsOf(ty, t.panel);
      fixed.set(name, { space: "weights", offset: weights, stride });
      const words = align(Math.ceil(ty.n / t.panel) * t.panel * ty.k);
      params.set(name, {
        ...{ name, kind: "weight", n: ty.n, k: ty.k, format: "f32", branch: null, rows: "one" },
        ...{
          offset: weights,
          words,
          accum,
          own: null,
          several: { count: ty.count, offset: stride, accum: words },
        },
      });
      weights += ty.count * stride;
      accum += ty.count * words;
    } else if (ty.kind === "kv") {
      fixed.set(name, { space: "kv", offset: 0, stride: 0 });
      kv = Math.max(kv, (inputs[name]!.length / ty.headDim) * kvStride(ty.headDim));
    } else if (ty.kind !== "grad") {
      const stride = ty.kind === "field" ? ty.cols + GAP : ty.cols;
      fixed.set(name, { space: "arena", offset: arena, stride });
      arena += align((inputs[name]!.length / ty.cols) * stride + 256);
    }
  }
  // Vectors and quads of slots lie anywhere, here from the last to the first.
  let row = 0;
  const tableOf = slots.map(({ quads }) => {
    const at = row;
    row += SLOT_ROW.quads + quads * QUAD_WORDS;
    return { at, quads };
  });
  let top = 4 * slots.reduce((n, s) => n + s.home + s.quads * s.quad, 0) + 64;
  const down = (words: number): number => (top -= words);
  const homes = Array.from({ length: 4 }, () => slots.map((s) => down(s.home)));
  const quads = Array.from({ length: 4 }, () =>
    slots.map((s) => Array.from({ length: s.quads }, () => down(s.quad))),
  );
  const adapterWords = align(4 * slots.reduce((n, s) => n + s.home + s.quads * s.quad, 0) + 128);
  const dkvAt = arena;
  arena += align(capacities.savedRows * 512);
  const rowRoots = roots.filter((r) => r.type.kind === "rows");
  const outs: Record<string, number> = {};
  rowRoots.forEach((r, i) => {
    outs[`out${i}`] = arena;
    arena += align(64 * (r.type as { cols: number }).cols + 64);
  });
  const program = {
    name: "test",
    region: "layer" as const,
    block: kind as "step" | "unit",
    roots,
    homes: rowRoots.map((value, i) => ({ value, name: `out${i}` })),
  };
  const { places, end } = placeValues(program, launches, capacities, {
    persistent: arena,
    homes: outs,
    kept: new Map(),
  } as unknown as Layout);
  const env: KernelEnv = {
    capacities,
    layout: blocks[kind],
    panel: t.panel,
    slots: { row, branches: tableOf },
    jobWords: 0,
    groups: 2,
    norms: 1024,
    partials: 0,
    products: options.products ?? "f32",
    plainRows: options.plainRows ?? (long ? PLAIN_ROWS : QUICK_ROWS),
    param: (n) => params.get(n)!,
    address: (v) => {
      const p = places.get(valueKey(v));
      if (p !== undefined)
        return { space: "arena", offset: p, stride: v.type.kind === "rows" ? v.type.cols : 0 };
      if (v.node.op === "attend_dkv")
        return { space: "arena", offset: dkvAt, stride: (v.type as { cols: number }).cols + GAP };
      if (v.type.kind === "kv") return { space: "kv", offset: 0, stride: 0 };
      const f = fixed.get(inputName(v));
      if (!f) throw new Error(`no address for ${v.node.label}`);
      return f;
    },
  };
  const kernels: Record<
    string,
    { workgroup: number; file: string; launch: number[]; runs: number[]; shards: null }
  > = {};
  const sources: string[] = [];
  const commands: number[] = [];
  for (const l of launches) {
    const variants = variantsOf(l.bodies, env);
    const lone = options.variant === "few" && b.header.n_rows === 1;
    const rest = l.bodies.some(({ rest }) => rest);
    // What makes rows, or leaves them to others, has no kernels for a few.
    const makes = options.variant === "few" && l.bodies.some(({ operands: [x] }) => x?.made);
    const wanted = rest ? (lone ? "few" : "any") : options.variant;
    const asked = variants.find((v) => v === wanted) ?? (rest || makes ? "any" : variants[0]!);
    const variant: Variant = target === "webgpu" ? asked : "any";
    const countOf = (c: string, div: number): number => {
      const { n_rows, n_head, n_keys } = b.header;
      const tiles = Math.ceil(n_keys! / BLOCK);
      if (c === "tile_keys") return tiles;
      if (c === "tile_spans") return Math.max(n_rows!, tiles * div);
      if (c === "lone_row") return lone ? 1 : 0;
      if (c === "more_rows") return lone ? 0 : n_rows!;
      const kind = c.slice(c.indexOf("_"));
      return c === "one" ? 1 : ({ _rows: n_rows, _head: n_head, _keys: n_keys }[kind] ?? b.header[c] ?? 0);
    };
    // A row that is alone is made where it is read, and lies nowhere, unless something else reads it.
    const set = (bit: number): boolean => (((b.header[`mask_${bit >> 5}`] ?? 0) >> (bit & 31)) & 1) === 1;
    const needed = l.bodies.some(({ rest }) => rest === null || rest.some(set));
    for (const bodies of launchedOf(l.bodies, variant)) {
      const grid = gridOf(bodies, env, variant).map((g) =>
        Math.ceil((countOf(g.count, g.div) * g.mul) / g.div),
      );
      const i = sources.length;
      // An error of a target's compiler names the kernel.
      const name = `k${i}_${bodies[0]!.skeleton}`;
      kernels[name] = { workgroup: 64, file: name, launch: [], runs: [], shards: null };
      const text =
        target === "wasm" ? emitLaunchAs(name, bodies, env) : emitLaunchWgsl(name, bodies, env, variant);
      sources.push(options.mutate ? options.mutate(text) : text);
      if (!grid.includes(0) && (variant !== "few" || needed)) commands.push(i, 0, 0, ...grid);
    }
  }
  const chamber = (layer: number): { layer: number; outer: number } => ({
    layer: align(Math.max(64, layer) + 256),
    outer: 64,
  });
  const plan = {
    panel: t.panel,
    room: {
      weights: chamber(weights),
      accum: chamber(accum),
      arena: align(end + 1024),
      block: chamber(kv).layer,
      hidden: 0,
      work: 0,
    },
    scratchWords: 1 << 16,
    slots: { page: adapterWords, row, branches: [], methods: {} },
    jobWords: 0,
    own: [],
    layerParams: [],
    outerParams: [],
    blocks,
    kernels,
  } as unknown as TargetEntry;
  const one = { blocks: 1, sequences: 1, slots: 3, pages: 1, jobs: 1, savedRows: 1, keptRows: 1 };
  const manifest = {
    model: { layers: 1, format: "f32" },
    kv: "f32",
    products: options.products ?? "f32",
    train: [],
    saved: {},
    branches: [],
    capacities: { ...capacities, ...one, units: 0 },
    targets: { [target]: plan },
  } as unknown as Manifest;
  let device: Device;
  if (target === "wasm") {
    const source = options.mutate ? options.mutate(prelude()) : prelude();
    device = await openWasm(
      manifest,
      await compileKernels(`${source}\n${sources.join("\n")}`, { cache: true, quick: true }),
      {
        threads: options.threads,
      },
    );
  } else {
    const d = await openWebGpu(
      manifest,
      async (name) => {
        const head = heads.find((h) => name === `kernels/${h.name}.wgsl`);
        const text = head ? head.text : sources[Number.parseInt(name.slice(1), 10)]!;
        return new TextEncoder().encode(text);
      },
      "software",
    );
    if (!d) throw new Error("no software WebGPU adapter: install the dev dependencies");
    device = d;
  }
  // Poison: nothing may read what nobody wrote.
  const poisoned = { arena: device.plan.arenaWords, saved: 64, adapters: adapterWords };
  for (const [space, words] of Object.entries(poisoned) as [keyof typeof poisoned, number][])
    device.write({ space, group: 0, offset: 0 }, new Float32Array(words).fill(Number.NaN));
  for (const v of inputNodes) {
    const name = inputName(v);
    const f = fixed.get(name);
    if (!f) continue;
    const data = Float32Array.from(inputs[name]!);
    if (v.type.kind === "factor") {
      const { branch, rows, cols } = v.type;
      for (let s = 0; s < 4; s++) {
        const own = data.slice(s * rows * cols, (s + 1) * rows * cols);
        const put = (at: number, values: Float32Array): void =>
          device.write({ space: "adapters", group: 0, offset: at + f.offset }, values);
        if (!ranked({ rows: rows > 1 ? "rank" : "one", cols })) put(homes[s]![branch]!, own);
        else
          for (let q = 0; q < quadsOf(Math.min(rows, b.ranks[s]!)); q++)
            put(quads[s]![branch]![q]!, own.slice(q * QUAD * cols, (q + 1) * QUAD * cols));
      }
    } else if (v.type.kind === "experts")
      eachExpert(v.type, data).forEach(({ weight, values }, e) => {
        const at = { space: f.space, group: 0, offset: f.offset + e * f.stride };
        device.write(at, packedFor(weight, values, name, t.panel));
      });
    else
      device.write(
        { space: f.space, group: 0, offset: f.offset },
        v.type.kind === "weight"
          ? packedFor(v.type, data, name, t.panel)
          : v.type.kind === "kv"
            ? cached(v.type, data)
            : v.type.kind === "field"
              ? spread(data, v.type.cols)
              : data,
      );
  }
  const tables = new Uint32Array(64 + 4 * row);
  const scales = new Float32Array(tables.buffer);
  tables[0] = 3;
  tables[layerWord("window")] = WINDOW;
  tables[layerWord("rope")] = 1;
  for (let s = 0; s < 4; s++)
    tableOf.forEach(({ at, quads: room }, i) => {
      const entry = 64 + s * row + at;
      tables[entry + SLOT_ROW.rank] = b.ranks[s]!;
      tables[entry + SLOT_ROW.home] = homes[s]![i]!;
      for (let q = 0; q < Math.min(room, quadsOf(b.ranks[s]!)); q++) {
        tables[entry + SLOT_ROW.quads + q * QUAD_WORDS] = quads[s]![i]![q]!;
        scales[entry + SLOT_ROW.quads + q * QUAD_WORDS + 1] = scaleOf(b, s, q * QUAD);
      }
    });
  device.write({ space: "tables", group: 0, offset: 0 }, tables);
  const meta = new Uint32Array(blocks[kind].words + 64);
  const metaF = new Float32Array(meta.buffer);
  // Kernels for a few rows take all of them, or none.
  const rest: Record<string, number> =
    options.variant === "few" ? { rest_rows: b.header.n_rows ?? 0, rest_head: b.header.n_head ?? 0 } : {};
  for (const [name, v] of Object.entries({ ...b.header, ...rest })) meta[headerWords.indexOf(name)] = v;
  for (const [name, list] of Object.entries(b.arrays)) {
    const at = blocks[kind].arrays[name];
    if (at !== undefined) list.forEach((v, i) => (isFloat(name) ? (metaF[at + i] = v) : (meta[at + i] = v)));
  }
  await device.run(0, Int32Array.from(commands), meta, []);
  const outputs: Float32Array[] = [];
  for (const r of roots) {
    if (r.type.kind === "rows")
      outputs.push(
        await device.read({
          space: "arena",
          group: 0,
          offset: outs[`out${rowRoots.indexOf(r)}`]!,
          words: rowsOf(b, r.type) * r.type.cols,
        }),
      );
    else if (r.type.kind === "grad") {
      const p = params.get(r.type.of)!;
      if (p.several) {
        const all: number[] = [];
        const { count, accum } = p.several;
        for (let e = 0; e < count; e++) {
          const at = { space: "accum", group: 0, offset: p.accum + e * accum, words: p.words } as const;
          all.push(...unpack("f32", await device.read(at), p.n, p.k, t.panel));
        }
        outputs.push(Float32Array.from(all));
        continue;
      }
      const data = await device.read({ space: "accum", group: 0, offset: p.accum, words: p.words });
      outputs.push(
        p.kind === "weight"
          ? unpack("f32", data, p.n, p.k, t.panel)
          : data.slice(0, p.kind === "factor" ? p.n * p.k : p.n),
      );
    } else {
      const { cols } = r.type as { cols: number };
      const words = capacities.savedRows * (cols + GAP);
      const data = await device.read({ space: "arena", group: 0, offset: dkvAt, words });
      outputs.push(data.filter((_, i) => i % (cols + GAP) < cols));
    }
  }
  device.dispose();
  return { outputs, launches: commands.length / COMMAND_WORDS };
}
