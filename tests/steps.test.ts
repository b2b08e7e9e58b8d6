/** What a step costs on a GPU: uploads and passes, what its kernels take, and which of them take its rows. */
import { readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import * as assert from "uvu/assert";
import { compile } from "../compiler/compile.ts";
import type { Manifest } from "../runtime/bundle.ts";
import { settled } from "../runtime/dawn.page.ts";
import { openAdapter } from "../runtime/dawn.ts";
import type { Device } from "../runtime/device.ts";
import { Engine as Core } from "../runtime/engine.ts";
import type { WeftError } from "../runtime/errors.ts";
import { Host, readHost } from "../runtime/host.ts";
import type { List, OpenHost, Verdict, Verdicts } from "../runtime/invariance.ts";
import { readManifest } from "../runtime/load.ts";
import { openEngine } from "../runtime/loading.ts";
import type { StepTrace } from "../runtime/loops.ts";
import { CHOICES, measured } from "../runtime/tuning.ts";
import { openWebGpu } from "../runtime/webgpu.ts";
import { devicesOf } from "./support/devices.ts";
import { configs, idsOf, small, tiny } from "./support/engines.ts";
import { long } from "./support/scale.ts";
import { suite } from "./support/suite.ts";
import { scratch, writeModel } from "./support/tiny.ts";

const test = suite("steps");
const shallow = { ...configs.even, num_hidden_layers: 1 };
const compiled = compile(writeModel(shallow), {
  ...{ targets: ["webgpu"], methods: [], train: [], quick: true, capacities: small, limits: tiny },
});
const reader = { where: "memory", read: async (name: string) => (await compiled).files.get(name)! };

test("a step is one upload and one pass; timestamps tell of its kernels, and change no bit", async () => {
  await openAdapter("software");
  const ids = idsOf("timed", 9, 128);
  const { prototype } = GPUCommandEncoder;
  const { beginComputePass } = prototype;
  const { writeBuffer } = GPUQueue.prototype;
  let passes = 0;
  const uploads: number[] = [];
  GPUQueue.prototype.writeBuffer = function (this: GPUQueue, ...what: Parameters<GPUQueue["writeBuffer"]>) {
    uploads.push(what[4]!);
    return writeBuffer.apply(this, what);
  };
  prototype.beginComputePass = function (this: GPUCommandEncoder, d?: GPUComputePassDescriptor) {
    passes++;
    return beginComputePass.call(this, d);
  };
  const played = (timestamps: boolean) =>
    devicesOf(async (devices) => {
      const steps: StepTrace[] = [];
      const onStep = (t: StepTrace): void => void steps.push(t);
      const engine = await openEngine(reader, { device: "software", timestamps, onStep });
      const { device } = engine;
      passes = uploads.length = 0;
      const run = device.run.bind(device);
      let played: Parameters<Device["run"]> | undefined;
      device.run = (...list) => {
        played ??= [list[0], list[1].slice(), list[2].slice(), []];
        return run(...list);
      };
      for await (const _ of engine.generate({ prompt: ids, maxTokens: 4 }));
      const { logprobs } = await engine.score(ids);
      const [spent, uploaded] = [passes, [...uploads]];
      // A set of queries has room for 2048 launches.
      const [lane, commands, meta] = played!;
      await run(
        lane,
        Int32Array.from({ length: 6 * 2100 }, (_, i) => commands[i % 6]!),
        meta,
        [],
      );
      const { kernels } = device.stats;
      await engine.dispose();
      const clock = devices[0]!.features.has("timestamp-query");
      return { logprobs: [...logprobs], steps, spent, uploaded, kernels, clock, plan: device.plan };
    });
  try {
    const [off, on] = [await played(false), await played(true)];
    assert.equal(on.logprobs, off.logprobs);
    assert.equal([off.clock, on.clock], [false, true]);
    assert.is(off.spent, off.steps.length, "one pass a step");
    const { metaWords, stepWords, blocks } = off.plan;
    const block = Math.max(stepWords, blocks.unit.words, blocks.update.words);
    assert.ok(block < metaWords);
    assert.equal(
      off.uploaded,
      off.steps.map(() => 4 * block),
      "of metadata what it reads",
    );
    assert.ok(off.kernels === null && off.steps.every((s) => s.kernels === null));
    assert.is(
      on.spent,
      on.steps.reduce((n, s) => n + s.commands, 0),
      "one a launch",
    );
    let [kernels, whole] = [0, 0];
    for (const { kernels: times, commands, ms } of on.steps) {
      assert.is(
        times!.reduce((n, k) => n + k.launches, 0),
        commands,
      );
      for (const k of times!) assert.ok(k.kernel in on.plan.kernels, k.kernel);
      kernels += times!.reduce((n, k) => n + k.ms, 0);
      whole += ms;
    }
    assert.ok(kernels > whole / 100 && kernels < whole, `${kernels} ms of kernels in ${whole} ms of steps`);
    assert.equal(
      on.kernels!.map((k) => k.launches),
      [2100],
    );
  } finally {
    prototype.beginComputePass = beginComputePass;
    GPUQueue.prototype.writeBuffer = writeBuffer;
  }
});

test("timestamps of who has no clock are one error that says so", async () => {
  await openAdapter("software");
  const { prototype } = GPU;
  const { requestAdapter } = prototype;
  prototype.requestAdapter = async function (this: GPU) {
    const adapter = await requestAdapter.call(this);
    return adapter && (Object.create(adapter, { features: { value: new Set() } }) as GPUAdapter);
  };
  try {
    for (const device of ["wasm", "software"] as const) {
      const e = await openEngine(reader, { device, timestamps: true }).then(
        () => assert.unreachable("this rejects") as never,
        (e: WeftError) => e,
      );
      assert.is(e.code, "WEFT_DEVICE", e.message);
      assert.match(e.message, /timestamp-query.*without `timestamps`/s);
    }
  } finally {
    prototype.requestAdapter = requestAdapter;
  }
});
type Files = (m: Manifest, file: (name: string) => Promise<Uint8Array>) => Promise<Device>;
const gpu: Files = async (m, file) =>
  (await openWebGpu(m, file, "software", { families: { fewRows: 8 }, tunes: true }))!;
/** Prompts of some rows: what follows each, and how likely. */
async function saidBy(open: Files, verdicts: Verdicts): Promise<unknown[]> {
  const engine = await Core.open(reader, open, {}, verdicts);
  const all: unknown[] = [];
  for (const n of [4, 5, 12, 20, 32, 33])
    for await (const { id, logprob } of engine.generate({ prompt: idsOf(`${n} rows`, n, 128), maxTokens: 1 }))
      all.push(id, logprob);
  await engine.dispose();
  return all;
}

test("however many rows kernels for a few take, rows have the same bits", async () => {
  const said = new Set<string>();
  for (const fewRows of long ? CHOICES : [4, 16, 32]) {
    const verdict: Verdict = { invariance: "verified", families: { fewRows }, trained: new Map() };
    const known = new (class extends Map<string, Verdict> {
      override get = (): Verdict => verdict;
    })();
    said.add(JSON.stringify(await saidBy(gpu, known)));
  }
  assert.is(said.size, 1);
});

test("the choice is the last that was faster with the same bits, of those in time", async () => {
  const { files } = await compiled;
  const manifest = await readManifest(reader);
  const device = await gpu(manifest, async (name) => files.get(name)!);
  const kernels = Object.keys(device.plan.kernels);
  const hostFiles = await readHost(async (name) => files.get(name)!);
  const open: OpenHost = (m, { plan, lanes, picks }, families) =>
    Host.open(m, plan.metaWords, { families, lanes, picks }, hostFiles);
  /** Kernels for a few are faster in so many choices, and tiles give other bits from so many rows on. */
  const chosen = async (faster: number, wrong: number, budget: number) => {
    let lists = 0;
    const odd: Device = {
      ...device,
      run: async (lane, commands, meta, reads) => {
        const read = await device.run(lane, commands, meta, reads);
        const tiles = commands.some((k, i) => i % 6 === 0 && /proj_many$/.test(kernels[k]!));
        if (tiles && reads[0]!.words >= wrong * manifest.model.hiddenSize) read[0]![0]! += 1;
        return read;
      },
    };
    // Both lists of a choice in four turns.
    const time = async ({ commands }: List): Promise<number> => {
      const [few, choice] = [lists % 2 === 0, Math.floor(lists++ / 8)];
      assert.ok(commands.length > 0);
      for (let i = 0; i < commands.length; i += 6)
        assert.match(kernels[commands[i]!]!, few ? /_few$/ : /_many$/);
      return few ? 2 : choice < faster ? 3 : 1;
    };
    return measured(manifest, odd, open, time, budget);
  };
  for (const [faster, choice] of CHOICES.entries())
    assert.is(await chosen(faster, 999, 1e6), choice, `${faster} choices`);
  assert.is(await chosen(5, 12, 1e6), 8, "from 12 rows on other bits");
  assert.is(await chosen(5, 1, 1e6), 4);
  assert.is(await chosen(0, 999, 0), 8, "no time: as it was");
  await device.dispose();
});

test("what was chosen for a bundle on a device is kept; what is no choice is measured anew", async () => {
  const { WEFT_CACHE: kept } = process.env;
  process.env.WEFT_CACHE = join(scratch(), "cache");
  try {
    const chosen = async (): Promise<number> => {
      const verdicts: Verdicts = new Map();
      await (await Core.open(reader, gpu, {}, verdicts)).dispose();
      return [...verdicts.values()][0]!.families.fewRows!;
    };
    const first = await chosen();
    assert.ok(
      CHOICES.some((n) => n === first),
      `${first}`,
    );
    const folder = join(process.env.WEFT_CACHE, "tuned");
    const [name, ...others] = readdirSync(folder);
    assert.equal(others, []);
    const file = join(folder, name!);
    assert.is(readFileSync(file, "utf8"), JSON.stringify({ fewRows: first }));
    const other = first === 24 ? 16 : 24;
    writeFileSync(file, JSON.stringify({ fewRows: other }));
    assert.is(await chosen(), other);
    writeFileSync(file, JSON.stringify({ fewRows: 7 }));
    assert.is.not(await chosen(), 7);
    assert.is.not(readFileSync(file, "utf8"), JSON.stringify({ fewRows: 7 }));
  } finally {
    if (kept === undefined) delete process.env.WEFT_CACHE;
    else process.env.WEFT_CACHE = kept;
  }
});
test("a browser that looks for what has ended at submits, as Firefox, is sent empty ones", async () => {
  const { navigator } = globalThis;
  const as = (userAgent: string): void => {
    Object.defineProperty(globalThis, "navigator", { value: { userAgent }, configurable: true });
  };
  try {
    for (const [browser, wanted] of [
      ["Gecko/20100101 Firefox/153.0", 3],
      ["AppleWebKit/537.36 Chrome/147.0 Safari/537.36", 0],
    ] as const) {
      as(browser);
      let submitted = 0;
      let end: (found: string) => void;
      const work = new Promise<string>((resolve) => {
        end = resolve;
      });
      const submit = (list: readonly GPUCommandBuffer[]): void => {
        assert.equal(list, []);
        if (++submitted === wanted) end("ended");
      };
      // Far longer than it takes to be asked.
      const timer = setTimeout(() => end(wanted ? "nobody asked" : "ended"), wanted ? 10_000 : 20);
      assert.is(await settled(work, () => {}, { submit } as unknown as GPUQueue), "ended");
      assert.is(submitted, wanted, browser);
      clearTimeout(timer);
    }
  } finally {
    Object.defineProperty(globalThis, "navigator", { value: navigator, configurable: true });
  }
});
test.run();
