/**
 * An engine that survives: whatever ends under it, answers go on with the same tokens, jobs end with the same
 * bits, adapters are what they were, and three losses are one error.
 */
import * as assert from "uvu/assert";
import { Reports } from "../runtime/report.ts";
import {
  type Engine,
  type GenerateOptions,
  type LoadOptions,
  load,
  type Piece,
  WeftError,
} from "../sdk/index.ts";
import { ReplayEngine } from "../sdk/replay/engine.ts";
import { Local } from "../sdk/replay/local.ts";
import type { RecoverEvent, ReplayOptions } from "../sdk/replay/options.ts";
import { batchOf, bundle, configs, contentBits } from "./support/engines.ts";
import { storyBundle } from "./support/story.ts";
import { suite } from "./support/suite.ts";

const test = suite("replay");

/** An engine that survives, and those that it has had. */
interface Surviving {
  readonly engine: ReplayEngine;
  readonly engines: Engine[];
  readonly events: RecoverEvent[];
  /** The engine that computes now ends. */
  readonly kill: () => void;
}
async function surviving(location: string, o: LoadOptions, replay: ReplayOptions = {}): Promise<Surviving> {
  const engines: Engine[] = [];
  const events: RecoverEvent[] = [];
  const open = async (): Promise<Local> => {
    const engine = await load(location, o);
    engines.push(engine);
    return new Local(engine);
  };
  const reports = new Reports((e) => {
    throw e;
  });
  const onRecover = (e: RecoverEvent): void => void events.push(e);
  const engine = await ReplayEngine.open(open, { ...replay, onRecover }, reports);
  const kill = (): void =>
    engines
      .at(-1)!
      .core.fail(
        new WeftError({ code: "WEFT_DEVICE_LOST", where: "test", expected: "a device", found: "none" }),
      );
  return { engine, engines, events, kill };
}
const wasm = { device: "wasm", threads: 1 } as const;
const forever = { losses: 1000, checkpoint: 0.001 } as const;
const all = async (stream: AsyncIterable<Piece>): Promise<Piece[]> => {
  const out: Piece[] = [];
  for await (const p of stream) out.push(p);
  return out;
};
/** Ways to ask, each with something that a continuation may lose. */
const ways: readonly GenerateOptions[] = [
  { prompt: "Once upon a time", maxTokens: 24 },
  { prompt: "Once", maxTokens: 24, temperature: 1, seed: 7, logprobs: 3 },
  { prompt: "Question: Where", maxTokens: 24, temperature: 1.3, topP: 0.95, seed: 5 },
  {
    ...{ prompt: "Once", maxTokens: 30, temperature: 0.8, seed: 3 },
    ...{ presencePenalty: 1.5, frequencyPenalty: 0.7, repetitionPenalty: 1.2, logitBias: { 60: 2 } },
  },
  { prompt: "Once", maxTokens: 24, stop: ["the e", ". "], temperature: 1, seed: 11 },
  { prompt: "Once", maxTokens: 4000, temperature: 1, seed: 2 },
];

test("an answer that stopped anywhere goes on as if it had not: text, draws, penalties, limits", async () => {
  await using engine = await load(await storyBundle(), wasm);
  for (const o of ways) {
    const whole = await all(engine.generate(o));
    assert.ok(whole.length > 3);
    for (let n = 1; n < whole.length; n += 3) {
      const rest = await all(engine.generate({ ...o, said: whole.slice(0, n).map((p) => p.id) }));
      const told = (p: Piece): object => ({ ...p, cached: 0 });
      assert.equal(rest.map(told), whole.slice(n).map(told), `${JSON.stringify(o)} after ${n}`);
    }
  }
});

test("an engine lost at every token: the same pieces, and a pause", async () => {
  const folder = await storyBundle();
  await using alone = await load(folder, wasm);
  const { engine, events, kill } = await surviving(folder, wasm, { recover: forever });
  for (const o of ways) {
    const want = await all(alone.generate(o));
    const got: Piece[] = [];
    for await (const p of engine.generate(o)) {
      got.push(p);
      if (got.length % 7 === 1) kill();
    }
    assert.equal(got, want);
  }
  assert.is(
    events.filter((e) => e.type === "lost").length,
    events.filter((e) => e.type === "recovered").length,
  );
  await engine.dispose();
});

test("a job lost again and again ends with the same bits, and tells each step once", async () => {
  const folder = await bundle(configs.even);
  const o = { name: "j", data: batchOf(128), steps: 9, batchSize: 2, publishEvery: 4, rank: 4 } as const;
  await using alone = await load(folder, wasm);
  const one: string[] = [];
  const want = await (await alone.finetune({ ...o, onEvent: (e) => one.push(shown(e)) })).done;
  const { engine, engines, kill } = await surviving(folder, wasm, { recover: forever });
  const told: string[] = [];
  const job = await engine.finetune({
    ...o,
    onEvent: (e) => {
      told.push(shown(e));
      if (e.type === "publish" || (e.type === "step" && e.step % 3 === 2)) queueMicrotask(kill);
    },
  });
  const got = await job.done;
  assert.equal(got, want);
  assert.equal(told, one);
  assert.ok(engines.length > 4);
  for (const ref of ["j@1", "j@2", "j@3"])
    assert.is(contentBits(engines.at(-1)!, ref), contentBits(alone, ref));
  await engine.dispose();
});
const shown = (e: object): string => JSON.stringify({ ...e, tokensPerSecond: 0 });

test.run();
