/** Storage formats of weights: what is stored, and that kernels compute with it as with f32. */
import { readFileSync, writeFileSync } from "node:fs";
import * as assert from "uvu/assert";
import { compile, compileTo } from "../compiler/compile.ts";
import type { FormatOption } from "../compiler/formats.ts";
import { Engine as Core } from "../runtime/engine.ts";
import { type Format, formats, pack, piecesOf, STORED_PANEL } from "../runtime/formats.ts";
import { readManifest } from "../runtime/load.ts";
import { encode } from "../runtime/safetensors.ts";
import { startJob } from "../runtime/trainer.ts";
import { restore, store, unpack } from "../runtime/values.ts";
import { openWasm } from "../runtime/wasm.ts";
import { findAdapter, openWebGpu } from "../runtime/webgpu.ts";
import { type Engine, load } from "../sdk/index.ts";
import { code } from "./support/code.ts";
import { bits, collect, configs, contentBits, engineOf, idsOf, s2ftOdd, small } from "./support/engines.ts";
import { everything, job } from "./support/everything.ts";
import { long } from "./support/scale.ts";
import { suite } from "./support/suite.ts";
import { scratch, tensorsOf, writeModel } from "./support/tiny.ts";

const test = suite("formats");

/** What an engine says whose matrices are stored as `formatOf` has it, and one of f32 of the same values. */
async function storedAndF32(
  target: "wasm" | "webgpu",
  formatOf: (tensor: string) => Format,
  format: FormatOption,
  train: readonly string[],
): Promise<{ said: unknown[]; bytes: number[] }> {
  const model = (round: boolean): string => {
    const dir = writeModel(configs.odd);
    const tensors = tensorsOf(configs.odd).map((t) => {
      const [n, k] = t.shape as [number, number];
      if (!round || t.shape.length < 2) return t;
      const as = formatOf(t.name);
      return { ...t, data: restore(as, store(as, t.data as Float32Array, n, k, t.name), n, k) };
    });
    writeFileSync(`${dir}/model.safetensors`, encode(tensors));
    return dir;
  };
  const said: unknown[] = [];
  const bytes: number[] = [];
  for (const [dir, as] of [
    [model(false), format],
    [model(true), "f32"],
  ] as const) {
    const out = `${scratch()}/b.weft`;
    const m = await compileTo(dir, out, {
      targets: [target],
      train,
      methods: train,
      format: as,
      quick: true,
      capacities: { ...small, s2ft: s2ftOdd },
    });
    bytes.push(m.tensors.reduce((n, t) => n + t.bytes, 0));
    await using engine = await load(out, { device: target === "wasm" ? "wasm" : "software" });
    said.push(await everything(engine, train));
  }
  return { said, bytes };
}
const stored = { q4: 0.17, int8: 0.28, f16: 0.51, bf16: 0.51 } as const;
const names = Object.keys(stored) as (keyof typeof stored)[];

for (const format of names)
  test(`${format} on wasm computes what f32 of the same values does, serving and training`, async () => {
    const methods = ["lora", "dora", "s2ft"];
    const { said, bytes } = await storedAndF32("wasm", () => format, format, methods);
    assert.equal(said[0], said[1]);
    assert.ok(bytes[0]! < bytes[1]! * stored[format], `${bytes}`);
  });

// A software adapter takes seconds to load, so each bundle has all formats. Turned by one, every matrix is
// served in each, sums over 120 and 150, with a last block in part, too; the first turn trains.
const matrices = [
  "embed_tokens",
  "q_proj",
  "k_proj",
  "v_proj",
  "o_proj",
  "gate_proj",
  "up_proj",
  "down_proj",
];
for (const turn of names.keys())
  test(`formats on webgpu compute what f32 of the same values does: turn ${turn}`, async () => {
    const of = Object.fromEntries(
      [...matrices, "lm_head"].map((module, i) => [module, names[(i + turn) % names.length]!]),
    );
    const formatOf = (tensor: string): Format => of[tensor.split(".").at(-2)!]!;
    const { said } = await storedAndF32("webgpu", formatOf, of, turn ? [] : ["lora"]);
    assert.equal(said[0], said[1]);
  });

test("matrices are packed at compile time: a CPU holds the bytes of its files", async () => {
  for (const format of formats) {
    const out = `${scratch()}/b.weft`;
    const m = await compileTo(writeModel(configs.odd), out, {
      targets: ["wasm"],
      format,
      train: [],
      quick: true,
      capacities: small,
    });
    await using engine = await load(out, { device: "wasm" });
    const { device } = engine.core;
    for (const [name, path] of Object.entries(m.checkpoint.layer)) {
      const p = device.plan.layerParams.find((p) => p.name === name)!;
      const t = m.tensors.find((t) => t.name === path.replace("{l}", "1"))!;
      const words = await device.read({ space: "weights", group: 1, offset: p.offset, words: t.bytes / 4 });
      const file = readFileSync(`${out}/${t.shard}`).subarray(t.start, t.start + t.bytes);
      assert.ok(Buffer.from(words.buffer).equals(file), `${format} ${name}`);
    }
    for (const [n, k] of [
      [5, 77],
      [8, 32],
      [41, 33],
    ] as const) {
      const values = Float32Array.from(idsOf(`panels ${n}`, n * k, 1000), (x) => x / 500 - 1);
      const stored = store(format, values, n, k, "t");
      const wide = pack(format, stored, n, k, 16);
      assert.equal(
        unpack(format, new Float32Array(wide.buffer), n, k, 16),
        restore(format, stored, n, k),
        `${format} ${n} × ${k}`,
      );
      // From an address that is no multiple of four.
      const moved = new Uint8Array(stored.length + 1);
      moved.set(stored, 1);
      assert.equal(pack(format, moved.subarray(1), n, k, 16), wide);
      if (format === "f32") assert.equal(restore(format, stored, n, k), values);
    }
  }
});

test("a matrix in pieces, several of a plane, is the same matrix: in panels, in blocks, as its file", () => {
  const [n, k] = [1103, 2100];
  const values = Float32Array.from(idsOf("pieces", n * k, 1000), (x) => x / 500 - 1);
  for (const format of formats) {
    const stored = store(format, values, n, k, "t");
    const want = restore(format, stored, n, k);
    const pieces = [...piecesOf(format, n, k, 16)];
    const most = Math.max(...pieces.map(({ from, to }) => to - from));
    assert.ok(most <= 2 ** 20 && pieces.filter(({ plane }) => plane === 0).length > 1, format);
    for (const block of [n, 128]) {
      const wide = new Float32Array(pack(format, stored, n, k, 16, block).buffer);
      const back = unpack(format, wide, n, k, 16, block);
      assert.is(
        back.findIndex((x, i) => x !== want[i]),
        -1,
        `${format}, blocks of ${block}`,
      );
    }
    assert.ok(Buffer.from(pack(format, stored, n, k, STORED_PANEL).buffer).equals(stored), format);
  }
});

test("int8: the nearest of 127 steps, scales upwards; what needs the values is refused", async () => {
  const [n, k] = [5, 77];
  const values = Float32Array.from(
    idsOf("steps", n * k, 100_000),
    (x, i) => (x / 50_000 - 1) * 10 ** ((i % 7) - 4),
  );
  const got = restore("int8", store("int8", values, n, k, "t"), n, k);
  for (let row = 0; row < n; row++)
    for (let b = 0; b < k; b += 32) {
      const at = Array.from({ length: Math.min(32, k - b) }, (_, i) => row * k + b + i);
      const step = Math.max(...at.map((i) => Math.abs(values[i]!))) / 127;
      // Half a step, and what the scale's eleven bits add to it.
      for (const i of at)
        assert.ok(
          Math.abs(got[i]! - values[i]!) <= step * 0.5 * (1 + 2 ** -10) + 2 ** -25,
          `${values[i]} became ${got[i]}, step ${step}`,
        );
    }
  assert.equal(
    [...restore("int8", store("int8", got, n, k, "t"), n, k)],
    [...got],
    "values of int8 stay as they are",
  );
  await using engine = await engineOf(configs.even, { format: "int8" });
  await (await engine.finetune(job)).done;
  await code("WEFT_ADAPTER", () => engine.merge("job"), /int8/);
  await code(
    "WEFT_OPTION",
    () => compile(writeModel(configs.even), { train: ["full"], format: "int8" }),
    /full/,
  );
  await code(
    "WEFT_OPTION",
    () => compile(writeModel(configs.even), { format: "int4" as never }),
    /f32, f16, bf16, int8 or q4/,
  );
});

test("bf16: its own values stay, others round to nearest even, none beyond its range", async () => {
  const bits = Uint32Array.from({ length: 2 ** 16 }, (_, h) => h << 16).filter(
    (b) => (b & 0x7f800000) !== 0x7f800000,
  );
  const all = new Float32Array(bits.buffer);
  const held = (values: Float32Array): Float32Array =>
    restore("bf16", store("bf16", values, values.length, 1, "t"), values.length, 1);
  assert.equal(new Uint32Array(held(all).buffer), bits);
  const one = (x: number): number => held(Float32Array.of(x))[0]!;
  const step = 2 ** -7;
  for (const [x, want] of [
    [1 + step / 2, 1],
    [1 + step / 2 + 2 ** -20, 1 + step],
    [1 + (3 * step) / 2, 1 + 2 * step],
    [-(1 + step / 2 - 2 ** -20), -1],
    [2 ** -133 * 1.25, 2 ** -133],
  ] as const)
    assert.is(one(x), want, String(x));
  const payload = new Float32Array(Uint32Array.of(0x7fffffff).buffer)[0]!;
  for (const x of [3.4e38, -3.4e38, Infinity, NaN, payload])
    await code("WEFT_WEIGHTS", () => one(x), /bf16.*element 0/s);
  // A checkpoint in bf16 is served in bf16 with the logits of f32.
  const dir = writeModel(configs.odd);
  const rounded = tensorsOf(configs.odd).map((t) => ({ ...t, data: held(t.data as Float32Array) }));
  writeFileSync(`${dir}/model.safetensors`, encode(rounded));
  const said: unknown[] = [];
  for (const format of ["f32", "bf16"] as const) {
    const out = `${scratch()}/b.weft`;
    await compileTo(dir, out, { targets: ["wasm"], format, train: [], quick: true, capacities: small });
    await using engine = await load(out, { device: "wasm" });
    said.push((await engine.score(idsOf("bf16", 30, 259), { logits: true })).logits);
  }
  assert.equal(said[1], said[0]);
});

test("products of integers: alone = co-served = by two threads, near exact ones; a class of its own", async () => {
  const methods = ["lora", "dora"];
  const options = { train: methods, methods, format: { default: "q4", lm_head: "int8" } } as const;
  await using exact = await engineOf(configs.even, options);
  await using engine = await engineOf(configs.even, {
    ...options,
    products: "integers",
    load: { threads: 1 },
  });
  await using two = await engineOf(configs.even, { ...options, products: "integers", load: { threads: 2 } });
  assert.is(engine.device.numerics, "wasm int");
  assert.is(engine.core.invariance, "verified");
  assert.equal(await everything(two, methods), await everything(engine, methods));

  const requests = [0, 1, 2, 3, 4, 5].map((i) => ({
    prompt: idsOf("integers", 9 + 13 * i, 128),
    maxTokens: 6,
    ...(i % 2 && { adapter: "lora" }),
  }));
  const alone = [];
  for (const r of requests) alone.push(await collect(engine, r));
  const train = async (e: Engine, name: string) => (await e.finetune({ ...job, name })).done;
  const { losses } = await train(engine, "alone");
  const beside = train(engine, "beside");
  assert.equal(await Promise.all(requests.map((r) => collect(engine, r))), alone);
  assert.equal((await beside).losses, losses);
  assert.is(contentBits(engine, "beside"), contentBits(engine, "alone"));

  // What the roundings of all layers make, of logits and of what a gradient changes.
  const ids = idsOf("near", 60, 128);
  const [ours, theirs] = await Promise.all(
    [engine, exact].map(async (e) => (await e.score(ids, { logits: true })).logits!.flatMap((x) => [...x])),
  );
  const most = Math.max(...theirs!.map(Math.abs));
  const error = Math.max(...ours!.map((x, i) => Math.abs(x - theirs![i]!)));
  assert.ok(error > 0 && error < 1e-4 * most, `off by ${error} of ${most}`);
  const { losses: wanted } = await train(exact, "alone");
  losses.forEach((x, i) => assert.ok(Math.abs(x - wanted[i]!) < 1e-5 * wanted[i]!, `${x}, ${wanted[i]}`));

  await code(
    "WEFT_OPTION",
    () => compile(writeModel(configs.even), { products: "integers" }),
    /int8 or q4.*f32/s,
  );
});

test("products for matrix units are refused on wasm", async () => {
  const asked = () => compile(writeModel(configs.even), { products: "matrix" });
  await code("WEFT_OPTION", asked, /products: matrix.*webgpu alone.*wasm, webgpu.*--target webgpu/s);
});

if (long)
  test("products of f16, without matrix units: batched = alone in every family", async () => {
    const config = { ...configs.even, num_hidden_layers: 1 };
    const { files } = await compile(writeModel(config), {
      ...{ targets: ["webgpu"], quick: true, capacities: small, products: "matrix" },
      ...{ train: ["lora"], format: { default: "q4", lm_head: "f16" } },
    });
    const reader = { where: "memory", read: async (name: string) => files.get(name)! };
    const ids = idsOf("halves", 40, 128);
    const said: string[] = [];
    const trained = new Set<string>();
    for (const fewRows of [8, 0, null]) {
      const core = await Core.open(
        reader,
        async (m, file) => (await openWebGpu(m, file, "software", { families: { fewRows } }))!,
      );
      assert.is(core.invariance, "verified");
      assert.is(core.device.info.numerics, "webgpu matrix plain");
      const rows = async (): Promise<string> =>
        (await core.score(ids, { logits: true })).logits!.map(bits).join();
      said.push(await rows());
      // Alone, then beside a job and an answer.
      const row = { input_ids: ids, labels: ids };
      const train = async (name: string): Promise<string> => {
        const how = { rows: [row, row], batchSize: 2, method: "lora", steps: 2, learningRate: 1e-2 };
        const { losses } = await startJob(core, { ...how, name }, []).done;
        return [losses, core.adapters.find(name).content.tensors.map(bits)].join();
      };
      const alone = await train("alone");
      const beside = train("beside");
      const answer = core.generate({ prompt: ids.slice(0, 9), maxTokens: 12 });
      const first = answer.next();
      assert.is(await rows(), said.at(-1), "beside a job and an answer");
      await first;
      for await (const _ of answer);
      assert.is(await beside, alone);
      trained.add(alone);
      await core.dispose();
    }
    assert.is(new Set(said).size, 1, "tiles and few rows = tiles = plain");
    assert.is(trained.size, 1, "so are jobs");
  });

if (long)
  test("products of integers on webgpu: batched = alone in every family, near those of the CPU", async () => {
    const format = { default: "q4", lm_head: "int8" } as const;
    const config = { ...configs.even, num_hidden_layers: 1 };
    const how = { train: ["lora"], methods: ["lora"], format, products: "integers" } as const;
    const { files } = await compile(writeModel(config), {
      ...how,
      ...{ targets: ["wasm", "webgpu"], quick: true, capacities: small },
    });
    const reader = { where: "memory", read: async (name: string) => files.get(name)! };
    const ids = idsOf("integers", 40, 128);
    const said: string[] = [];
    const logits: Float32Array[][] = [];
    for (const fewRows of [8, null, undefined]) {
      const core = await Core.open(reader, async (m, file) =>
        fewRows === undefined
          ? openWasm(m, await file("kernels.wasm"), { threads: 1 })
          : (await openWebGpu(m, file, "software", { families: { fewRows } }))!,
      );
      assert.is(core.invariance, "verified");
      assert.is(core.device.info.numerics, fewRows === undefined ? "wasm int" : "webgpu int");
      const rows = (await core.score(ids, { logits: true })).logits!;
      logits.push([...rows]);
      said.push(rows.map(bits).join());
      await core.dispose();
    }
    assert.is(said[0], said[1], "tiles and few rows = plain");
    const [ours, theirs] = [logits[0]!, logits[2]!].map((rows) => rows.flatMap((x) => [...x]));
    const most = Math.max(...theirs!.map(Math.abs));
    const error = Math.max(...ours!.map((x, i) => Math.abs(x - theirs![i]!)));
    assert.ok(error > 0 && error < 5e-4 * most, `off by ${error} of ${most}`);

    // A language without dot products of bytes.
    const adapter = await findAdapter("software");
    const before = Object.getOwnPropertyDescriptor(globalThis, "navigator");
    const gpu = { requestAdapter: async () => adapter, wgslLanguageFeatures: new Set() };
    Object.defineProperty(globalThis, "navigator", { value: { gpu }, configurable: true });
    try {
      const manifest = await readManifest(reader);
      const open = (fewRows: number | null) =>
        openWebGpu(manifest, reader.read, "software", { families: { fewRows } });
      await code("WEFT_DEVICE", () => open(8), /packed_4x8_integer_dot_product.*--products integers/s);
      await (await open(null))!.dispose();
    } finally {
      if (before) Object.defineProperty(globalThis, "navigator", before);
      else Reflect.deleteProperty(globalThis, "navigator");
    }
  });

test.run();
