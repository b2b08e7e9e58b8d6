/**
 * weft pull against a server with the Hub's layout: what is taken, cut off and gone on from, checked,
 * refused.
 */
import { existsSync, readFileSync, statSync, writeFileSync } from "node:fs";
import * as assert from "uvu/assert";
import { weft } from "./support/console.ts";
import { configs } from "./support/engines.ts";
import { openHub } from "./support/hub.ts";
import { suite } from "./support/suite.ts";
import { scratch, writeModel } from "./support/tiny.ts";

const test = suite("pull");
const small = ["--target", "wasm", "--context", "64", "--tokens", "32", "--rank", "4"];

test("a model in one step: its files, resumed where cut off, hashes, behind a token", async () => {
  const model = writeModel(configs.even);
  writeFileSync(`${model}/README.md`, "not needed");
  writeFileSync(`${model}/pytorch_model.bin`, "not needed");
  const weights = readFileSync(`${model}/model.safetensors`);
  const hub = await openHub(model, { repo: "org/tiny", revision: "v1", token: "hf_secret" });
  process.env.HF_ENDPOINT = hub.url;
  const out = `${scratch()}/tiny.weft`;
  const pull = (repo: string) => weft("pull", repo, "-o", out, ...small, "--json");
  try {
    delete process.env.HF_TOKEN;
    const gated = await pull("org/tiny@v1");
    assert.is(gated.code, 1);
    assert.match(gated.out, /HF_TOKEN/);
    process.env.HF_TOKEN = "hf_secret";
    assert.match((await pull("org/none")).out, /"found":"404/);
    const part = `${out}.model/model.safetensors.part`;
    const arrived = (): number => statSync(part, { throwIfNoEntry: false })?.size ?? 0;
    hub.cut = 100_000;
    hub.arrived = () => arrived() >= 50_000;
    const cut = await pull("org/tiny@v1");
    assert.is(cut.code, 1, cut.out);
    assert.match(cut.out, /what is there is kept/);
    const kept = arrived();
    assert.ok(kept >= 50_000 && kept <= 100_000, `${kept} bytes are there`);
    assert.not(existsSync(out));
    hub.cut = 0;
    hub.sent = 0;
    const right = hub.oid;
    hub.oid = "0".repeat(64);
    assert.match((await pull("org/tiny@v1")).out, /sha-256/);
    assert.is(hub.sent, weights.length - kept, "only the rest was sent");
    assert.not(existsSync(part), "what is wrong is not gone on from");
    hub.oid = right;
    const made = await pull("org/tiny@v1");
    assert.is(made.code, 0, made.out);
    assert.is((JSON.parse(made.out) as { bundle: string }).bundle, out);
    assert.not(existsSync(`${out}.model`), "the model's files are gone");
    assert.not(
      hub.asked.some((p) => /README|bin$/.test(p)),
      String(hub.asked),
    );
    for (const repo of ["tiny", "org/tiny/more", "org/ti ny"])
      assert.match((await pull(repo)).out, /org\/model/);
    process.env.HF_ENDPOINT = "http://127.0.0.1:1";
    assert.match((await pull("org/tiny")).out, /"found":"fetch failed: \w+/);
  } finally {
    hub.close();
    delete process.env.HF_ENDPOINT;
    delete process.env.HF_TOKEN;
  }
});
test.run();
