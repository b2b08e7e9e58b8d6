/**
 * Time to the first token with prefixes kept and without, on the shape of SmolLM2-135M: two engines of one
 * bundle, turn by turn. A chat of ten turns, each asked with all that was said so far; and 32 requests that
 * begin with one system prompt, one after the other, and all at once. Means from the second turn, or the
 * second first token, on.
 *
 *   npm run -s bench -- chat [--repeats 3] [--threads 2] [--turns 10] [--requests 32]
 */
import { tmpdir } from "node:os";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { compile, type Engine, load } from "../sdk/index.ts";
import { ids, median, spread, table } from "./measure.ts";
import { randomModel, smol } from "./model.ts";

const AIM = 0.15;
/** Tokens of a question and of an answer in the chat. */
const [QUESTION, ANSWER] = [40, 60];
/** Tokens of the system prompt, of what each request asks, and of what it is told. */
const [SYSTEM, ASKED, TOLD] = [360, 24, 8];

interface Asked {
  /** Milliseconds. */
  readonly first: number;
  readonly cached: number;
  readonly ids: readonly number[];
}
async function ask(engine: Engine, prompt: readonly number[], maxTokens: number): Promise<Asked> {
  const t0 = performance.now();
  let first = 0;
  let cached = 0;
  const out: number[] = [];
  for await (const p of engine.generate({ prompt: [...prompt], maxTokens })) {
    first ||= performance.now() - t0;
    cached = p.cached;
    out.push(p.id);
  }
  return { first, cached, ids: out };
}
/** As many turns, or requests. */
type Way = (engine: Engine, seed: number, n: number) => Promise<readonly Asked[]>;
const vocab = smol.vocab_size;
const chat: Way = async (engine, seed, n) => {
  const said: number[] = [];
  const turns: Asked[] = [];
  for (let turn = 0; turn < n; turn++) {
    said.push(...ids(QUESTION, seed * 100 + turn, vocab));
    turns.push(await ask(engine, said, ANSWER));
    said.push(...turns[turn]!.ids);
  }
  return turns;
};
const requests = (seed: number, n: number): number[][] =>
  Array.from({ length: n }, (_, i) => [
    ...ids(SYSTEM, seed * 100, vocab),
    ...ids(ASKED, seed * 100 + 1 + i, vocab),
  ]);
const inTurn: Way = async (engine, seed, n) => {
  const out: Asked[] = [];
  for (const prompt of requests(seed, n)) out.push(await ask(engine, prompt, TOLD));
  return out;
};
const together: Way = async (engine, seed, n) => {
  const out = await Promise.all(requests(seed, n).map((prompt) => ask(engine, prompt, TOLD)));
  return out.sort((a, b) => a.first - b.first);
};

export async function main(args: string[]): Promise<void> {
  const { values } = parseArgs({
    args,
    options: {
      repeats: { type: "string", default: "3" },
      threads: { type: "string", default: "2" },
      turns: { type: "string", default: "10" },
      requests: { type: "string", default: "32" },
    },
  });
  const [turns, count] = [Number(values.turns), Number(values.requests)];
  const bundle = join(tmpdir(), "weft-bench-smol-chat.weft");
  console.log("compiling …");
  await compile(randomModel(smol), bundle, {
    targets: ["wasm"],
    train: [],
    capacities: { context: 1024, sequences: 32, blocks: 416, slots: 1, jobs: 1 },
  });
  const open = (prefixCache: boolean): Promise<Engine> =>
    load(bundle, { device: "wasm", threads: Number(values.threads), prefixCache });
  const engines = [await open(false), await open(true)] as const;
  for (const engine of engines) await ask(engine, ids(64, 7, vocab), 4);
  const ways: Readonly<Record<string, readonly [Way, number]>> = {
    [`${count} requests, one after the other`]: [inTurn, count],
    [`${count} requests at once`]: [together, count],
    [`chat, ${turns} turns`]: [chat, turns],
  };
  const rows = [["", "without ms", "with ms", "ratio", "the last", "cached"]];
  const results: Record<string, unknown>[] = [];
  for (const [name, [way, n]] of Object.entries(ways)) {
    const [without, withIt, ratios, lasts] = [[], [], [], []] as number[][];
    let cached = "";
    for (let turn = 0; turn < Number(values.repeats); turn++) {
      process.stderr.write(`${name}, turn ${turn + 1} of ${values.repeats}\r`);
      const both: (readonly Asked[])[] = [];
      for (const which of turn % 2 ? [1, 0] : [0, 1]) both[which] = await way(engines[which]!, turn + 1, n);
      const [off, on] = both.map((list) => list.slice(1)) as [Asked[], Asked[]];
      if (way !== together && JSON.stringify(off.map((a) => a.ids)) !== JSON.stringify(on.map((a) => a.ids)))
        throw new Error(`${name}: other tokens with prefixes than without`);
      const mean = (list: readonly Asked[]): number => list.reduce((n, a) => n + a.first, 0) / list.length;
      without!.push(mean(off));
      withIt!.push(mean(on));
      ratios!.push(mean(on) / mean(off));
      lasts!.push(on.at(-1)!.first / off.at(-1)!.first);
      cached = `${on[0]!.cached}–${on.at(-1)!.cached}`;
    }
    process.stderr.write(`${name}: ${spread(ratios!, 3)} × without\n`);
    rows.push([name, spread(without!), spread(withIt!), spread(ratios!, 3), spread(lasts!, 3), cached]);
    results.push({
      ...{ way: name, without: median(without!), with: median(withIt!), ratio: median(ratios!) },
      last: median(lasts!),
    });
  }
  for (const engine of engines) await engine.dispose();
  console.log(
    `mean time to the first token, from the second on; questions of ${QUESTION} tokens, answers of ` +
      `${ANSWER}; a system prompt of ${SYSTEM} and ${ASKED} of each request's own`,
  );
  table(rows);
  const ok = results.every((r) => Number(r.ratio) <= AIM);
  console.log(`the aim, at most ${AIM} × without: ${ok ? "reached" : "NOT reached"}`);
  console.log(JSON.stringify({ bench: "chat", ok, aim: AIM, results }));
}
