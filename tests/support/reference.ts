/** Training as torch + transformers + peft have it: loss, gradients and AdamW's losses, from one batch. */
import * as assert from "uvu/assert";
import { decode, groupsOf, parseHeader } from "../../runtime/bundle.ts";
import { chamberWords, type Range } from "../../runtime/device.ts";
import type { Engine } from "../../sdk/index.ts";
import { writeAdapter } from "../../sdk/peft/write.ts";
import { batchOf, checkGradient, checkLogits, fixtures, type reference } from "./engines.ts";

type Reference = (typeof reference)["qwen3"];
type LoraReference = Pick<Reference, "lora_loss" | "lora_grads" | "lora">;
const common = {
  batchSize: 5,
  shuffle: false,
  weightDecay: 0.01,
  learningRate: 1e-3,
  maxGradNorm: 1,
} as const;
/** A step whose change is the gradient, times `learningRate`. */
const plain = { steps: 1, optimizer: "sgd", momentum: 0, weightDecay: 0, maxGradNorm: 0 } as const;

function checkLosses(got: readonly number[], want: readonly number[]): void {
  got.forEach((x, i) =>
    assert.ok(Math.abs(x - want[i]!) <= 1e-4, `step ${i + 1}: loss ${x}, torch says ${want[i]}`),
  );
}
const near = (loss: number, want: number): void =>
  assert.ok(Math.abs(loss - want) <= 1e-5, `loss ${loss}, torch says ${want}`);

/**
 * Logits of the base and of the adapter that peft saved, or loads; its gradients, and `steps` of AdamW from
 * it.
 */
export async function checkLora(
  engine: Engine,
  name: string,
  vocab: number,
  ref: LoraReference,
  steps: number,
  adapter: string = name,
): Promise<void> {
  const data = batchOf(vocab);
  assert.is(engine.core.invariance, "verified");
  await checkLogits(engine, `${name}.logits`, vocab);
  await engine.adapters.load("peft", `${fixtures}peft-${adapter}`);
  await checkLogits(engine, `${adapter}.lora_logits`, vocab, "peft");
  const lr = 16;
  const one = await engine.finetune({
    ...common,
    ...plain,
    data,
    name: "grad",
    from: "peft",
    learningRate: lr,
  });
  near((await one.done).losses[0]!, ref.lora_loss);
  const [before, after] = ["peft", "grad"].map((adapter) => {
    const { weights } = writeAdapter(engine.core.adapters.find(adapter).content, engine.manifest);
    return parseHeader(weights, weights.length, adapter).tensors.map(({ name, start, end }) => ({
      name,
      values: decode(weights.subarray(start, end), "F32", name),
    }));
  });
  assert.is(before!.length, Object.keys(ref.lora_grads).length);
  before!.forEach(({ name, values }, i) => {
    const want = ref.lora_grads[name.replace("base_model.model.", "")]!;
    checkGradient(name, values, after![i]!.values, lr, want);
  });
  if (!steps) return;
  const job = await engine.finetune({ ...common, data, name: "adamw", from: "peft", method: "lora", steps });
  checkLosses((await job.done).losses, ref.lora);
  // What trains was checked when it began.
  assert.is(engine.core.invariance, "verified");
}

/** Every base weight as the device has it; and how they come back. */
async function weightsOf({ core: { device, manifest } }: Engine): Promise<() => void> {
  const { layers } = manifest.model;
  const { plan } = device;
  const at = Array.from({ length: groupsOf(plan, layers) }, (_, group): Range => {
    const words = chamberWords(plan, layers, "weights", group);
    return { space: "weights", group, offset: 0, words, lane: device.lanes - 1 };
  });
  const kept: Float32Array[] = [];
  for (const range of at) kept.push(await device.read(range));
  return () => kept.forEach((data, i) => void device.write(at[i]!, data));
}
/** Gradients of every tensor; it leaves the weights as they were. */
export async function checkFullGradients(engine: Engine, vocab: number, ref: Reference): Promise<void> {
  const lr = 0.5;
  const restore = await weightsOf(engine);
  const before = await engine.core.baseTensors();
  const job = await engine.finetune({
    ...common,
    ...plain,
    data: batchOf(vocab),
    name: "grad",
    method: "full",
    learningRate: lr,
  });
  near((await job.done).losses[0]!, ref.loss);
  const after = await engine.core.baseTensors();
  assert.equal(before.map((t) => t.name).sort(), Object.keys(ref.grads).sort());
  before.forEach((t, i) => checkGradient(t.name, t.data, after[i]!.data, lr, ref.grads[t.name]!));
  restore();
}
/** Losses of `steps` of AdamW over every tensor. */
export async function checkFullSteps(
  engine: Engine,
  vocab: number,
  ref: Reference,
  steps: number,
): Promise<void> {
  const job = await engine.finetune({
    ...common,
    data: batchOf(vocab),
    name: "adamw",
    method: "full",
    steps,
  });
  checkLosses((await job.done).losses, ref.full);
}
