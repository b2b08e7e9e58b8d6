/**
 * Options of every call: what is unknown or wrong is refused where it enters, by name, with the nearest known
 * one.
 */
import * as assert from "uvu/assert";
import type { Engine as Core } from "../runtime/engine.ts";
import { startJob } from "../runtime/trainer.ts";
import { compile, load, planMemory, WeftError } from "../sdk/index.ts";
import { batchOf, bundle, collect, configs, engineOf, idsOf, small } from "./support/engines.ts";
import { suite } from "./support/suite.ts";
import { scratch, writeModel } from "./support/tiny.ts";

const test = suite("options");
const refused = async (what: string, f: () => unknown, says: RegExp, code = "WEFT_OPTION"): Promise<void> => {
  try {
    await f();
  } catch (e) {
    assert.instance(e, WeftError, `${what}: ${e}`);
    assert.is((e as WeftError).code, code, `${what}: ${(e as Error).message}`);
    assert.match((e as Error).message, says, what);
    return;
  }
  assert.unreachable(`${what} was taken`);
};
type Case = readonly [options: Record<string, unknown>, says: RegExp];
const prompt = idsOf("options", 5, 128);

const training: readonly Case[] = [
  [{ learning_rate: 1e-3 }, /at learning_rate.*did you mean "learningRate"/],
  [{ lr: 1e-3 }, /at lr.*did you mean "learningRate"/],
  [{ optimiser: "sgd" }, /did you mean "optimizer"/],
  [{ optimizer: "adam" }, /at optimizer.*adamw, sgd or lion.*"adam".*did you mean "adamw"/],
  [{ optimizer: "lamb" }, /adamw, sgd or lion.*"lamb"/],
  [{ schedule: "cosin" }, /did you mean "cosine"/],
  [{ method: "lroa" }, /at method.*did you mean "lora"\? or compile with --train lroa/],
  [{ method: "vera" }, /at method.*compile with --train vera/],
  [{ keep: "al" }, /did you mean "all"/],
  [{ select: "bset" }, /did you mean "best"/],
  [{ selector: "activation_small" }, /did you mean "activation-small"/],
  [{ evalEvery: -1 }, /evalEvery.*a positive integer.*-1/],
  [{ seed: "abc" }, /seed.*an integer.*"abc"/],
  [{ batchSize: 0 }, /batchSize.*a positive integer/],
  [{ batchSize: "8" }, /batchSize/],
  [{ microBatch: 0 }, /microBatch.*a positive integer/],
  [{ microBatch: -1 }, /microBatch/],
  [{ targetModules: [] }, /targetModules.*at least one/],
  [{ targetModules: 3 }, /targetModules/],
  [{ epochs: 0.5 }, /epochs.*a positive integer.*0\.5/],
  [{ steps: Number.NaN }, /steps.*NaN/],
  [{ betas: [2, Number.NaN] }, /betas.*\[0\].*2/],
  [{ betas: [0.9] }, /betas/],
  [{ betas: [0.9, 0.99, 0.999] }, /betas/],
  [{ warmupSteps: Number.NaN }, /warmupSteps.*NaN/],
  [{ rank: 0 }, /rank.*a positive integer/],
  [{ alpha: Number.POSITIVE_INFINITY }, /alpha.*finite/],
  [{ alphaPattern: { q_proj: "1" } }, /alphaPattern\.q_proj.*finite/],
  [{ rankPattern: { q_proj: 1.5 } }, /rankPattern\.q_proj/],
  [{ dropout: 1 }, /dropout/],
  [{ momentum: 1 }, /momentum/],
  [{ momentum: 0.5 }, /momentum.*options of adamw: betas, eps.*one of sgd/],
  [{ eps: 0 }, /eps/],
  [{ learningRate: "2e-3" }, /learningRate/],
  [{ maxGradNorm: Number.NaN }, /maxGradNorm/],
  [{ shuffle: "no" }, /shuffle.*true or false/],
  [{ publishEvery: 0 }, /publishEvery/],
  [{ onEvent: "log" }, /onEvent.*a function/],
  [{ signal: {} }, /signal.*an AbortSignal/],
  [{ name: "notes@v2" }, /name.*letters, digits/],
  [{ name: undefined }, /name/],
  [{ name: "base" }, /at name: expected another name: base is the model without adapters/],
  [{ epochs: 2 }, /at steps: expected epochs or steps, found both/],
];
test("finetune", async () => {
  await using engine = await engineOf(configs.even);
  for (const [o, says] of [
    ...training,
    [{ data: 3 }, /data.*the path of a JSONL file, such a file, or a list of rows/],
    [{ resume: true }, /resume.*a folder/],
    [{ checkpoint: { dir: 7 } }, /dir.*a folder/],
    [{ disjointFrom: "a" }, /disjointFrom/],
    [{ datas: [] }, /did you mean "data"/],
  ] as Case[])
    await refused(
      Object.keys(o).join(),
      () => engine.finetune({ name: "job", data: batchOf(128), steps: 1, ...o } as never),
      says,
    );
  await refused("nothing", () => engine.finetune(undefined as never), /an object/);
  // What a method has no use for.
  await using other = await engineOf(configs.even, { train: ["lora", "ia3"] });
  for (const [o, says] of [
    [{ method: "lora", rank: 9 }, /at rank: expected at most 8 for lora, found 9 \(compile .* larger rank\)/],
    [{ method: "ia3", rank: 4 }, /at rank: expected at most 1 for ia3, found 4$/],
    [{ method: "ia3", alpha: 64 }, /at alpha: expected none: ia3 has no scale, found 64/],
    [{ method: "ia3", rslora: true }, /at rslora: expected none: ia3 has no scale/],
  ] as Case[])
    await refused(
      JSON.stringify(o),
      () => other.finetune({ name: "job", data: batchOf(128), steps: 1, ...o } as never),
      says,
    );
  await (await engine.finetune({ name: "job", data: batchOf(128), steps: 1, keep: "all", rank: undefined }))
    .done;
});
test("the engine of ids refuses the same, and what it does not know", async () => {
  await using engine = await engineOf(configs.even);
  const { core } = engine;
  for (const [o, says] of training) {
    const adapter = ["rank", "alpha", "alphaPattern", "rankPattern", "dropout", "targetModules", "selector"];
    const inside = Object.keys(o).every((k) => adapter.includes(k));
    const own = inside ? { adapter: o } : o;
    await refused(
      Object.keys(o).join(),
      () =>
        startJob(core, { name: "job", method: "lora", rows: batchOf(128), steps: 1, ...own } as never, []),
      says,
    );
  }
  for (const [o, says] of [...requests, [{ messages: [] }, /at messages/]] as Case[])
    await refused(Object.keys(o).join(), () => take(core, { prompt, maxTokens: 2, ...o }), says);
});
const take = async (core: Core, o: object): Promise<void> => {
  for await (const _ of core.generate(o as never)) return;
};
const requests: readonly Case[] = [
  [{ temprature: 1 }, /did you mean "temperature"/],
  [{ max_tokens: 3 }, /did you mean "maxTokens"/],
  [{ stopIds: 3 }, /stopIds.*an array/],
  [{ stopIds: ["a"] }, /stopIds\[0\].*token id/],
  [{ stopIds: [2 ** 31] }, /stopIds\[0\]/],
  [{ logprobs: "x" }, /logprobs.*"x"/],
  [{ logprobs: 1e9 }, /logprobs.*0 to 256/],
  [{ maxTokens: Number.NaN }, /maxTokens.*NaN/],
  [{ maxTokens: "5" }, /maxTokens/],
  [{ temperature: "hot" }, /temperature/],
  [{ topP: 0 }, /topP/],
  [{ topK: 1.5 }, /topK/],
  [{ seed: 0.5 }, /seed/],
  [{ adapter: 3 }, /adapter/],
  [{ adapter: { a: Number.POSITIVE_INFINITY } }, /adapter.*finite/],
  [{ signal: "now" }, /signal/],
];
test("generate and complete, score", async () => {
  await using engine = await engineOf(configs.even);
  for (const [o, says] of [
    ...requests,
    [{ stop: [""] }, /stop.*not empty/],
    [{ stop: "" }, /stop.*not empty/],
    [{ stop: [1] }, /stop/],
    [{ stops: ["a"] }, /did you mean "stop"/],
    [{ messages: [{ role: "user", content: "x" }] }, /a prompt.*or messages/],
    [{ prompt: undefined }, /a prompt.*or messages/],
    [{ prompt: { text: "a" } }, /prompt.*text or token ids/],
    [{ prompt: [1, "2"] }, /prompt/],
  ] as Case[])
    await refused(
      Object.keys(o).join(),
      () => collect(engine, { prompt, maxTokens: 2, ...o } as never),
      says,
    );
  // One stop is a list of one; without a tokenizer there is no text that it could end.
  const stop = () => collect(engine, { prompt, maxTokens: 2, stop: "\n" });
  await refused("stop", stop, /tokenizer/, "WEFT_TOKENIZER");
  await refused("nothing", () => engine.complete(undefined as never), /an object/);
  await refused("score", () => engine.score(prompt, { logit: true } as never), /did you mean "logits"/);
  await refused("score", () => engine.score(prompt, { adapter: [] as never }), /adapter/);
});
test("load", async () => {
  const good = await bundle(configs.even);
  for (const [o, says] of [
    [{ device: "gpu" }, /device.*auto, wasm, webgpu or software/],
    [{ device: "wams" }, /did you mean "wasm"/],
    [{ thread: 1 }, /did you mean "threads"/],
    [{ threads: 0 }, /threads.*1 to 64/],
    [{ threads: 65 }, /threads/],
    [{ lanes: 3 }, /lanes.*1 or 2/],
    [{ relaxed: "yes" }, /relaxed/],
    [{ cache: 7 }, /cache.*yes, no, or a name/],
    [{ fetch: "it" }, /fetch.*a function/],
    [{ headers: { a: 1 } }, /headers/],
    [{ budget: 0 }, /budget/],
    [{ latency: 0 }, /latency/],
    [{ latency: 20, budget: 8 }, /latency.*rows or its time.*budget 8, latency 20/],
    [{ onProgress: 1 }, /onProgress.*a function/],
  ] as Case[])
    await refused(Object.keys(o).join(), () => load(good, o as never), says);
});
test("adapters: names that nobody could ask for, weights, densities, forms", async () => {
  await using engine = await engineOf(configs.even);
  const { adapters } = engine;
  for (const name of ["notes@v2", "a b", "", "../a", 3])
    await refused(`load ${name}`, () => adapters.load(name as never, "/nowhere"), /at name.*letters/);
  await refused("load base", () => adapters.load("base", "/nowhere"), /at name.*without adapters/);
  await refused("combine", () => adapters.combine("base", { a: 1 }), /at name.*without adapters/);
  await refused("combine", () => adapters.combine("x@1", { a: 1 }), /at name/);
  await refused("combine", () => adapters.combine("x", { a: Number.NaN }), /weights.*finite/);
  await (await engine.finetune({ name: "a", data: batchOf(128), steps: 1 })).done;
  await refused("combine", () => adapters.combine("x", { a: 1e308 }), /finite/, "WEFT_ADAPTER");
  assert.not(adapters.list().some((a) => a.name === "x"));
  await (await engine.finetune({ name: "notes", data: batchOf(128), steps: 0 })).done;
  const misspelt = () => engine.complete({ prompt, adapter: "nots" });
  await refused("adapter", misspelt, /expected a, notes, found .*did you mean "notes"/, "WEFT_NOT_FOUND");
  const handle = adapters.get("a");
  await refused("save", () => handle.save(scratch(), { as: "lore" } as never), /as.*lora/);
  await refused("compress", () => handle.compress(scratch(), { density: 0 }), /density/);
  await refused(
    "compress",
    () => handle.compress(scratch(), { desity: 0.1 } as never),
    /did you mean "density"/,
  );
});
test("compile and planMemory", async () => {
  const model = writeModel(configs.even);
  for (const [o, says, code] of [
    [{ target: ["wasm"] }, /did you mean "targets"/],
    [{ targets: ["wasn"] }, /did you mean "wasm"/],
    [{ format: "fp16" }, /did you mean "f16"/],
    [{ train: "lora" }, /train.*an array/],
    [{ train: ["lorra"] }, /lorra/],
    [{ policy: "fair" }, /policy/],
    [{ fuse: 1 }, /fuse/],
    [{ calibrat: { data: [] } }, /keys calibrate, correct, targets.*did you mean "calibrate"/],
    [{ calibrate: { dta: [] } }, /calibrate\.data/],
    [{ calibrate: { data: [], selector: "smallest" } }, /selector/],
    [{ capacities: { slot: 1 } }, /capacities\.slot.*did you mean "slots"/, "WEFT_CAPACITY"],
    [{ capacities: { rank: 6 } }, /capacities\.rank.*multiple of 4/, "WEFT_CAPACITY"],
    [{ capacities: { jobs: 0 } }, /capacities\.jobs/, "WEFT_CAPACITY"],
    [{ capacities: { s2ft: { site: [] } } }, /s2ft/, "WEFT_CAPACITY"],
  ] as [object, RegExp, string?][])
    await refused(
      JSON.stringify(o),
      () => compile(model, `${scratch()}/x.weft`, { targets: ["wasm"], capacities: small, ...o } as never),
      says,
      code,
    );
  await refused("planMemory", () => planMemory("llama-3-8b", { token: 1 } as never), /did you mean "tokens"/);
  await refused("planMemory", () => planMemory("llama-3-8b", { rank: 0 }), /rank/);
  await refused("planMemory", () => planMemory("llama-3-8"), /llama-3-8b/);
});
test.run();
