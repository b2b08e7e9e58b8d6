/**
 * Attention on WebGPU: tiles, splits and their fold, and the plain kernel give a row the same bits, whatever
 * rows share its step, past a split's 256 keys too; and what the CPU computes is near.
 */
import * as assert from "uvu/assert";
import { type CompileOptions, compile } from "../compiler/compile.ts";
import { tileRowsOf } from "../compiler/kernels/text/wgsl_attend.ts";
import { splitsOf } from "../compiler/metadata.ts";
import { EVENT, EVENT_WORDS, headerWords, KIND, NONE, planOf, type WeftError } from "../runtime/bundle.ts";
import type { Families } from "../runtime/device.ts";
import { Engine as Core } from "../runtime/engine.ts";
import { Host } from "../runtime/host.ts";
import type { Verdicts } from "../runtime/invariance.ts";
import { startJob } from "../runtime/trainer.ts";
import { openWasm } from "../runtime/wasm.ts";
import { openWebGpu } from "../runtime/webgpu.ts";
import { bits, configs, idsOf, small, tiny } from "./support/engines.ts";
import { hostFiles } from "./support/hosts.ts";
import { poison } from "./support/poison.ts";
import { generator } from "./support/random.ts";
import { long } from "./support/scale.ts";
import { suite } from "./support/suite.ts";
import { type Config, writeModel } from "./support/tiny.ts";

const test = suite("attention");
const kinds = { plain: { fewRows: null }, tiles: { fewRows: 0 }, both: { fewRows: 8 } } as const;
type Change = (wgsl: string) => string;
/** What the check at load looks for is compared here. */
const unchecked = (families: Families): Verdicts =>
  Object.assign(new Map(), {
    get: () => ({ invariance: "verified", families, trained: new Map([["lora", true]]) }),
  });

async function bundleOf(config: Config, options: CompileOptions) {
  const { files } = await compile(
    writeModel({ ...config, num_hidden_layers: 1, max_position_embeddings: 1024 }),
    {
      targets: ["webgpu", "wasm"],
      ...{ train: [], methods: [], quick: true, limits: tiny },
      ...options,
      capacities: { ...small, context: 576, tokens: 96, ...options.capacities },
    },
  );
  const reader = { where: "memory", read: async (name: string) => files.get(name)! };
  const text = async (file: (name: string) => Promise<Uint8Array>, name: string): Promise<string> =>
    new TextDecoder().decode(await file(name));
  return {
    cpu: () => Core.open(reader, (m) => openWasm(m, files.get("kernels.wasm")!, { threads: 1 })),
    gpu: (families: Families, change: Change | null = null) =>
      Core.open(
        reader,
        async (m, file) => {
          const changed = async (name: string) =>
            new TextEncoder().encode((change ?? String)(await text(file, name)));
          return (await openWebGpu(m, changed, "software", { families }))!;
        },
        {},
        change ? new Map() : unchecked(families),
      ),
  };
}
/**
 * Logits of a prompt that passes two splits, of another beside it, and of rows that follow alone; of the
 * first, all of them.
 */
async function said(core: Core, vocab: number): Promise<Float32Array[]> {
  const poisoned = poison(core);
  const [long, short] = [idsOf("long", 530, vocab), idsOf("short", 40, vocab)];
  const [a, b] = await Promise.all([core.score(long, { logits: true }), core.score(short, { logits: true })]);
  const steps: Float32Array[] = [];
  // Of two sequences side by side, one past a split: a row of each in a step.
  const follow = async (prompt: number[]): Promise<void> => {
    for await (const e of core.generate({ prompt, maxTokens: 4, logprobs: 2 }))
      steps.push(Float32Array.of(prompt.length, e.id, e.logprob!));
  };
  await Promise.all([follow(long.slice(0, 255)), follow(short), follow(long.slice(0, 300))]);
  assert.ok(poisoned().free > 0);
  const inOrder = steps.map((s, i) => ({ s, i })).sort((x, y) => x.s[0]! - y.s[0]! || x.i - y.i);
  return [...a.logits!, ...b.logits!, ...inOrder.map(({ s }) => s)];
}

/** Those in the long form alone are shapes that others come near. */
const shapes: readonly [what: string, config: Config, options: CompileOptions, form?: "long"][] = [
  ["4 heads of 2", configs.even, {}, "long"],
  ["6 heads of 2, 20 dims, halves", configs.odd, { kv: "f16" }],
  ["one key head for all, 6 dims", { ...configs.mqa, head_dim: 6 }, {}, "long"],
  ["heads of their own, 130 dims", { ...configs.mha, head_dim: 130 }, { limits: {} }, "long"],
  ["windows and soft caps", configs.gemma2, {}],
];
for (const [what, config, options] of shapes.filter(([, , , form]) => long || form !== "long"))
  test(`${what}: every kernel the same bits, near the CPU's`, async () => {
    const bundle = await bundleOf(config, options);
    const cpu = await bundle.cpu();
    const wanted = await said(cpu, config.vocab_size);
    await cpu.dispose();
    let first: string | null = null;
    for (const [name, families] of Object.entries(kinds)) {
      // Of tiles past a split's end on their own, one shape says enough.
      if (name === "tiles" && config !== configs.gemma2) continue;
      const core = await bundle.gpu(families);
      const got = await said(core, config.vocab_size);
      await core.dispose();
      const all = got.map(bits).join();
      first ??= all;
      assert.ok(all === first, `${name} and plain`);
      let [max, error] = [0, 0];
      wanted.slice(0, 570).forEach((row, i) =>
        row.forEach((x, j) => {
          max = Math.max(max, Math.abs(x));
          error = Math.max(error, Math.abs(x - got[i]![j]!));
        }),
      );
      assert.ok(error <= (options.kv === "f16" ? 1e-3 : 1e-4) * max, `${name}: off by ${error} of ${max}`);
    }
  });

/** Of what each of two workgroups has of a head's columns, wide heads say most. */
const learning = { gemma2: {}, odd: {}, mqa: {}, mha: { head_dim: 130 } } as const;
for (const name of long ? (Object.keys(learning) as (keyof typeof learning)[]) : (["gemma2"] as const))
  test(`${name}: gradients of queries, keys and values: the same bits in tiles and plain`, async () => {
    const config = { ...configs[name], ...learning[name] } as Config & { vocab_size: number };
    const { gpu } = await bundleOf(config, { train: ["lora"], methods: ["lora"], limits: {} });
    const taught = [70, 9].map((n) => idsOf(`taught ${n}`, n, config.vocab_size));
    const learned: string[] = [];
    for (const families of [kinds.plain, kinds.tiles]) {
      const core = await gpu(families);
      const rows = taught.map((input_ids) => ({ input_ids, labels: input_ids }));
      const how = { method: "lora", steps: 1, batchSize: 2, learningRate: 0.1, optimizer: "sgd" } as const;
      await startJob(core, { name: "notes", rows, ...how }, []).done;
      const { logits } = await core.score(taught[1]!, { logits: true, adapter: "notes" });
      learned.push(logits!.map(bits).join());
      await core.dispose();
    }
    assert.is(learned[0], learned[1]);
  });

test("what is no number in one sequence is in no other beside it", async () => {
  const vocab = configs.even.vocab_size;
  const { gpu } = await bundleOf(configs.even, { train: ["lora"], methods: ["lora"], limits: {} });
  const core = await gpu(kinds.plain);
  const rows = [{ input_ids: idsOf("one", 9, vocab), labels: idsOf("one", 9, vocab) }];
  await startJob(core, { name: "good", rows, method: "lora", steps: 1, batchSize: 1 }, []).done;
  const { content } = core.adapters.find("good");
  const tensors = content.tensors.map((t) => t.map(() => Number.NaN));
  core.adapters.publish("bad", { ...content, tensors });
  const prompts = [3, 5, 2, 7].map((n) => idsOf(`beside ${n}`, n, vocab));
  const said = async (ids: number[]): Promise<string> =>
    (await core.score(ids, { logits: true })).logits!.map(bits).join();
  const alone: string[] = [];
  for (const ids of prompts) alone.push(await said(ids));
  // Rows of both stand beside each other in a step.
  const beside = prompts.map(async (ids) => {
    const bad = core.score(ids, { adapter: "bad" }).then(
      () => "",
      (e: WeftError) => e.code,
    );
    const good = said(ids);
    assert.is(await bad, "WEFT_NUMERICS");
    return good;
  });
  assert.equal(await Promise.all(beside), alone);
  await core.dispose();
});

test("a fold of its own, and a read of what nobody wrote, are seen", async () => {
  const bundle = await bundleOf(configs.even, {});
  // What tiles do to a row that ends with a split depends on its neighbours then.
  const changes: [string, Change][] = [
    [
      "single-family",
      (s) => s.replace("whole = fma(whole, a, arena", "whole = fma(whole, a * 1.001f, arena"),
    ],
    ["off", (s) => s.replace(/(whole\d_0 = fma\(whole\d_0, a), /g, "$1 * 1.001f, ")],
  ];
  const core = await bundle.gpu(kinds.tiles, (s) => s.replace(/min\(i \+ (\d), last\)/g, "(i + $1)"));
  await said(core, configs.even.vocab_size).then(
    () => assert.unreachable("keys past a row's own are not read"),
    (e: WeftError) => assert.is(e.code, "WEFT_NUMERICS"),
  );
  await core.dispose();
  for (const [verdict, change] of changes) {
    const core = await bundle.gpu(kinds.both, change);
    assert.is(core.invariance, verdict);
    await core.dispose();
  }
});

test("items: every row in one tile of its sequence or alone, with each of its splits, in room that there is", async () => {
  const { files, manifest } = await compile(writeModel({ ...configs.even, max_position_embeddings: 2048 }), {
    ...{ targets: ["webgpu"], train: [], methods: [], quick: true, limits: {} },
    capacities: { ...small, context: 2048, tokens: 20, sequences: 16, blocks: 1024 },
  });
  const { stepWords, blocks } = planOf(manifest, "webgpu", manifest.capacities);
  const { arrays } = blocks.step;
  const tileRows = tileRowsOf(manifest.model.heads, manifest.model.kvHeads);
  for (const fewRows of [8, 0]) {
    const host = await Host.open(
      manifest,
      planOf(manifest, "webgpu", manifest.capacities).metaWords,
      { families: { fewRows }, lanes: 1 },
      await hostFiles(files),
    );
    const { exports } = host;
    const next = generator("items");
    const seen = { splits: 0, merges: 0, tiles: 0, over: 0 };
    for (let step = 0; step < 4000; step++) {
      const length = next() % 4 ? 1 + (next() % 40) : 1000 + (next() % 400);
      exports.submit(KIND.generate, length, length + 400, 0, 0, 0, 0, NONE, 0);
      const decided = host.events(0, exports.decide(0)).slice();
      for (let i = 0; i < decided.length; i += EVENT_WORDS)
        if (decided[i] === EVENT.start) host.tokens(decided[i + 2]!).fill(1);
      exports.schedule(0, 1 + (next() % 20), 20);
      const meta = host.meta(0).subarray(0, stepWords);
      const word = (name: string): number => meta[headerWords.indexOf(name)]!;
      const at = (name: string, i: number): number => meta[arrays[name]! + i]!;
      const rows = host.rowSequences(0);
      const taken = new Uint8Array(rows.length);
      for (let t = 0; t < word("n_tiles"); t++) {
        const [first, n] = [at("tile_row", t), at("tile_rows", t)];
        assert.ok(n >= 1 && n <= tileRows);
        for (let r = first; r < first + n; r++) {
          assert.is(rows[r], rows[first]);
          assert.is(at("pos", r), at("pos", first) + r - first);
          taken[r]!++;
        }
      }
      let merges = 0;
      for (let s = 0; s < word("n_splits"); ) {
        const row = at("split_row", s);
        const parts = Math.floor(at("pos", row) / 256) + 1;
        if (parts > 1) {
          assert.equal([at("merge_row", merges), at("merge_item", merges)], [row, s]);
          merges++;
        }
        for (let p = 0; p < parts; p++, s++)
          assert.equal([at("split_row", s), at("split_part", s)], [row, p]);
        taken[row]!++;
      }
      assert.is(word("n_merges"), merges);
      assert.ok(word("n_splits") <= splitsOf(manifest.capacities));
      assert.ok(taken.every((n) => n === 1));
      seen.splits += word("n_splits");
      seen.merges += merges;
      seen.tiles += word("n_tiles");
      if (rows.length > 1 && word("n_splits") + 5 > splitsOf(manifest.capacities)) seen.over++;
      host.logits().fill(0);
      exports.commit(0);
    }
    assert.is(seen.splits > 0 && seen.merges > 0 && seen.over > 0, fewRows > 0);
    assert.ok(seen.tiles > 0);
  }
});
test.run();
