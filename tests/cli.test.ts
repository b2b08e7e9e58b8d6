/** The command line, and model folders as people have them: shards, half floats, newer config keys. */
import { spawn } from "node:child_process";
import { existsSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import * as assert from "uvu/assert";
import { compile } from "../compiler/compile.ts";
import { models } from "../compiler/models/index.ts";
import { bytesOf, encode, floatToHalf, type TensorData } from "../runtime/bundle.ts";
import { type Said, weft } from "./support/console.ts";
import { batchOf, collect, configs, engineOf, idsOf, small } from "./support/engines.ts";
import { weft as program, root, program as source } from "./support/program.ts";
import { suite } from "./support/suite.ts";
import { scratch, tensorsOf, writeModel } from "./support/tiny.ts";

const test = suite("cli");
/** As people start it. */
const started = (...args: string[]): Promise<Said> =>
  new Promise((resolve) => {
    const child = spawn(process.execPath, [...program(), ...args], {
      cwd: root,
      stdio: ["ignore", "pipe", "pipe"],
    });
    let out = "";
    let err = "";
    child.stdout.on("data", (d) => (out += d));
    child.stderr.on("data", (d) => (err += d));
    child.on("close", (code) => resolve({ code: code ?? -1, out, err }));
  });

test("whoever reads no further is told nothing of it", async () => {
  const bundle = scratch();
  const how = ["--target", "wasm", "--context", "64", "--quick"];
  const made = await weft("compile", writeModel(configs.even), "-o", bundle, ...how);
  assert.is(made.code, 0, made.err);
  const words = ["generate", bundle, "--ids", "1,2,3", "--max-tokens", "40", "--device", "wasm"];
  const child = spawn(process.execPath, [...source("sdk/cli.ts"), ...words], {
    cwd: root,
    stdio: ["ignore", "pipe", "pipe"],
  });
  child.stdout.destroy();
  let err = "";
  child.stderr.on("data", (d) => (err += d));
  const code = await new Promise((resolve) => child.on("close", resolve));
  assert.is(code, 0, err);
  assert.not.match(err, /EPIPE|Error/);
});

test("npm run takes paths from where it is called", async () => {
  const child = spawn("npm", ["run", "-s", "weft", "--", "generate", "model/story", "--prompt", "x"], {
    cwd: join(root, "examples"),
    env: { ...process.env, INIT_CWD: undefined },
    stdio: ["ignore", "ignore", "pipe"],
  });
  let err = "";
  child.stderr.on("data", (d) => (err += d));
  await new Promise((resolve) => child.on("close", resolve));
  // It finds the model, of which a bundle is to be made.
  assert.match(err, /make one with: weft compile model\/story/);
});

test("compile, inspect, finetune, generate, doctor: results on stdout, else stderr; codes", async () => {
  const dir = scratch();
  const model = writeModel(configs.even);
  const made = await started(
    "compile",
    model,
    "-o",
    `${dir}/m.weft`,
    "--target",
    "wasm",
    "--context",
    "64",
    "--tokens",
    "32",
    "--rank",
    "4",
    "--quick",
    "--json",
  );
  assert.is(made.code, 0, made.err);
  const { manifest } = await compile(model, {
    ...{ targets: ["wasm"], quick: true, capacities: { context: 64, tokens: 32, rank: 4 } },
  });
  assert.equal(JSON.parse(readFileSync(`${dir}/m.weft/manifest.json`, "utf8")), manifest);
  assert.is((JSON.parse(made.out) as { bundle: string }).bundle, `${dir}/m.weft`);
  assert.match(made.err, /weights/);
  const seen = await weft("inspect", `${dir}/m.weft`);
  assert.match(seen.out, /forward.*launches/);
  assert.match(seen.out, /naive, \d+ pruned, \d+ boundary/);
  assert.match((await weft("inspect", `${dir}/m.weft`, "--graph", "backward.lora")).out, /attend_dkv\(/);
  writeFileSync(
    `${dir}/rows.jsonl`,
    batchOf(128)
      .slice(0, 2)
      .map((r) => JSON.stringify(r))
      .join("\n"),
  );
  const tuned = await weft(
    "finetune",
    `${dir}/m.weft`,
    "--data",
    `${dir}/rows.jsonl`,
    "--name",
    "notes",
    "--out",
    `${dir}/notes`,
    "--rank",
    "2",
    "--steps",
    "3",
    "--device",
    "wasm",
    "--json",
  );
  assert.is(tuned.code, 0, tuned.err);
  assert.is((JSON.parse(tuned.out) as { losses: number[] }).losses.length, 3);
  assert.ok(existsSync(`${dir}/notes/adapter_model.safetensors`));
  const said = await weft(
    "generate",
    `${dir}/m.weft`,
    "--ids",
    "5,6,7",
    "--adapter",
    `${dir}/notes`,
    "--max-tokens",
    "4",
    "--device",
    "wasm",
    "--json",
  );
  assert.is((JSON.parse(said.out) as { ids: number[] }).ids.length, 4, said.err);
  const best = await weft(
    ...["finetune", `${dir}/m.weft`, "--data", `${dir}/rows.jsonl`, "--name", "best", "--out", `${dir}/best`],
    ...["--eval-data", `${dir}/rows.jsonl`, "--eval-every", "1", "--select", "best", "--steps", "2"],
    ...["--device", "wasm"],
  );
  assert.match(best.out, /2 steps, loss .*, kept step [12] \(best\)/, best.err);
  assert.is((await weft("doctor", "--json")).code, 0);
  const room = async (memory: string): Promise<{ bytes: number; slots: number; blocks: number }> => {
    const told = await weft("doctor", `${dir}/m.weft`, "--for", memory, "--json");
    return (JSON.parse(told.out) as Record<string, never>)["a load on wasm"]!;
  };
  const refused = await weft("doctor", `${dir}/m.weft`, "--for", "1kB");
  const least = /at least ([\d.]+ [kM]B) /.exec(refused.err)![1]!;
  const [little, much] = [await room(least), await room("1GB")];
  assert.ok(little.bytes <= bytesOf(least) && little.bytes > 0.9 * bytesOf(least));
  assert.ok(little.blocks < much.blocks && little.slots < much.slots);
  const shown = await weft("inspect", `${dir}/m.weft`, "--for", least);
  assert.match(shown.out, new RegExp(`slots ${little.slots}`));
  // More threads take a little more.
  const small = ["--device", "wasm", "--memory", `${bytesOf(least) * 2}`, "--json"];
  const same = await started("generate", `${dir}/m.weft`, "--ids", "5,6,7", "--max-tokens", "4", ...small);
  assert.is((JSON.parse(same.out) as { ids: number[] }).ids.length, 4, same.err);
  for (const memory of ["much", "1kB"]) {
    const { code, err } = await weft("generate", `${dir}/m.weft`, "--ids", "1", "--memory", memory);
    assert.is(code, 1);
    assert.match(
      err,
      memory === "much" ? /memory: expected bytes, or a text like 512MB/ : /at least [\d.]+ [kM]B /,
    );
  }
  assert.match((await weft("generate", `${dir}/m.weft`, "--promt", "x")).err, /did you mean --prompt/);
  for (const args of [
    ["genrate"],
    ["compile", model],
    ["generate", `${dir}/m.weft`, "--ids", "1", "--heat", "3"],
    ["inspect", "/nowhere"],
    ["generate", `${dir}/m.weft`, "--ids", "1", "--max-tokens", "many"],
  ]) {
    const bad = await (args[0] === "genrate" ? started : weft)(...args, "--json");
    assert.is(bad.code, 1);
    assert.match((JSON.parse(bad.out) as { error: { code: string } }).error.code, /^WEFT_/);
  }
});

test("sharded, F16 and BF16 checkpoints give the model of their values", async () => {
  const all = tensorsOf(configs.even);
  const base = (
    await compile(writeModel(configs.even), { targets: ["wasm"], quick: true, capacities: small })
  ).files.get("weights/model-00000.safetensors")!;
  const sharded = writeModel(configs.even);
  rmSync(`${sharded}/model.safetensors`);
  const half = Math.ceil(all.length / 2);
  const map: Record<string, string> = {};
  for (const [file, list] of [
    ["model-1.safetensors", all.slice(0, half)],
    ["model-2.safetensors", all.slice(half)],
  ] as const) {
    writeFileSync(`${sharded}/${file}`, encode(list));
    for (const t of list) map[t.name] = file;
  }
  writeFileSync(`${sharded}/model.safetensors.index.json`, JSON.stringify({ weight_map: map }));
  const shards = (await compile(sharded, { targets: ["wasm"], quick: true, capacities: small })).files.get(
    "weights/model-00000.safetensors",
  )!;
  assert.ok(Buffer.compare(Buffer.from(base), Buffer.from(shards)) === 0);

  // Values that both half formats hold exactly.
  const coarse = all.map(
    (t): TensorData => ({
      ...t,
      data: Float32Array.from(t.data as Float32Array, (x) => Math.round(x * 64) / 64),
    }),
  );
  const whole = writeModel(configs.even);
  writeFileSync(`${whole}/model.safetensors`, encode(coarse));
  const want = (await compile(whole, { targets: ["wasm"], quick: true, capacities: small })).files.get(
    "weights/model-00000.safetensors",
  )!;
  const bits = new Uint32Array(1);
  const float = new Float32Array(bits.buffer);
  for (const dtype of ["F16", "BF16"] as const) {
    const dir = writeModel(configs.even);
    const packed = coarse.map((t) => ({
      ...t,
      dtype,
      data: Uint16Array.from(t.data as Float32Array, (x) => {
        if (dtype === "F16") return floatToHalf(x);
        float[0] = x;
        return bits[0]! >>> 16;
      }),
    }));
    writeFileSync(`${dir}/model.safetensors`, encode(packed as unknown as TensorData[]));
    const got = (
      await compile(dir, { targets: ["wasm"], format: "f32", quick: true, capacities: small })
    ).files.get("weights/model-00000.safetensors")!;
    assert.ok(Buffer.compare(Buffer.from(got), Buffer.from(want)) === 0, dtype);
  }
});

test("rope_theta, rope_scaling and the newer rope_parameters name the same angles", () => {
  const { rope_scaling: scaling, rope_theta: theta, ...rest } = configs.odd as Record<string, unknown>;
  const old = models.llama!.read(configs.odd);
  const now = models.llama!.read({ ...rest, rope_parameters: { ...(scaling as object), rope_theta: theta } });
  assert.equal(now.ropes, old.ropes);
  const plain = models.llama!.read(configs.even);
  assert.ok(Math.abs(plain.ropes[0]!.inverseFrequencies[1]! - 10000 ** (-2 / 16)) < 1e-15);
});

test("a job with rows to evaluate publishes its last step, or its best, and says which", async () => {
  await using engine = await engineOf(configs.even);
  const rows = batchOf(128);
  const evals: number[] = [];
  const o = {
    data: rows.slice(1, 2),
    evalData: rows.slice(3, 4),
    evalEvery: 2,
    steps: 16,
    learningRate: 0.03,
    rank: 4,
  };
  const said: number[] = [];
  const job = await engine.finetune({
    ...o,
    name: "best",
    select: "best",
    onEvent: (e) => {
      if (e.type === "eval") evals.push(e.loss);
      if (e.type === "done") said.push(e.kept);
    },
  });
  const { bestLoss, kept } = await job.done;
  assert.is(bestLoss, Math.min(...evals));
  assert.is(kept, 2 * (evals.indexOf(bestLoss!) + 1));
  assert.ok(kept < o.steps, "the data is learned by heart: the best step is not the last");
  const published = async (adapter: string): Promise<number> => {
    const { logprobs } = await engine.score(rows[3]!.input_ids, { adapter });
    return -logprobs.slice(39).reduce((a, b) => a + b, 0) / logprobs.slice(39).length;
  };
  const loss = await published("best");
  assert.ok(Math.abs(loss - bestLoss!) < 1e-6, `published adapter has ${loss}, best was ${bestLoss}`);
  const last = await engine.finetune({
    ...o,
    name: "last",
    onEvent: (e) => e.type === "done" && said.push(e.kept),
  });
  assert.is((await last.done).kept, o.steps);
  assert.equal(said, [kept, o.steps]);
  assert.ok(Math.abs((await published("last")) - evals.at(-1)!) < 1e-6);
  const cut = await collect(engine, {
    prompt: idsOf("x", 4, 128),
    maxTokens: 3,
    adapter: "best@1",
    logprobs: 2,
  });
  assert.is(cut.ids.length, 3);
});
test("flags that contradict one another are told before anything is loaded or trained", async () => {
  const dir = scratch();
  for (const [says, ...args] of [
    [/--seed.*--calibrate/, "compile", dir, "-o", `${dir}/b`, "--seed", "3"],
    [/--selector.*--calibrate/, "compile", dir, "-o", `${dir}/b`, "--selector", "random"],
    [/--ids.*both/, "generate", dir, "--ids", "1", "--prompt", "x"],
    [/--ids.*token ids/, "generate", dir, "--ids", "1,,2"],
    [/--ids.*token ids/, "generate", dir, "--ids", ""],
    ...[
      [`${dir}/a`, `${dir}/a/state`],
      [`${dir}/a/`, `${dir}/b/../a`],
      [`${dir}/a/b`, `${dir}/a`],
    ].map(
      ([out, state]) =>
        [
          /--checkpoint.*neither holds/,
          ...["finetune", dir, "--data", "x", "--name", "x", "--method", "lora"],
          ...["--out", out!, "--checkpoint", state!],
        ] as const,
    ),
  ] as (readonly [RegExp, ...string[]])[]) {
    const ended = await weft(...args);
    assert.is(ended.code, 1);
    assert.match(ended.err, says, args.join(" "));
  }
  assert.equal(readdirSync(dir), []);
});
test.run();
