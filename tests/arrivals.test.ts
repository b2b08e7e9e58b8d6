/**
 * What a load on WebGPU leaves for later: a load compiles what serves, a class's first job what it plays, and
 * checks it on memory of its own. What serves meanwhile has the same bits.
 */
import * as assert from "uvu/assert";
import { compile } from "../compiler/compile.ts";
import { openAdapter } from "../runtime/dawn.ts";
import { Engine as Core } from "../runtime/engine.ts";
import { type Job, startJob } from "../runtime/trainer.ts";
import { openWebGpu } from "../runtime/webgpu.ts";
import { ownDevices } from "./support/devices.ts";
import { batchOf, bits, configs, idsOf, small, tiny } from "./support/engines.ts";
import { suite } from "./support/suite.ts";
import { writeModel } from "./support/tiny.ts";

const test = suite("arrivals");
const made = (...train: ("lora" | "ia3")[]) =>
  compile(writeModel({ ...configs.even, num_hidden_layers: 1 }), {
    ...{ targets: ["webgpu"], train, methods: train, capacities: small, limits: tiny, quick: true },
  }).then((c) => c.files);
/** Of two classes, and of one where the other would only be compiled. */
const [two, one] = [made("lora", "ia3"), made("lora")];

/**
 * Labels of the pipelines that `body` has asked for; `asked` hears of them each time, of how many are being
 * compiled and on which device.
 */
async function pipelinesOf(
  body: (labels: string[]) => Promise<void>,
  asked: (labels: readonly string[], compiled: number, device: GPUDevice) => void = () => {},
): Promise<void> {
  ownDevices();
  await openAdapter("software");
  const { prototype } = GPUDevice;
  const { createComputePipelineAsync } = prototype;
  const labels: string[] = [];
  let compiled = 0;
  prototype.createComputePipelineAsync = async function (this: GPUDevice, d) {
    labels.push(d.label!);
    asked(labels, ++compiled, this);
    return createComputePipelineAsync.call(this, d).finally(() => compiled--);
  };
  try {
    await body(labels);
  } finally {
    prototype.createComputePipelineAsync = createComputePipelineAsync;
  }
}
/** An engine on a bundle, whose kernels with such a name may have another text. */
async function opened(
  files: typeof two,
  o: { ahead?: boolean; change?: readonly [name: RegExp, to: (text: string) => string] } = {},
): Promise<Core> {
  const all = await files;
  const read = async (name: string): Promise<Uint8Array> => {
    const bytes = all.get(name)!;
    if (!o.change?.[0].test(name)) return bytes;
    const text = new TextDecoder().decode(bytes);
    const changed = o.change[1](text);
    assert.is.not(changed, text, name);
    return new TextEncoder().encode(changed);
  };
  const options = { ahead: o.ahead ?? false };
  return Core.open({ where: "memory", read: async (name) => all.get(name)! }, async (m) => {
    return (await openWebGpu(m, read, "software", options))!;
  });
}
const start = (core: Core, name: string, method = "lora"): Job =>
  startJob(
    core,
    { name, method, rows: batchOf(128), steps: 1, batchSize: 5, optimizer: "sgd", learningRate: 1e-2 },
    [],
  );
const logitsOf = async (core: Core, adapter?: string): Promise<string> => {
  const { logits } = await core.score(idsOf("arrivals", 40, 128), { logits: true, adapter });
  return logits!.map(bits).join();
};
const training = /^(copy|rerun|backward|head_train|sumsq|clip|sgd|adamw|lion|calibrate)/;

/** A kernel that LoRA alone plays. */
const own = /backward_lora_d_self_attn_q_proj_lora_a/;
test("a kernel of training that the device refuses fails jobs that play it, with its name", async () => {
  const core = await opened(two, {
    change: [own, (s) => s.replace("fn main", "fn maim")],
  });
  const base = await logitsOf(core);
  for (const name of ["one", "two"]) {
    const error = await start(core, name).done.then(
      () => null,
      (e: { code: string; where: string }) => e,
    );
    assert.is(error?.code, "WEFT_DEVICE");
    assert.match(error!.where, own);
  }
  await start(core, "three", "ia3").done;
  assert.is(await logitsOf(core), base);
  await core.dispose();
});

test("a perturbed kernel of training is seen when its class's first job begins", async () => {
  const core = await opened(two, {
    // A sequence that a unit has beside others gets another gradient than alone.
    change: [own, (s) => s.replace(/(total\d) \+ (sum\d);/g, "$1 + $2 * (1.0f + f32(s) * 1.0e-4f);")],
  });
  assert.is(core.invariance, "verified");
  await start(core, "other", "ia3").done;
  assert.is(core.invariance, "verified");
  await start(core, "one").done;
  assert.is(core.invariance, "off");
  await core.dispose();
});

test("a load compiles what serves; a class's first job what it plays; nothing twice", () =>
  pipelinesOf(async (labels) => {
    const core = await opened(two);
    assert.is(core.invariance, "verified");
    assert.ok(labels.length > 5);
    assert.equal(
      labels.filter((l) => training.test(l)),
      [],
    );
    const base = await logitsOf(core);
    const first = labels.length;
    await start(core, "one").done;
    const made = labels.slice(first);
    assert.ok(made.some((l) => /^backward_lora/.test(l)) && made.some((l) => /^sgd_lora/.test(l)));
    assert.equal(
      made.filter((l) => /ia3|adamw|lion|calibrate/.test(l)),
      [],
    );
    const one = await logitsOf(core, "one");
    const before = labels.length;
    await start(core, "two").done;
    assert.is(labels.length, before);
    // The check of another class leaves what is in slots, in blocks and in use as it was.
    const [job, served] = [start(core, "three", "ia3"), logitsOf(core, "one")];
    assert.is(await served, one);
    await job.done;
    assert.ok(labels.slice(before).some((l) => /^backward_ia3/.test(l)));
    assert.equal([await logitsOf(core), await logitsOf(core, "one")], [base, one]);
    assert.is(core.invariance, "verified");
    assert.equal(core.memory().blocks.free, core.memory().blocks.total);
    assert.is(new Set(labels).size, labels.length);
    await core.dispose();
  }));

test("a device that goes while kernels of training come leaves two behind at most, and another opens", async () => {
  let most = 0;
  let lost = -1;
  await pipelinesOf(
    async (labels) => {
      const core = await opened(one);
      const error = await start(core, "one").done.then(
        () => null,
        (e: { code: string }) => e,
      );
      assert.is(error?.code, "WEFT_DEVICE_LOST");
      await core.dispose();
      assert.ok(lost > 0);
      // A browser compiles what it was asked for, and gives no adapter before: the rest is not asked for.
      assert.ok(labels.slice(lost).length <= 2, `${labels.slice(lost)}`);
      assert.is(most, 2);
      const next = await opened(one);
      await start(next, "one").done;
      await next.dispose();
    },
    (labels, compiled, device) => {
      most = Math.max(most, compiled);
      if (lost >= 0 || !training.test(labels.at(-1)!)) return;
      lost = labels.length - 1;
      device.destroy();
    },
  );
});

test("ahead, everything comes without being asked for, and an end in the middle is one", () =>
  pipelinesOf(async (labels) => {
    const core = await opened(one, { ahead: true });
    for (let i = 0; i < 500 && !labels.some((l) => /^clip/.test(l)); i++) await logitsOf(core);
    assert.ok(labels.some((l) => /^clip/.test(l)));
    const before = labels.length;
    await start(core, "one").done;
    assert.is(labels.length, before);
    await core.dispose();
    const ended = await opened(one, { ahead: true });
    const { done } = start(ended, "one");
    await ended.dispose();
    const error = await done.then(
      () => null,
      (e: { code: string }) => e,
    );
    assert.is(error?.code, "WEFT_DISPOSED");
  }));
test.run();
