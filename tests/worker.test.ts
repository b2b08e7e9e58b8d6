/**
 * An engine in a thread of its own: what it says, learns and refuses is what `Engine` does, bit for bit and
 * field by field.
 */
import * as assert from "uvu/assert";
import { type GenerateOptions, load, type Piece } from "../sdk/index.ts";
import { createWorkerEngine } from "../sdk/worker/index.ts";
import { storyBundle } from "./support/story.ts";
import { suite } from "./support/suite.ts";
import { fromSources } from "./support/worker.ts";

const test = suite("worker");
const wasm = { device: "wasm", threads: 1 } as const;

const all = async (stream: AsyncIterable<Piece>): Promise<Piece[]> => {
  const out: Piece[] = [];
  for await (const p of stream) out.push(p);
  return out;
};
const ways: readonly GenerateOptions[] = [
  { prompt: "Once upon a time", maxTokens: 24 },
  { prompt: "Once", maxTokens: 40, temperature: 1, seed: 7, logprobs: 3 },
  { prompt: "Once", maxTokens: 30, stop: ["the e", ". "], temperature: 1, seed: 11, presencePenalty: 1 },
];

test("what it says is what the engine says: greedy, drawn, with stop texts and log-probabilities", async () => {
  const folder = await storyBundle();
  await using alone = await load(folder, wasm);
  await using there = await createWorkerEngine(folder, { ...wasm, worker: fromSources });
  assert.equal(there.manifest, alone.manifest);
  assert.equal(there.device, alone.device);
  assert.is(there.base, alone.base);
  for (const o of ways) {
    const want = await all(alone.generate(o));
    assert.equal(await all(there.generate(o)), want);
    assert.equal(await there.complete(o), await alone.complete(o));
  }
  assert.equal(await there.encode("Once upon"), alone.encode("Once upon"));
  const ids = alone.encode("Once upon");
  assert.is(await there.decode(ids), alone.decode(ids));
  assert.equal(await there.score("Once upon a time"), await alone.score("Once upon a time"));
  const messages = [{ role: "user", content: "Where does Mia live?" }];
  assert.equal(await there.promptIds({ messages }), alone.promptIds({ messages }));
});
test.run();
