/**
 * What inspect says of a load is what a load takes: every memory that WebAssembly is asked for is counted.
 */
import { readFileSync } from "node:fs";
import * as assert from "uvu/assert";
import { asManifest } from "../runtime/load.ts";
import { webGpuLimits } from "../runtime/webgpu.ts";
import { partsIn, roomOf } from "../sdk/commands/inspect.ts";
import { load } from "../sdk/index.ts";
import { weft } from "./support/console.ts";
import { bundle, configs } from "./support/engines.ts";
import { suite } from "./support/suite.ts";

const test = suite("inspect");
test("bytes of a load by purpose, within 15 % of what is allocated, for little and much", async () => {
  const dir = await bundle(configs.even, { train: ["lora", "s2ft"] });
  for (const memory of [undefined, "3MB", "40MB"]) {
    const how = memory === undefined ? [] : ["--for", memory];
    const said = JSON.parse((await weft("inspect", dir, ...how, "--json")).out) as {
      loads: { wasm: { total: number; bytes: Record<string, number> } };
    };
    const { total, bytes } = said.loads.wasm;
    const made: WebAssembly.Memory[] = [];
    const { Memory } = WebAssembly;
    WebAssembly.Memory = class extends Memory {
      constructor(d: WebAssembly.MemoryDescriptor) {
        super(d);
        made.push(this);
      }
    } as typeof Memory;
    try {
      const o = memory === undefined ? {} : { memory };
      await using engine = await load(dir, { device: "wasm", threads: 1, ...o });
      const host = engine.core.host.exports.memory.buffer.byteLength;
      const measured = made.reduce((n, m) => n + m.buffer.byteLength, 0) + host;
      assert.ok(measured > host, "the device's is seen");
      assert.ok(Math.abs(total / measured - 1) < 0.15, `${total} said, ${measured} allocated`);
      const sum = Object.values(bytes).reduce((a, b) => a + b, 0);
      assert.is(sum, total);
      for (const [purpose, n] of Object.entries(engine.memory().bytes))
        assert.ok(
          Math.abs(bytes[purpose]! - n) <= 0.15 * n + 65536,
          `${purpose}: ${bytes[purpose]} said, ${n} there`,
        );
    } finally {
      WebAssembly.Memory = Memory;
    }
    const shown = await weft("inspect", dir, ...how);
    // First what a user asks; then what the compiler made of it.
    const [first, second] = shown.out.split("\n\n") as [string, string];
    for (const line of [
      /^bundle +\/.*\nmodel +llama, [\d,]+ parameters in f32\non disk +[\d.]+ [kM]B\n/,
      /\na load takes +[\d.]+ MB on wasm: .*weights .*\n +with room for \d+ requests.* adapters?, .* jobs? /,
      /\nruns on +wasm\nadapters +lora, .*; of rank up to \d+\ntrains +lora, s2ft\nspeaks +token ids alone/,
      /\ncontext +\d+ tokens$/,
    ])
      assert.match(first, line);
    assert.match(second, /layers × .*capacities/s);
    const checkup = await weft("doctor", dir, ...how);
    assert.match(checkup.out, /^Node +v.*\nCPU +has SIMD.*\nGPU .*a load on wasm +takes [\d.]+ MB: /s);
    assert.not.match(
      checkup.out + shown.out.replace(/"?s2ft .*/, ""),
      /[{}]|\b[KMG]iB\b/,
      "neither JSON nor other units",
    );
  }
});

test("in how many shards a device plays what has a row for each token", async () => {
  const config = { ...configs.even, num_hidden_layers: 1, vocab_size: 10_000 };
  const options = { targets: ["webgpu"], train: [], methods: [], capacities: { headRows: 4 } } as const;
  const dir = await bundle(config, options);
  const m = asManifest(JSON.parse(readFileSync(`${dir}/manifest.json`, "utf8")), dir);
  // 79 blocks of 128 rows, 32,768 bytes each: 32 fit a mebibyte.
  const room = roomOf(m, "webgpu", {}, { ...webGpuLimits, chamber: 2 ** 20 });
  assert.equal(room.shards, { "embed_tokens.weight": 3 });
  assert.equal(partsIn(room), ["in shards, for bindings of 1.0 MB: embed_tokens in 3"]);
  assert.match((await weft("inspect", dir)).out, /in shards, for bindings of 134.\d MB: embed_tokens in 1$/m);
});
test.run();
