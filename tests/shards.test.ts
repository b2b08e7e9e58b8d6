/**
 * Embedding and head in shards on WebGPU: results are the bits of one shard, whatever their number, format
 * and kernels, in serving, adapters' training and full training.
 */
import { closeSync, ftruncateSync, openSync, rmSync, writeFileSync, writeSync } from "node:fs";
import { join } from "node:path";
import * as assert from "uvu/assert";
import { compile, compileTo } from "../compiler/compile.ts";
import {
  type Format,
  LAUNCH_VECTORS,
  mostStates,
  packedWords,
  runsOf,
  SHARD_ROWS,
  safetensorsHeader,
  shardsOf,
} from "../runtime/bundle.ts";
import type { Families } from "../runtime/device.ts";
import { Engine as Core } from "../runtime/engine.ts";
import type { Verdict } from "../runtime/invariance.ts";
import type { Products } from "../runtime/products.ts";
import { openReader } from "../runtime/reader.ts";
import { startJob } from "../runtime/trainer.ts";
import { findAdapter, openWebGpu, shardsFor } from "../runtime/webgpu.ts";
import { bits, configs, idsOf, small, tiny } from "./support/engines.ts";
import { randomOf } from "./support/mutate.ts";
import { generator } from "./support/random.ts";
import { long } from "./support/scale.ts";
import { suite } from "./support/suite.ts";
import { type Config, scratch, tensorShapes, writeModel } from "./support/tiny.ts";

/** What a launch knows of the shard that it is over. */
const shard = `launch[${LAUNCH_VECTORS}]`;
const test = suite("shards");

test("shards are whole blocks within the limit, and every word of a chamber is in one of them", () => {
  const r = randomOf("shards");
  for (let i = 0; i < 2000; i++) {
    const rows = 1 + r(5000);
    const blocks = Math.ceil(rows / SHARD_ROWS);
    const block = 64 * (1 + r(40));
    const arrays = r(2) ? 1 + mostStates : 1;
    const words = blocks * block;
    const bytes = 4 * block * arrays * (1 + r(blocks + 2)) + r(256);
    const chambers = { weights: words, accum: arrays > 1 ? words * arrays : 0 };
    const shards = shardsOf(rows, chambers, bytes);
    let end = 0;
    for (const { first, rows } of shards) {
      assert.is(first, end);
      assert.is(first % SHARD_ROWS, 0);
      assert.ok(rows > 0 && Math.ceil(rows / SHARD_ROWS) * block * arrays * 4 <= bytes);
      end += rows;
    }
    assert.is(end, rows);
    let from = 0;
    const ends = shards.map(() => 0);
    for (const run of runsOf(shards, words * arrays, arrays)) {
      assert.is(run.from, from);
      assert.is(run.at, ends[run.shard]);
      from += run.words;
      ends[run.shard]! += run.words;
    }
    assert.is(from, words * arrays);
    // Of about the same size: all but the last are.
    assert.is(new Set(shards.slice(0, -1).map((s) => s.rows)).size, shards.length > 1 ? 1 : 0);
  }
});

interface Case {
  readonly config: Config;
  readonly train: readonly ("lora" | "full")[];
  readonly format?: Readonly<Record<string, Format>>;
  readonly families: Families;
  readonly products?: Products;
}
const plain: Families = { fewRows: null };
const gpu: Families = { fewRows: 8 };
/** Seven blocks of rows, the last of 85. */
const tied = { ...configs.even, num_hidden_layers: 1, vocab_size: 853 };
/** Three blocks, the last of 3; another matrix for the head. */
const untied = { ...configs.odd, num_hidden_layers: 1 };

type Files = Awaited<ReturnType<typeof compile>>["files"];
const compiled = async ({
  config,
  train,
  format = { default: "f32" },
  products = "f32",
}: Case): Promise<Files> => {
  const methods = train.filter((m) => m !== "full");
  const how = { targets: ["webgpu"], quick: true, limits: tiny, capacities: small } as const;
  return (await compile(writeModel(config), { ...how, train: [...train], methods, format, products })).files;
};
/** Nothing is checked at load: what serves and trains here is compared. */
class Known extends Map<string, Verdict> {
  constructor(private readonly families: Families) {
    super();
  }
  override get(): Verdict {
    return { invariance: "verified", families: this.families, trained: new Map([["lora", true]]) };
  }
}
type Change = (name: string, text: string) => string;
/**
 * What comes of serving and training with shards of at most so many blocks (as many as those of f32 take
 * bytes), and launches of a prompt.
 */
async function outcome(files: Files, { config, train, families }: Case, blocks: number, change?: Change) {
  const read = async (name: string): Promise<Uint8Array> => {
    const bytes = files.get(name)!;
    if (!change || !name.endsWith(".wgsl")) return bytes;
    return new TextEncoder().encode(change(name, new TextDecoder().decode(bytes)));
  };
  const { vocab_size: vocab, hidden_size: hidden } = config;
  const arrays = train.includes("full") ? 1 + mostStates : 1;
  const shard = 4 * blocks * arrays * packedWords("f32", SHARD_ROWS, hidden, 16);
  const core = await Core.open(
    { where: "memory", read: async (name) => files.get(name)! },
    async (m) => (await openWebGpu(m, read, "software", { families, shard }))!,
    {},
    new Known(families),
  );
  const out: Record<string, string> = {};
  const before = core.device.stats.launches;
  const prompt = idsOf("shards", 70, vocab);
  const { logits } = await core.score(prompt, { logits: true });
  out.logits = logits!.map(bits).join();
  const launches = core.device.stats.launches - before;
  const said: number[] = [];
  for await (const e of core.generate({ prompt, maxTokens: 2, logprobs: 1 })) said.push(e.id, e.logprob!);
  out.said = said.join();
  // What was written is read.
  out.weights = (await core.baseTensors()).map((t) => bits(t.data)).join();
  const row = { ids: idsOf("row", 40, vocab), labels: idsOf("row", 40, vocab) };
  const common = { rows: [row, row].map((r) => ({ input_ids: r.ids, labels: r.labels })), batchSize: 2 };
  for (const method of train) {
    const job = startJob(core, { ...common, name: method, method, steps: 2, learningRate: 1e-2 }, []);
    const { losses } = await job.done;
    const trained =
      method === "full"
        ? (await core.baseTensors()).map((t) => t.data)
        : core.adapters.find(method).content.tensors;
    out[method] = [losses, trained.map(bits)].join();
  }
  await core.dispose();
  return { out, launches };
}
/** Names of what differs. */
const differing = (a: Record<string, string>, b: Record<string, string>): string[] =>
  Object.keys(a).filter((k) => a[k] !== b[k]);
const ONE = 64;
const tiedCase: Case = { config: tied, train: ["lora", "full"], families: plain };

let made: Promise<{ files: Files } & Awaited<ReturnType<typeof outcome>>> | null = null;
/** The tied one in one shard: made once, beside nothing else. */
const whole = () =>
  (made ??= compiled(tiedCase).then(async (files) => ({ files, ...(await outcome(files, tiedCase, ONE)) })));

const cases: [name: string, c: Case, blocks: number[]][] = [
  [
    "an untied head, in tiles and few rows",
    { config: untied, train: long ? ["full"] : [], families: gpu },
    [1],
  ],
  ...(long
    ? ([
        [
          "products of f16, in tiles and few rows",
          { config: untied, train: ["lora"], families: gpu, products: "matrix" },
          [1],
        ],
      ] as [string, Case, number[]][])
    : []),
  ...[
    { embed_tokens: "q4", lm_head: "int8" } as const,
    { embed_tokens: "int8", lm_head: "q4" } as const,
    ...(long
      ? ([
          { embed_tokens: "f16", lm_head: "bf16" },
          { embed_tokens: "bf16", lm_head: "f16" },
          ...(["bf16", "f16", "int8", "q4"] as const).map((embed_tokens) => ({ embed_tokens })),
        ] as const)
      : []),
  ].flatMap((format): [string, Case, number[]][] =>
    (long ? [plain, gpu] : [plain]).map((families) => [
      `${"lm_head" in format ? Object.values(format).join(" and ") : `a tied ${format.embed_tokens}`}, ${
        families === gpu ? "in tiles" : "plain"
      }`,
      {
        config: "lm_head" in format ? untied : tied,
        train: ["lora"],
        format: { default: "f32", ...format },
        families,
      },
      [0.1],
    ]),
  ),
];
for (const [name, c, blocks] of cases)
  test(`${name}: shards have the bits of one`, async () => {
    const files = await compiled(c);
    const whole = await outcome(files, c, ONE);
    for (const n of blocks) {
      const { out, launches } = await outcome(files, c, n);
      assert.equal(differing(whole.out, out), [], `${n} blocks`);
      assert.ok(launches > whole.launches, "there are several");
    }
  });

test("a tied head in three and seven shards has the bits of one, and in two", async () => {
  const { files, ...one } = await whole();
  for (const n of long ? [4, 3, 1] : [3, 1]) {
    const { out, launches } = await outcome(files, tiedCase, n);
    assert.equal(differing(one.out, out), [], `${n} blocks`);
    assert.ok(launches > one.launches, "there are several");
  }
});

test("shards that forget where they begin, or what came before them, are seen", async () => {
  const { files, out: right } = await whole();
  const mutants: [name: RegExp, mutant: (text: string) => string, train: Case["train"]][] = [
    [
      /^kernels\/embed_/,
      // Inside of the shard all the same: nothing here checks where a kernel reads.
      (text) => text.replace(/if \(.*continue; \}/, "").replace(`- ${shard}.x`, `% ${shard}.y`),
      [],
    ],
    [/^kernels\/head_/, (text) => text.replaceAll(`${shard}.x + `, ""), []],
    [/^kernels\/head_train_d/, (text) => text.replace(`${shard}.x > 0`, `${shard}.x > 100000`), ["lora"]],
    [/^kernels\/sumsq_full_outer/, (text) => text.replace("arena[at] + sum", "sum"), ["full"]],
  ];
  for (const [file, mutant, train] of mutants) {
    let changes = 0;
    const { out } = await outcome(files, { ...tiedCase, train }, 3, (name, text) => {
      const changed = file.test(name) ? mutant(text) : text;
      if (changed !== text) changes++;
      return changed;
    });
    assert.ok(changes > 0, String(file));
    assert.ok(differing(out, right).includes(train[0] ?? "logits"), String(file));
  }
});

/** 0.5 GB a layer in f32. */
const heavy: Config = {
  ...configs.even,
  hidden_size: 2048,
  num_attention_heads: 16,
  num_key_value_heads: 1,
  head_dim: 128,
  intermediate_size: 20480,
};
/**
 * A folder of such a model, in bf16, the rows of whose embedding are the same every 256. The first layer and
 * the last are the same whatever is between them: layers of random numbers that add nothing.
 */
function writeLarge(dir: string, config: Config): void {
  const layers = config.num_hidden_layers;
  const tensors = tensorShapes(config).map((t) => {
    const [, at, role] = /layers\.(\d+)\.(.*)/.exec(t.name) ?? [];
    const between = at !== undefined && Number(at) > 0 && Number(at) < layers - 1;
    const last = Number(at) === layers - 1;
    return {
      ...t,
      dtype: "BF16" as const,
      bytes: 2 * t.shape.reduce((a, b) => a * b, 1),
      nothing: between && /o_proj|down_proj/.test(t.name),
      seed: last ? `last ${role}` : t.name,
    };
  });
  writeFileSync(join(dir, "config.json"), JSON.stringify(config));
  const file = openSync(join(dir, "model.safetensors"), "w");
  const header = safetensorsHeader(tensors);
  writeSync(file, header);
  let at = header.length;
  for (const { shape, bytes, nothing, seed } of tensors) {
    const next = generator(seed);
    // Of vectors around 1; of matrices ±2^-6 and below, 4099 numbers again and again.
    const numbers = Uint16Array.from({ length: 4099 }, () =>
      shape.length > 1 ? (next() & 0x807f) | (0x3c00 - ((next() & 7) << 7)) : 0x3f80 | (next() & 31),
    );
    const block = new Uint16Array(2 ** 19).map((_, i) => numbers[i % numbers.length]!);
    for (let done = 0; done < bytes && !nothing; done += block.byteLength)
      writeSync(file, new Uint8Array(block.buffer), 0, Math.min(block.byteLength, bytes - done), at + done);
    at += bytes;
  }
  ftruncateSync(file, at);
  closeSync(file);
}
/** What a large model says, how it trains, and where what it holds lies. */
async function saidBy(config: Config, prompts: readonly (readonly number[])[], shard?: number) {
  const dir = scratch();
  try {
    writeLarge(dir, config);
    const how = { targets: ["webgpu"], train: ["lora"], methods: ["lora"], format: "f32" } as const;
    await compileTo(dir, `${dir}.weft`, { ...how, quick: true, capacities: { ...small, sequences: 2 } });
    const core = await Core.open(
      await openReader(`${dir}.weft`),
      async (m, file) => (await openWebGpu(m, file, "software", { families: plain, shard }))!,
      {},
      new Known(plain),
    );
    const logits: Float32Array[] = [];
    for (const prompt of prompts) logits.push(...(await core.score(prompt, { logits: true })).logits!);
    const rows = prompts.map((ids) => ({ input_ids: ids, labels: ids }));
    const job = startJob(core, { rows, name: "job", method: "lora", batchSize: rows.length, steps: 1 }, []);
    const { losses } = await job.done;
    const trained = core.adapters.find("job").content.tensors.map(bits).join();
    const { plan, memory } = core.device;
    await core.dispose();
    assert.ok([...logits.flatMap((row) => [...row]), ...losses].every(Number.isFinite), "numbers");
    return { logits, losses, trained, plan, weights: memory.weights! };
  } finally {
    for (const folder of [dir, `${dir}.weft`]) rmSync(folder, { recursive: true, force: true });
  }
}
if (long)
  test("more than 4 GiB of weights: layers that add nothing leave what the others say and lose", async () => {
    const prompt = idsOf("deep", 4, heavy.vocab_size);
    const of = (layers: number) => saidBy({ ...heavy, num_hidden_layers: layers }, [prompt]);
    const [few, many] = [await of(2), await of(9)];
    assert.ok(many.weights > 2 ** 32, `${many.weights} bytes`);
    assert.equal(many.logits.map(bits), few.logits.map(bits));
    assert.equal(many.losses, few.losses);
  });
if (long)
  test("a matrix that no binding of this device holds: alike rows are alike in every shard", async () => {
    const { maxStorageBufferBindingSize, maxBufferSize } = (await findAdapter("software"))!.limits;
    const most = Math.min(maxStorageBufferBindingSize, maxBufferSize);
    const held = most / (4 * heavy.hidden_size);
    const config = {
      ...{ ...heavy, intermediate_size: 256, num_hidden_layers: 1 },
      vocab_size: held + 3 * SHARD_ROWS + 85,
    };
    const ids = idsOf("held", 4, 256);
    const further = ids.map((id) => id + held);
    const whole = await saidBy(config, [ids, further]);
    assert.ok(whole.weights > most, `${whole.weights} bytes`);
    assert.is(shardsFor(whole.plan, most)[0]!.shards.length, 2);
    // Of an id and of one as far behind as a binding holds; of a column and of the one 256 before.
    const [near, far] = [whole.logits.slice(0, 4).map(bits), whole.logits.slice(4).map(bits)];
    assert.equal(far, near);
    for (const row of whole.logits) {
      assert.ok(new Set(row.subarray(0, 256)).size > 200, "others are others");
      assert.ok(
        row.every((x, i) => i < 256 || x === row[i - 256]),
        "alike",
      );
    }
    const several = await saidBy(config, [ids, further], most / 3);
    assert.ok(shardsFor(several.plan, most / 3)[0]!.shards.length > 3);
    for (const what of ["logits", "losses"] as const)
      assert.is(String(several[what]), String(whole[what]), what);
    assert.is(several.trained, whole.trained);
  });
test.run();
