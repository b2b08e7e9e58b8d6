/**
 * Law: where lanes bring each other what they read alike, every bit is that of lanes that read alone.
 */
import * as assert from "uvu/assert";
import { type CompileOptions, compile } from "../compiler/compile.ts";
import { Engine as Core } from "../runtime/engine.ts";
import { startJob } from "../runtime/trainer.ts";
import { openWebGpu } from "../runtime/webgpu.ts";
import { batchOf, bits, configs, idsOf, small } from "./support/engines.ts";
import { long } from "./support/scale.ts";
import { suite } from "./support/suite.ts";
import { type FamilyName, writeModel } from "./support/tiny.ts";

const test = suite("quads");

/** Logits of rows in tiles, and of one beside two; what a job learns, and what is said with it. */
async function said(core: Core, vocab: number, method: "lora" | "full"): Promise<string> {
  const prompts = [41, 2, 9].map((n) => idsOf(`quads ${n}`, n, vocab));
  const base = await Promise.all(prompts.map((ids) => core.score(ids, { logits: true })));
  const job = { name: "notes", method, rows: batchOf(vocab).slice(0, 2), steps: 2, batchSize: 2 } as const;
  const learned = await startJob(core, { ...job, learningRate: 5e-3 }, []).done;
  const adapter = method === "lora" ? { adapter: "notes" } : {};
  const after = await core.score(prompts[2]!, { logits: true, ...adapter });
  return JSON.stringify([learned.losses, ...[...base, after].map(({ logits }) => logits!.map(bits))]);
}
/** Odd sizes end in the middle of a quad; of formats, one with a word for a quad of rows, one for eight. */
const cases: readonly [FamilyName | "odd" | "even", CompileOptions, form?: "long"][] = [
  ["odd", { train: ["lora"] }],
  ["even", { train: ["lora"], format: "q4" }, "long"],
  ["odd", { train: ["full"] }, "long"],
  ["qwen3_moe", { train: ["lora"] }, "long"],
];
for (const [name, options] of cases.filter(([, , form]) => long || form !== "long")) {
  const [train = "lora"] = options.train as ["lora" | "full"];
  test(`${name}, ${options.format ?? "f32"}, ${train}: lanes bring each other what each read`, async () => {
    const { files } = await compile(writeModel(configs[name]), {
      ...{ targets: ["webgpu"], methods: [], quick: true, limits: {} },
      ...options,
      capacities: { ...small, experts: 8 },
    });
    const taken: string[] = [];
    const open = (quads: boolean): Promise<Core> =>
      Core.open({ where: "memory", read: async (file) => files.get(file)! }, async (m, file) => {
        const heard = (name: string): Promise<Uint8Array> => {
          if (name.endsWith("_quads.wgsl")) taken.push(name);
          return file(name);
        };
        return (await openWebGpu(m, heard, "software", { quads }))!;
      });
    const answers: string[] = [];
    for (const quads of [false, true]) {
      assert.is(taken.length, 0);
      const core = await open(quads);
      answers.push(await said(core, configs[name].vocab_size, train));
      await core.dispose();
    }
    assert.ok(taken.length > 4, "kernels of both kinds were run");
    assert.ok(answers[0] === answers[1]);
  });
}
test.run();
