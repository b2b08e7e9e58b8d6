/**
 * Law 2: logits, losses, gradients and optimizer steps equal those of torch + transformers + peft, on both
 * targets.
 */
import { createHash } from "node:crypto";
import { existsSync, readFileSync } from "node:fs";
import * as assert from "uvu/assert";
import {
  batchOf,
  checkLogits,
  configs,
  engineOf,
  fixtures,
  idsOf,
  reference,
  referenceTensor,
} from "./support/engines.ts";
import { checkFullGradients, checkFullSteps, checkLora } from "./support/reference.ts";
import { long, rounds } from "./support/scale.ts";
import { suite } from "./support/suite.ts";

const test = suite("reference");
const targets = ["wasm", "webgpu"] as const;

for (const name of ["odd", "even"] as const)
  for (const target of name === "odd" || long ? targets : (["wasm"] as const)) {
    const config = configs[name];
    const vocab = config.vocab_size;
    const ref = reference[name];
    const most = ref.lora.length;
    const steps = target === "wasm" ? most : rounds(4, most);

    test(`${name} on ${target}: logits, LoRA gradients and ${steps} AdamW steps`, async () => {
      await using engine = await engineOf(config, { targets: [target] });
      await checkLora(engine, name, vocab, ref, steps);
    });

    test(`${name} on ${target}: full gradients and ${steps} AdamW steps`, async () => {
      await using engine = await engineOf(config, { targets: [target], train: ["full"] });
      await checkFullGradients(engine, vocab, ref);
      await checkFullSteps(engine, vocab, ref, steps);
    });
  }

// On WebGPU in the short form formats.test has them.
for (const target of long ? targets : (["wasm"] as const))
  test(`f16 weights on ${target}: logits of the rounded model, and gradients through it`, async () => {
    await using half = await engineOf(configs.odd, { format: "f16", targets: [target] });
    const want = referenceTensor("odd.logits");
    const { logits } = await half.score(idsOf("prompt", 70, 259), { logits: true });
    let error = 0;
    let max = 0;
    logits!.forEach((row, i) =>
      row.forEach((x, j) => {
        error = Math.max(error, Math.abs(x - want[i * 259 + j]!));
        max = Math.max(max, Math.abs(want[i * 259 + j]!));
      }),
    );
    // The tiny weights sit on a 2^-23 grid: rounding them to 11 bits shows, and stays small.
    assert.ok(error > 0 && error < 5e-3 * max, `f16 differs from f32 by ${error} of ${max}`);
    const job = await half.finetune({
      name: "half",
      data: batchOf(259),
      steps: 3,
      batchSize: 5,
      shuffle: false,
      learningRate: 5e-3,
    });
    const { losses } = await job.done;
    assert.ok(
      Math.abs(losses[0]! - reference.odd.loss) < 5e-3,
      `loss ${losses[0]}, f32 has ${reference.odd.loss}`,
    );
    assert.ok(losses[2]! < losses[0]!, "an f16 base learns");
  });

test("an adapter that weft saved is what peft read: same file, same logits", async () => {
  const folder = `${fixtures}weft-adapter`;
  assert.ok(
    existsSync(folder) && reference.weft_adapter_sha256,
    "run tests/fixtures/save_adapter.ts, then make.py",
  );
  assert.is(
    createHash("sha256")
      .update(readFileSync(`${folder}/adapter_model.safetensors`))
      .digest("hex"),
    reference.weft_adapter_sha256,
  );
  await using engine = await engineOf(configs.odd);
  await engine.adapters.load("saved", folder);
  await checkLogits(engine, "weft_adapter.logits", 259, "saved");
});
test.run();
