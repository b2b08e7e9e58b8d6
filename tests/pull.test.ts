/**
 * weft pull against a server with the Hub's layout: what is taken, cut off and gone on from, checked,
 * refused.
 */
import { createHash } from "node:crypto";
import { existsSync, readdirSync, readFileSync, statSync, writeFileSync } from "node:fs";
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import * as assert from "uvu/assert";
import { weft } from "./support/console.ts";
import { configs } from "./support/engines.ts";
import { suite } from "./support/suite.ts";
import { scratch, writeModel } from "./support/tiny.ts";

const test = suite("pull");
const small = ["--target", "wasm", "--context", "64", "--tokens", "32", "--rank", "4"];

test("a model in one step: only its files, resumed where it was cut off, checked by hash, behind a token", async () => {
  const model = writeModel(configs.even);
  writeFileSync(`${model}/README.md`, "not needed");
  writeFileSync(`${model}/pytorch_model.bin`, "not needed");
  const weights = readFileSync(`${model}/model.safetensors`);
  const hub = {
    cut: 0,
    sent: 0,
    oid: createHash("sha256").update(weights).digest("hex"),
    asked: [] as string[],
  };
  const server = createServer((req, res) => {
    const url = new URL(req.url!, "http://hub");
    if (req.headers.authorization !== "Bearer hf_secret") return void res.writeHead(401).end("{}");
    if (url.pathname === "/api/models/org/tiny/tree/v1") {
      const list = readdirSync(model).map((path) => {
        const { size } = statSync(`${model}/${path}`);
        const lfs = path.endsWith(".safetensors") && { lfs: { oid: hub.oid, size, pointerSize: 130 } };
        return { type: "file", path, size, oid: "0".repeat(40), ...lfs };
      });
      return void res.writeHead(200, { "content-type": "application/json" }).end(JSON.stringify(list));
    }
    const path = /^\/org\/tiny\/resolve\/v1\/([\w.]+)$/.exec(url.pathname)?.[1];
    if (!path || !existsSync(`${model}/${path}`))
      return void res.writeHead(404, { "content-type": "application/json" }).end('{"error":"none"}');
    hub.asked.push(path);
    const all = readFileSync(`${model}/${path}`);
    const [, from, to] = /^bytes=(\d+)-(\d*)$/.exec(req.headers.range ?? "") ?? [];
    const part = from === undefined ? all : all.subarray(Number(from), to ? Number(to) + 1 : all.length);
    const range = from !== undefined && {
      "content-range": `bytes ${from}-${Number(from) + part.length - 1}/${all.length}`,
    };
    res.writeHead(from === undefined ? 200 : 206, {
      ...{ "content-length": part.length, etag: '"x"', "accept-ranges": "bytes", ...range },
    });
    if (req.method === "HEAD") return void res.end();
    if (hub.cut && part.length > hub.cut) {
      res.write(part.subarray(0, hub.cut), () => setTimeout(() => res.destroy(), 20));
      return;
    }
    if (part.length > 1000) hub.sent += part.length;
    res.end(part);
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  process.env.HF_ENDPOINT = `http://127.0.0.1:${(server.address() as AddressInfo).port}/`;
  const out = `${scratch()}/tiny.weft`;
  const pull = (repo: string) => weft("pull", repo, "-o", out, ...small, "--json");
  try {
    delete process.env.HF_TOKEN;
    const gated = await pull("org/tiny@v1");
    assert.is(gated.code, 1);
    assert.match(gated.out, /HF_TOKEN/);
    process.env.HF_TOKEN = "hf_secret";
    assert.match((await pull("org/none")).out, /"found":"404/);
    hub.cut = 100_000;
    const cut = await pull("org/tiny@v1");
    assert.is(cut.code, 1, cut.out);
    assert.match(cut.out, /what is there is kept/);
    const kept = statSync(`${out}.model/model.safetensors.part`).size;
    assert.ok(kept >= 50_000 && kept <= 100_000, `${kept} bytes are there`);
    assert.not(existsSync(out));
    hub.cut = 0;
    hub.sent = 0;
    const right = hub.oid;
    hub.oid = "0".repeat(64);
    assert.match((await pull("org/tiny@v1")).out, /sha-256/);
    assert.is(hub.sent, weights.length - kept, "only the rest was sent");
    assert.not(existsSync(`${out}.model/model.safetensors.part`), "what is wrong is not gone on from");
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
  } finally {
    server.close();
    server.closeAllConnections();
    delete process.env.HF_ENDPOINT;
    delete process.env.HF_TOKEN;
  }
});
test.run();
