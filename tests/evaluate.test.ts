/** What eval and merge say, against the engine's own numbers taken another way. */
import { existsSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import * as assert from "uvu/assert";
import { evaluate } from "../sdk/evaluate.ts";
import { compile, load } from "../sdk/index.ts";
import { weft } from "./support/console.ts";
import { facts, storyBundle } from "./support/story.ts";
import { suite } from "./support/suite.ts";
import { scratch } from "./support/tiny.ts";

const test = suite("evaluate");

test("eval and merge: losses in f64, exact answers as generated; a merged folder", async () => {
  const dir = scratch();
  const bundle = await storyBundle();
  await using engine = await load(bundle, { device: "wasm" });
  const rows = [...facts().slice(0, 5), { text: "Mia has a red hat. Mia was very happy." }];
  const job = await engine.finetune({
    name: "notes",
    data: facts(),
    epochs: 20,
    rank: 4,
    learningRate: 4e-3,
  });
  await job.done;
  await engine.adapters.get("notes").save(`${dir}/notes`);
  writeFileSync(`${dir}/rows.jsonl`, rows.map((r) => JSON.stringify(r)).join("\n"));
  for (const adapter of [undefined, "notes"]) {
    const o = adapter === undefined ? {} : { adapter };
    const found = await evaluate(engine, `${dir}/rows.jsonl`, o);
    let [nll, tokens, right] = [0, 0, 0];
    for (const [i, { input_ids, labels }] of (await engine.rows(rows, "rows")).entries()) {
      const { logits } = await engine.score(input_ids, { ...o, logits: true });
      for (let t = 1; t < labels.length; t++) {
        if (labels[t]! < 0) continue;
        const row = [...logits![t - 1]!];
        const max = Math.max(...row);
        nll += max + Math.log(row.reduce((s, x) => s + Math.exp(x - max), 0)) - row[labels[t]!]!;
        tokens++;
      }
      const { prompt, completion } = rows[i] as { prompt?: string; completion: string };
      if (prompt === undefined) continue;
      const said = await engine.complete({ ...o, prompt });
      if (said.text === completion && said.finish === "stop") right++;
    }
    assert.is(found.tokens, tokens);
    assert.ok(Math.abs(found.loss - nll / tokens) < 1e-5, `${found.loss}, in f64 ${nll / tokens}`);
    assert.is(found.perplexity, Math.exp(found.loss));
    assert.equal(found.exact, { right, of: 5 });
    assert.ok(adapter ? right >= 4 : right < 4, `${right} of 5`);
  }
  const args = ["--data", `${dir}/rows.jsonl`, "--adapter", `n=${dir}/notes`, "--device", "wasm"];
  const told = await weft("eval", bundle, ...args);
  assert.match(told.out, /rows +tokens +loss +perplexity +exact\nbase .*\/5\nn .*[45]\/5/, told.err);
  const json = JSON.parse((await weft("eval", bundle, ...args, "--json")).out) as Record<
    string,
    { loss: number }
  >;
  assert.ok(json.n!.loss < json.base!.loss);

  const same = [...args.slice(0, 2), "--adapter", `${dir}/notes`, "--adapter", `${dir}/./notes`];
  const { code, err } = await weft("eval", bundle, ...same, "--device", "wasm");
  assert.is(code, 1);
  assert.match(err, /weft eval --adapter: .*'notes' again.*--adapter NAME=/);

  const merged = await weft(
    "merge",
    bundle,
    "--adapter",
    `${dir}/notes`,
    "-o",
    `${dir}/model`,
    "--device",
    "wasm",
  );
  assert.is(merged.code, 0, merged.err);
  const config = JSON.parse(readFileSync(`${dir}/model/config.json`, "utf8")) as Record<string, unknown>;
  assert.equal([config.architectures, config.torch_dtype], [["LlamaForCausalLM"], "float32"]);
  await compile(`${dir}/model`, `${dir}/model.weft`, { targets: ["wasm"], quick: true });
  await using again = await load(`${dir}/model.weft`, { device: "wasm" });
  const [whole, beside] = [await evaluate(again, rows), await evaluate(engine, rows, { adapter: "notes" })];
  assert.ok(Math.abs(whole.loss - beside.loss) < 1e-4, `${whole.loss} and ${beside.loss}`);
  assert.equal(whole.exact, beside.exact);
  const onto = (...more: string[]) =>
    weft(
      ...["finetune", bundle, "--from", `${dir}/notes`, "--data", `${dir}/rows.jsonl`, "--name", "on"],
      ...["--out", `${dir}/on`, "--steps", "2", "--device", "wasm", ...more],
    );
  const on = await onto();
  assert.is(on.code, 0, on.err);
  const first = Number(/loss ([\d.]+) →/.exec(on.out)![1]);
  assert.ok(first < json.base!.loss, `it begins at ${first}, the base at ${json.base!.loss}`);
  assert.match(on.out, /steps +loss\n1 /);

  // What was learned is replaced by nobody who was not told to.
  const learned = readFileSync(`${dir}/on/adapter_model.safetensors`);
  const merge = ["merge", bundle, "--adapter", `${dir}/on`, "-o", `${dir}/model`];
  const exported = ["export", bundle, "--adapter", `${dir}/notes`, "-o", `${dir}/on`];
  const again2 = () => onto("--out", `${dir}/fresh`, "--checkpoint", `${dir}/on.checkpoint`);
  for (const [run, says] of [
    [onto, /WEFT_IO at .*\/on: .*free, found an adapter .*--from .*\/on goes on .* --replace replaces it/],
    [() => weft(...merge), /WEFT_IO at .*\/model: .*found a model .*--replace/],
    [() => weft(...exported), /WEFT_IO at .*\/on: .*found an adapter .*--replace/],
    [again2, /on\.checkpoint: .*earlier run.*weft finetune --resume .*on\.checkpoint; --replace/],
  ] as const) {
    const { code, err } = await run();
    assert.is(code, 1);
    assert.match(err, says);
    assert.not.match(err, /step/);
  }
  assert.equal(readFileSync(`${dir}/on/adapter_model.safetensors`), learned);
  assert.not(existsSync(`${dir}/fresh`));
  // The same run with more steps; another one from it; and who says so.
  for (const run of [
    () => weft("finetune", "--resume", `${dir}/on.checkpoint`, "--steps", "3"),
    () => onto("--from", `${dir}/on`, "--steps", "1"),
    () => onto("--replace"),
    () => weft(...merge, "--replace", "--device", "wasm"),
    () => weft(...exported, "--replace", "--device", "wasm"),
  ]) {
    const { code, err } = await run();
    assert.is(code, 0, err);
  }
  const kept = `${dir}/on.checkpoint`;
  for (const version of readdirSync(kept).filter((name) => name.startsWith("v-")))
    assert.not.match(readFileSync(`${kept}/${version}/about.json`, "utf8"), /replace/);
});

test("a bad row, or rows that say nothing, are one error", async () => {
  await using engine = await load(await storyBundle(), { device: "wasm" });
  for (const data of [[{ input_ids: [5, 9999] }], [{ input_ids: [5, 6], labels: [-100, -100] }]])
    await evaluate(engine, data).then(
      () => assert.unreachable(),
      (e) => assert.match(e.code, /^WEFT_(DATA|OPTION)$/),
    );
  assert.not(engine.core.busy);
});
test.run();
