/** What a step costs on a GPU: uploads and passes, what its kernels take, and which of them take its rows. */
import * as assert from "uvu/assert";
import { compile } from "../compiler/compile.ts";
import { openAdapter } from "../runtime/dawn.ts";
import type { Device } from "../runtime/device.ts";
import type { WeftError } from "../runtime/errors.ts";
import { openEngine } from "../runtime/loading.ts";
import type { StepTrace } from "../runtime/loops.ts";
import { devicesOf } from "./support/devices.ts";
import { configs, idsOf, small, tiny } from "./support/engines.ts";
import { suite } from "./support/suite.ts";
import { writeModel } from "./support/tiny.ts";

const test = suite("steps");
const shallow = { ...configs.even, num_hidden_layers: 1 };
const compiled = compile(writeModel(shallow), {
  ...{ targets: ["webgpu"], methods: [], train: [], quick: true, capacities: small, limits: tiny },
});
const reader = { where: "memory", read: async (name: string) => (await compiled).files.get(name)! };

test("a step is one upload and one pass; timestamps tell what its kernels took, and change no bit", async () => {
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
test.run();
