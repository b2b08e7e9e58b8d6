/** A cache of halves: the laws hold in its class of numerics, near f32, in half the memory. */
import * as assert from "uvu/assert";
import { compile } from "../compiler/compile.ts";
import { compileKernels } from "../compiler/emit/asc.ts";
import { prelude } from "../compiler/emit/assemblyscript.ts";
import { floatToHalf } from "../runtime/dtypes.ts";
import { Engine as Core } from "../runtime/engine.ts";
import { openWebGpu } from "../runtime/webgpu.ts";
import { type Engine, type FinetuneOptions, load, type WeftError } from "../sdk/index.ts";
import {
  batchOf,
  bits,
  bundle,
  collect,
  configs,
  contentBits,
  engineOf,
  fixtures,
  idsOf,
  small,
  tiny,
} from "./support/engines.ts";
import { poison } from "./support/poison.ts";
import { generator } from "./support/random.ts";
import { suite } from "./support/suite.ts";
import { scratch, writeModel } from "./support/tiny.ts";

const test = suite("kv");
const targets = ["wasm", "webgpu"] as const;
const vocab = 128;
const job: FinetuneOptions = {
  name: "job",
  data: batchOf(vocab),
  batchSize: 5,
  learningRate: 5e-3,
  seed: 5,
  rank: 4,
};
const train = async (engine: Engine, o: Partial<FinetuneOptions>) => {
  const { losses } = await (await engine.finetune({ ...job, ...o })).done;
  return { losses, content: contentBits(engine, o.name!) };
};
const prompt = idsOf("cache", 70, vocab);

for (const target of targets)
  test(`halves on ${target}: alone = co-served = in pieces = found, near f32, in half the memory`, async () => {
    const steps = target === "wasm" ? 3 : 1;
    await using exact = await engineOf(configs.even, { targets: [target] });
    await using engine = await engineOf(configs.even, {
      targets: [target],
      kv: "f16",
      load: { prefixCache: true },
    });
    const poisoned = poison(engine.core);
    assert.is(engine.device.numerics, `${target} f16`);
    assert.is(engine.core.device.memory.kv! * 2, exact.core.device.memory.kv! + 256);
    assert.is(engine.core.invariance, "verified");
    await engine.adapters.load("peft", `${fixtures}peft-even`);
    const requests = Array.from({ length: target === "wasm" ? 8 : 3 }, (_, i) => ({
      prompt: prompt.slice(0, 33 + 5 * i),
      maxTokens: 6,
      ...(i % 2 && { adapter: "peft" }),
    }));
    const alone = [];
    for (const r of requests) alone.push(await collect(engine, { ...r, salt: `alone ${alone.length}` }));
    const a = await train(engine, { name: "a", steps });
    const beside = await engine.finetune({ ...job, name: "b", steps });
    // Of the second half of these the first blocks are found.
    const together = await Promise.all([...requests, ...requests].map((r) => collect(engine, r)));
    assert.equal(together, [...alone, ...alone]);
    assert.equal((await beside.done).losses, a.losses);
    assert.is(contentBits(engine, "b"), a.content);
    assert.ok(poisoned().free > 0);

    const [ours, theirs] = [
      await engine.score(prompt, { logits: true }),
      await exact.score(prompt, { logits: true }),
    ];
    let [max, error] = [0, 0];
    ours.logits!.forEach((row, i) =>
      row.forEach((x, j) => {
        max = Math.max(max, Math.abs(x));
        error = Math.max(error, Math.abs(x - theirs.logits![i]![j]!));
      }),
    );
    assert.ok(error > 0 && error < 1e-3 * max, `off by ${error}, logits up to ${max}`);
    const { losses } = await train(exact, { name: "a", steps });
    losses.forEach((x, i) => assert.ok(Math.abs(x - a.losses[i]!) < 1e-3, `step ${i}`));
  });

test("a job of one class is not resumed in another", async () => {
  const dir = `${scratch()}/checkpoint`;
  await using exact = await load(await bundle(configs.even), { device: "wasm" });
  const j = await exact.finetune({ ...job, steps: 2, checkpoint: { dir } });
  await j.done;
  await using engine = await engineOf(configs.even, { kv: "f16" });
  const e = await engine.finetune({ ...job, steps: 3, resume: dir }).then(
    () => null,
    (x: WeftError) => x,
  );
  assert.is(e?.code, "WEFT_CONFLICT");
  assert.match(e!.message, /numerics.*wasm f16/s);
});

/** Of floats as words, the halves that the kernels' own function makes. */
async function narrowed(source: string, words: Uint32Array): Promise<Uint32Array> {
  const kernels = await compileKernels(
    `${source}
export function narrow_(at: usize, n: i32): void {
  for (let i: usize = 0; i < <usize>n * 4; i += 16) v128.store(at + i, halves4(v128.load(at + i)));
}`,
    { cache: true, quick: true },
  );
  const memory = new WebAssembly.Memory({ initial: 64, maximum: 64, shared: true });
  const { instance } = (await WebAssembly.instantiate(kernels as BufferSource, {
    env: { memory },
  })) as unknown as { instance: WebAssembly.Instance };
  const at = new Uint32Array(memory.buffer, 1024, words.length);
  at.set(words);
  (instance.exports.narrow_ as (at: number, n: number) => void)(1024, words.length);
  return at.slice();
}
test("f32 to halves: to nearest even, subnormals, signs; too large is the largest, NaN stays NaN", async () => {
  // Around every half: itself, the middle to the next, and what is next to that.
  const words = new Uint32Array(4 * 65536);
  const next = generator("halves");
  for (let i = 0; i < words.length; i++) {
    const exponent = 127 - 27 + (i % 45);
    const edge = [0, 0x1000, 0xfff, 0x1001][next() % 4]!;
    const fraction = ((next() % 1024) << 13) | (next() % 3 ? edge : next() % 8192);
    words[i] = ((i & 1) << 31) | (exponent << 23) | fraction;
  }
  words.set([0, 0x80000000, 0x7f800000, 0xff800000, 0x7fc00000, 1, 0x477fe000, 0x477fefff, 0x477ff000]);
  const wanted = Uint32Array.from(new Float32Array(words.buffer), (x) =>
    Number.isNaN(x) ? 0x7e00 : floatToHalf(Math.max(-65504, Math.min(65504, x))),
  );
  assert.equal(await narrowed(prelude(), words), wanted);
  const mutant = prelude().replace("i32x4.add(odd, i32x4.splat(0xc8000fff))", "i32x4.splat(0xc8001000)");
  assert.not.equal(await narrowed(mutant, words), wanted, "what lies in the middle goes up");
});

test("a lane that leaves its half as it was is seen where a block is used again", async () => {
  const { files } = await compile(writeModel({ ...configs.even, num_hidden_layers: 1 }), {
    ...{ targets: ["webgpu"], train: [], methods: [], kv: "f16", limits: tiny, quick: true },
    capacities: { ...small, blocks: 4 },
  });
  const reader = { where: "memory", read: async (name: string) => files.get(name)! };
  const said: string[][] = [];
  for (const clears of [true, false]) {
    const core = await Core.open(reader, async (m, file) => {
      const changed = async (name: string): Promise<Uint8Array> => {
        const text = new TextDecoder().decode(await file(name));
        return new TextEncoder().encode(clears ? text : text.replace(/^ *atomicAnd.*\n/m, ""));
      };
      return (await openWebGpu(m, changed, "software"))!;
    });
    // Bits of two numbers in one may well be no number.
    const last = (ids: number[]): Promise<string> =>
      core.score(ids, { logits: true }).then(
        ({ logits }) => bits(logits!.at(-1)!),
        (e: WeftError) => e.code,
      );
    said.push([await last(prompt), await last(idsOf("another", 70, vocab)), await last(prompt)]);
    await core.dispose();
  }
  assert.is(said[0]![2], said[0]![0]);
  assert.is.not(said[1]![2], said[0]![0]);
});
test.run();
