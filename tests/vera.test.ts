/**
 * VeRA: an adapter's answers, files, merge and sums are those of ΔW = diag(b)·B·diag(d)·A, computed here from
 * the file alone.
 */
import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import * as assert from "uvu/assert";
import { decode, encode, parseHeader, type TensorData } from "../runtime/bundle.ts";
import { batchOf, configs, contentBits, engineOf, idsOf } from "./support/engines.ts";
import { suite } from "./support/suite.ts";
import { scratch } from "./support/tiny.ts";

const test = suite("vera");
const PREFIX = "base_model.model.";

for (const target of ["wasm", "webgpu"] as const)
  test(`on ${target}: learns; its file says what it does; merges; adds up`, async () => {
    await using engine = await engineOf(configs.even, {
      targets: [target],
      train: ["vera", "lora"],
      capacities: { savedRows: 200, keptRows: 200 },
    });
    const logits = async (adapter?: string | Record<string, number>): Promise<Float32Array[]> =>
      (await engine.score(idsOf("vera", 40, 128), { logits: true, ...(adapter && { adapter }) })).logits!;
    const far = (a: readonly Float32Array[], b: readonly Float32Array[]): number =>
      Math.max(...a.map((row, i) => Math.max(...row.map((x, j) => Math.abs(x - b[i]![j]!)))));
    const common = { data: batchOf(128), method: "vera", batchSize: 5, shuffle: false } as const;
    await (await engine.finetune({ ...common, name: "start", steps: 0 })).done;
    const plain = await logits();
    assert.is(far(plain, await logits("start")), 0, "b starts at zero");
    const { losses } = await (await engine.finetune({ ...common, name: "v", steps: 8, learningRate: 0.05 }))
      .done;
    assert.ok(losses[7]! < losses[0]!, `loss ${losses[0]} → ${losses[7]}`);

    const folder = `${scratch()}/vera`;
    await engine.adapters.get("v").save(folder);
    const file = readFileSync(`${folder}/adapter_model.safetensors`);
    const tensors = new Map(parseHeader(file, file.length, "vera").tensors.map((t) => [t.name, t]));
    const numbers = (name: string): Float32Array => {
      const t = tensors.get(name)!;
      return decode(file.subarray(t.start, t.end), t.dtype, name);
    };
    await engine.adapters.load("again", folder);
    assert.is(contentBits(engine, "again"), contentBits(engine, "v"), "read as it was written");

    // The same change as a LoRA, made of the file.
    const [rank, width] = tensors.get("base_model.vera_A")!.shape as [number, number];
    const [a, b] = [numbers("base_model.vera_A"), numbers("base_model.vera_B")];
    const lora: TensorData[] = [];
    const sites = engine.manifest.sites.filter((s) => s.kind === "linear");
    assert.equal(
      [width, tensors.get("base_model.vera_B")!.shape],
      [Math.max(...sites.map((s) => s.inFeatures)), [Math.max(...sites.map((s) => s.outFeatures)), rank]],
    );
    for (let l = 0; l < engine.manifest.model.layers; l++)
      for (const { module, inFeatures: ins, outFeatures: outs } of sites) {
        const path = `${PREFIX}model.layers.${l}.${module}`;
        const [d, gain] = [numbers(`${path}.vera_lambda_d`), numbers(`${path}.vera_lambda_b`)];
        const down = Float32Array.from({ length: rank * ins }, (_, i) => {
          const r = Math.floor(i / ins);
          return d[r]! * a[r * width + (i % ins)]!;
        });
        const up = Float32Array.from({ length: outs * rank }, (_, i) => gain[Math.floor(i / rank)]! * b[i]!);
        lora.push({ name: `${path}.lora_A.weight`, shape: [rank, ins], dtype: "F32", data: down });
        lora.push({ name: `${path}.lora_B.weight`, shape: [outs, rank], dtype: "F32", data: up });
      }
    const other = `${scratch()}/lora`;
    mkdirSync(other);
    const config = { peft_type: "LORA", r: rank, lora_alpha: rank, target_modules: "all-linear" };
    writeFileSync(`${other}/adapter_config.json`, JSON.stringify(config));
    writeFileSync(`${other}/adapter_model.safetensors`, encode(lora));
    await engine.adapters.load("lora", other);
    const want = await logits("lora");
    assert.ok(far(plain, want) > 1e-2, "the adapter says something of its own");
    assert.ok(far(await logits("v"), want) <= 1e-4, "served");
    assert.ok(far(await logits({ v: 1 }), want) <= 1e-4, "as a sum of one");
    await engine.merge("v");
    assert.ok(far(await logits(), want) <= 1e-4, "merged");
    await engine.merge(null);
    assert.is(far(plain, await logits()), 0);
  });
test.run();
