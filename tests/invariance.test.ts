/**
 * The check of law 4 at load: it sees any family of kernels that is not batch-invariant, falls back to one
 * family where that helps, and leaves no trace.
 */
import * as assert from "uvu/assert";
import { type CompileOptions, compile } from "../compiler/compile.ts";
import { compileKernels } from "../compiler/emit/asc.ts";
import { Engine as Core } from "../runtime/engine.ts";
import type { Verdicts } from "../runtime/invariance.ts";
import type { BundleReader } from "../runtime/reader.ts";
import { openWasm } from "../runtime/wasm.ts";
import { openWebGpu } from "../runtime/webgpu.ts";
import { bits, configs, idsOf, s2ftOdd, small, tiny } from "./support/engines.ts";
import { suite } from "./support/suite.ts";
import { writeModel } from "./support/tiny.ts";

const test = suite("invariance");
const text = (bytes: Uint8Array): string => new TextDecoder().decode(bytes);

/** A core over a bundle whose Wasm kernels are changed. */
async function wasmCore(
  files: ReadonlyMap<string, Uint8Array>,
  change: ((source: string) => string) | null,
  threads = 1,
): Promise<Core> {
  const source = text(files.get("kernels.as.ts")!);
  const changed = change?.(source) ?? source;
  if (change) assert.is.not(changed, source, "the kernel is where it was");
  const module = change
    ? await compileKernels(changed, { cache: true, quick: true })
    : files.get("kernels.wasm")!;
  const reader = { where: "memory", read: async (name: string) => files.get(name)! };
  return Core.open(reader, (m) => openWasm(m, module, { threads }));
}
const compiled = (o: CompileOptions = {}, config = configs.even) =>
  compile(writeModel(config), {
    targets: ["wasm"],
    quick: true,
    ...o,
    capacities: { ...small, ...o.capacities },
  });

test("an intact bundle of many methods is verified, on one thread and two, without trace", async () => {
  const { files, manifest } = await compiled(
    { train: ["lora", "dora", "s2ft", "prefix", "sparse", "full"], capacities: { s2ft: s2ftOdd } },
    configs.odd,
  );
  for (const threads of [1, 2]) {
    const core = await wasmCore(files, null, threads);
    assert.is(core.invariance, "verified");
    const { blocks, slots } = core.memory();
    assert.equal([blocks.free, slots.used, core.adapters.list()], [blocks.total, 0, []]);
    const { plan } = core.device;
    const { layers } = manifest.model;
    for (const [space, words] of [
      ["adapters", plan.spaces.adapters],
      ["accum", plan.spaces.accum],
    ] as const)
      for (let group = 0; group < layers; group++) {
        const all = await core.device.read({ space, group, offset: 0, words: words.layer });
        assert.ok(
          all.every((x) => x === 0),
          `${space} of layer ${group}`,
        );
      }
    await core.dispose();
  }
});

test("what was found of a bundle on a device is not checked again; of others it is", async () => {
  const { files } = await compiled();
  const reader = { where: "memory", read: async (name: string) => files.get(name)! };
  const verdicts: Verdicts = new Map();
  const stepsOf = async (threads: number, of: BundleReader = reader): Promise<number> => {
    let steps = 0;
    const core = await Core.open(
      of,
      async (m, file) => {
        const device = await openWasm(m, await file("kernels.wasm"), { threads });
        const { run } = device;
        return Object.assign(device, {
          run: (...args: Parameters<typeof run>) => {
            steps++;
            return run(...args);
          },
        });
      },
      {},
      verdicts,
    );
    assert.is(core.invariance, "verified");
    await core.dispose();
    return steps;
  };
  const first = await stepsOf(1);
  assert.ok(first > 0);
  assert.is(await stepsOf(1), 0);
  assert.ok((await stepsOf(2)) > 0);
  const manifest = JSON.parse(text(files.get("manifest.json")!)) as { base: string };
  const other = new Map(files).set(
    "manifest.json",
    new TextEncoder().encode(JSON.stringify({ ...manifest, base: "0".repeat(64) })),
  );
  const read = async (name: string): Promise<Uint8Array> => other.get(name)!;
  assert.is(await stepsOf(1, { where: "memory", read }), first);
});

const inside = (name: RegExp, change: (body: string) => string) => (source: string) =>
  source.replace(new RegExp(`function ${name.source}\\([\\s\\S]*?\\n}`, "g"), change);
test("a perturbed family is seen: adapters, kept sets, packing, contexts past 256", async () => {
  const { files } = await compiled();
  const long = await compiled(
    { train: [], capacities: { context: 288 } },
    { ...configs.even, max_position_embeddings: 512 },
  );
  const cases: [string, ReadonlyMap<string, Uint8Array>, (source: string) => string][] = [
    [
      "a row's adapter, alone and among four",
      files,
      (s) => s.replace(/(function shrink4\(.*\{)/, "$1\n  cols -= 4;"),
    ],
    [
      "a unit that recomputes, and one that kept all",
      files,
      inside(/copy_lora_\w+/, (b) => b.replace(/(store<f32>\(p_\d+, v_\d+)\)/, "$1 * <f32>(1.0001))")),
    ],
    [
      "the second quantum of a unit",
      files,
      inside(/backward_lora_\w*shrink_mlp_down_proj_lora_b_plain_0_e/, (b) =>
        b.replace("{", "{\n  if (row >= 32) store<f32>(acc0, load<f32>(acc0) * 1.001);"),
      ),
    ],
    [
      "keys past 256 in large steps",
      long.files,
      (s) => s.replace("a *= <f32>(0.25);", "a *= t >= 8 && n > 38 ? <f32>(0.2500001) : <f32>(0.25);"),
    ],
  ];
  for (const [what, of, change] of cases) {
    const core = await wasmCore(of, change);
    assert.is(core.invariance, "off", what);
    await core.dispose();
  }
});

test("kernels for few and many rows differ: one serves all; where none is sound, told", async () => {
  const { files } = await compile(writeModel({ ...configs.even, num_hidden_layers: 1 }), {
    targets: ["webgpu"],
    train: [],
    methods: [],
    quick: true,
    capacities: { ...small, tokens: 80 },
    limits: tiny,
  });
  const reader = { where: "memory", read: async (name: string) => files.get(name)! };
  const inv = "shared_c[lane] = 1.0f / l;";
  const prompt = idsOf("few and many", 72, 128);
  const said: string[] = [];
  // A software adapter compiles tiles for a second each.
  const [plain, both] = [{ fewRows: null }, { fewRows: 8 }];
  for (const [what, families, change, verdict] of [
    ["intact, without tiles", plain, (s: string) => s, "verified"],
    ["intact, as on a GPU", both, (s: string) => s, "verified"],
    [
      "attention for few rows is off, in the same way for every row",
      both,
      (s: string) => (s.includes("let split =") ? s.replace(inv, "shared_c[lane] = 1.0000002f / l;") : s),
      "single-family",
    ],
    [
      "products for few rows are off, in the same way for every row",
      both,
      (s: string) => s.replace(/(total\[\d\]) = \1 \+ (sums[^;]*)/g, "$1 = $1 + $2 * 0.9999999f"),
      "single-family",
    ],
    [
      "attention gives a row other bits at another place of the batch",
      both,
      (s: string) => s.replace(inv, "shared_c[lane] = fma(f32(row0), 1.0e-6f, 1.0f) / l;"),
      "off",
    ],
    [
      "tiles of products do",
      both,
      (s: string) => s.replace("t7 = t7 + a7;", "t7 = t7 + a7 * 0.9999999f;"),
      "off",
    ],
  ] as const) {
    const core = await Core.open(reader, async (m, file) => {
      const changed = async (name: string) => new TextEncoder().encode(change(text(await file(name))));
      return (await openWebGpu(m, changed, "software", { families }))!;
    });
    assert.is(core.invariance, verdict, what);
    if (verdict !== "off") {
      // In one step of 72 rows, a whole tile and a few, and in pieces of at most 12.
      const { logits } = await core.score(prompt, { logits: true });
      for await (const e of core.generate({ prompt, maxTokens: 1, logprobs: 1 })) {
        const scored = await core.score([...prompt, e.id]);
        assert.is(e.logprob, scored.logprobs.at(-1));
      }
      said.push(bits(logits!.at(-1)!));
    }
    await core.dispose();
  }
  assert.is(said[1], said[0]);
});
test.run();
