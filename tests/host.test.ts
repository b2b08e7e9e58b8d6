/**
 * The host alone: who comes in, whose turn it is, and that nobody starves. Bounds are in steps and in work
 * done, never in time. One file: the laws of one scheduler.
 */
import * as assert from "uvu/assert";
import { type Ask, Played, type PlayedJob, pagesOf } from "./support/hosts.ts";
import { generator } from "./support/random.ts";
import { rounds } from "./support/scale.ts";
import { suite } from "./support/suite.ts";

const test = suite("host");
/** Clients that ask again as soon as they are answered. */
function clients(p: Played, n: number, of: (i: number) => Parameters<Played["ask"]>[0]): () => void {
  const asks: (Ask | null)[] = Array<null>(n).fill(null);
  return () => {
    for (let i = 0; i < n; i++) if (!asks[i] || asks[i]!.ended >= 0) asks[i] = p.ask(of(i));
  };
}
/** Steps until `done`. */
function until(p: Played, done: () => boolean, most: number, each: () => void = () => {}): number {
  for (let i = 0; ; i++) {
    each();
    if (done()) return i;
    assert.ok(i < most, `not done in ${most} steps`);
    p.step();
  }
}

const tight = {
  ...{ blocks: 8, sequences: 5, slots: 2, headRows: 3, tokens: 9, context: 96, unitRows: 64 },
  ...{ savedRows: 96, keptRows: 64, jobs: 2, units: 3 },
} as const;
/** Sums of adapters, and fewer pages than slots could take. */
const summed = { sequences: 10, slots: 7, pages: 17, jobs: 2, headRows: 6, tokens: 24 } as const;
const loose = { sequences: 12, slots: 4, headRows: 8, tokens: 40 } as const;

/**
 * Random arrivals, ends, jobs and evaluations. Whatever runs takes a row in every so many steps, and whatever
 * waits starts once those before it, each with the longest life there is, are over.
 */
async function storm(name: string, sizes: Parameters<typeof Played.open>[0], lanes: number, steps: number) {
  const p = await Played.open(sizes, { lanes, queued: 24, budget: 7 });
  const { sequences, headRows, jobs, context, blocks } = p.manifest.capacities;
  const next = generator(name);
  const below = (n: number): number => next() % n;
  const longest = Math.min(context, blocks * 32) / 2;
  // Turns of decoding, by logits rows of which a part are others', and a few steps that are theirs alone.
  const gap = 4 * Math.ceil(sequences / Math.max(1, headRows - Math.ceil(headRows / 4))) + 8;
  // A sequence computes its tokens one by one at worst, between those of all others.
  const life = longest * gap * 4;
  const counts = {
    asks: 0,
    refused: 0,
    dropped: 0,
    jobs: 0,
    jobSteps: 0,
    wait: 0,
    gap: 0,
    published: 0,
    sums: 0,
  };
  // Adapters by what they are called, each with its latest generation; and how prompts begin.
  const latest = Array.from({ length: 9 }, (_, name) => name);
  const beginnings = Array.from({ length: 3 }, () => Array.from({ length: longest }, () => below(64)));
  const publish = (): void => {
    const name = 1 + below(8);
    // Who has asked for the one before finishes on it.
    p.forget(latest[name]!);
    latest[name]! += 9;
    counts.published++;
  };
  /** Of a few sums, those that may be asked for here; each has a number of its own. */
  const sums = new Map<string, number>();
  const sumOf = (i: number): { adapter: number; parts: number[] } | null => {
    const parts = [latest[1 + (i % 4)]!, latest[5 + (i % 3)]!];
    const asked = [...p.waiting.values(), ...p.live.values(), ...p.preempted].filter((a) => a.parts.length);
    const pages = parts.reduce((n, a) => n + pagesOf(a), 0);
    if (asked.length >= 30 || !p.host.exports.sumFits(2, pages)) return null;
    const key = parts.join();
    if (!sums.has(key)) sums.set(key, 1_000_000 + sums.size);
    return { adapter: sums.get(key)!, parts };
  };
  const look = (ask: Ask): void => {
    if (ask.started < 0) {
      const wait = p.steps[0]! - ask.asked;
      counts.wait = Math.max(counts.wait, wait);
      assert.ok(wait <= (ask.ahead + jobs + 1) * life, `waits for ${wait} steps behind ${ask.ahead}`);
    } else if (ask.kind === "generate" && ask.done >= ask.length && !ask.paused) {
      counts.gap = Math.max(counts.gap, p.steps[0]! - ask.last);
      assert.ok(p.steps[0]! - ask.last <= gap, `no row for ${p.steps[0]! - ask.last} steps`);
    }
  };
  const arrive = (): void => {
    for (let n = below(4); n > 0; n--) {
      const kind = below(5) ? "generate" : "score";
      // Every other one begins as one of few do.
      const prefix = below(2) ? beginnings[below(3)]!.slice(0, below(longest)) : [];
      const length = prefix.length + 1 + below(Math.min(longest - prefix.length, below(4) ? 6 : longest));
      const grows = kind === "score" ? 0 : 1 + below(longest - 1);
      const adapter = latest[below(2) ? below(9) : 0]!;
      const sum = below(3) ? null : sumOf(below(30));
      const made = p.ask({
        ...{ kind, length, grows, adapter, salt: below(4) ? 0 : below(3), prefix },
        ...sum,
      });
      if (made && sum) counts.sums++;
      counts[made ? "asks" : "refused"]++;
    }
    if (below(40) === 0) publish();
    const running = [...p.live.values()].filter((a) => a.kind === "generate" && a.ended < 0);
    const readers = [...running, ...p.waiting.values(), ...p.preempted].filter((a) => a.kind === "generate");
    if (readers.length && below(2)) {
      const ask = readers[below(readers.length)]!;
      p.pause(ask, !ask.paused && below(3) > 0);
    }
    if (below(6) === 0) {
      const all = [...p.waiting.values(), ...p.live.values(), ...p.preempted].filter(
        (a) => !a.job && a.ended < 0,
      );
      if (all.length) {
        p.drop(all[below(all.length)]!);
        counts.dropped++;
      }
    }
  };
  const jobsChange = (): void => {
    for (let j = 0; j < jobs; j++) {
      const job = p.jobs.get(j);
      if (!job && below(20) === 0) {
        const rows = Array.from({ length: 1 + below(5) }, () => 1 + below(longest - 1));
        const evaluates = below(2) ? [] : Array.from({ length: 1 + below(3) }, () => 1 + below(longest - 1));
        p.startJob(j, rows, { evaluates, most: 1 + below(rows.length), keep: below(2) === 0 });
        counts.jobs++;
      } else if (job && below(300) === 0) {
        counts.jobSteps += job.steps;
        p.endJob(job);
      }
    }
  };
  for (let i = 0; i < steps; i++) {
    arrive();
    jobsChange();
    if (lanes === 1) p.step();
    else {
      // Lists of two lanes overlap in any order, and requests end under them.
      const first = below(2);
      const began = [first, 1 - first].filter((lane) => p.begin(lane));
      if (below(2)) arrive();
      if (below(2)) began.reverse();
      for (const lane of began) p.end(lane);
    }
    if (i % 8 === 0) {
      p.checkWhole();
      for (const ask of [...p.waiting.values(), ...p.live.values()]) look(ask);
      for (const job of p.jobs.values())
        assert.ok(
          p.steps[lanes - 1]! - job.told <= life * (job.rows.length + job.evaluates.length + 3),
          "a job stands still",
        );
    }
  }
  p.drain((24 + sequences) * life);
  assert.ok(p.found > 0 && p.evicted > 0, `${p.found} tokens found, ${p.evicted} blocks evicted`);
  assert.ok(p.gaveWay > 0, "nobody who was paused gave way");
  assert.ok(
    counts.asks > steps / 50 && counts.refused && counts.dropped && counts.jobSteps,
    JSON.stringify(counts),
  );
  return counts;
}
test("100,000 random steps: held and free are all there is, nobody starves, all ends", async () => {
  const n = rounds(26_000, 1_000_000);
  await storm("tight", tight, 1, n);
  await storm("tight, two lanes", tight, 2, n);
  await storm("loose", loose, 1, n);
  await storm("loose, two lanes", loose, 2, n);
  await storm("sums", summed, 1, n);
  await storm("sums, two lanes", summed, 2, n);
});

/** Two equal jobs, side by side until the first has done `steps`. */
async function pair(rows: readonly number[], lanes: number, o: { evaluates?: number[] } = {}) {
  const p = await Played.open({}, { lanes });
  const [a, b] = [0, 1].map((j) => p.startJob(j, rows, o)) as [PlayedJob, PlayedJob];
  until(p, () => Math.max(a.steps, b.steps) >= 30, 100_000);
  return [a.steps, b.steps] as const;
}
test("two equal jobs are never a fifth apart, also where one alone fills the saved rows", async () => {
  for (const lanes of [1, 2])
    for (const rows of [Array(8).fill(40), Array(4).fill(80), [128, 128], Array(8).fill(16)]) {
      const [a, b] = await pair(rows, lanes);
      assert.ok(Math.min(a, b) >= 0.8 * Math.max(a, b), `${rows}: ${a} and ${b} steps`);
    }
});

test("turns are by cost: a job of short steps has as much of the device as one of long", async () => {
  const p = await Played.open();
  const [long, short] = [p.startJob(0, Array(8).fill(40)), p.startJob(1, [40])];
  until(p, () => long.steps >= 20, 100_000);
  const [a, b] = p.work.jobs as [number, number];
  assert.ok(
    Math.min(a, b) >= 0.8 * Math.max(a, b),
    `${a} and ${b}, in ${long.steps} and ${short.steps} steps`,
  );
});

test("a hundred clients leave each job a twentieth of its speed, whatever is scarce", async () => {
  for (const [sizes, budget] of [
    [{}, 21],
    // More rows decode than a step is meant to have.
    [{}, 4],
    [{ blocks: 16 }, 21],
    [{ sequences: 8, headRows: 4 }, 21],
    [{ tokens: 8, sequences: 32 }, 21],
  ] as const)
    for (const jobs of [1, 2]) {
      const p = await Played.open(sizes, { queued: 128, budget });
      const running = Array.from({ length: jobs }, (_, j) => p.startJob(j, [100]));
      until(p, () => running.every((j) => j.steps >= 3), 10_000);
      // What a step of a job costs, alone; all of the work is the jobs'.
      const cost = p.work.jobs[0]! / running[0]!.steps;
      const more = clients(p, 100, () => ({ length: 12, grows: 28 }));
      const before = {
        ...p.work,
        steps: running.map((j) => j.steps),
        all: p.work.jobs.reduce((x, y) => x + y, 0),
      };
      for (let i = 0; i < 6000; i++) {
        more();
        p.step();
      }
      const all = p.work.requests - before.requests + p.work.jobs.reduce((x, y) => x + y, 0) - before.all;
      running.forEach((j, i) => {
        const speed = ((j.steps - before.steps[i]!) * cost) / all;
        assert.ok(speed >= 0.05, `${JSON.stringify(sizes)}, ${jobs} jobs: ${(100 * speed).toFixed(1)} %`);
      });
    }
});

test("a step with requests takes the time that is wanted, whatever rows cost on the device", async () => {
  for (const { name, bare, row, free = 0, least, most } of [
    { name: "rows cost little", bare: 3000, row: 100, least: 0.8, most: 1.15 },
    { name: "rows cost much", bare: 8000, row: 1500, least: 0.8, most: 1.15 },
    { name: "some rows are free", bare: 12_000, row: 900, free: 20, least: 0.8, most: 1.15 },
    // Half as long again as decoding alone.
    { name: "decoding is slow", bare: 60_000, row: 2000, least: 3, most: 4 },
    // No step is as long as it might be.
    { name: "all is fast", bare: 500, row: 10, least: 0.05, most: 0.2 },
  ]) {
    const takes = (decoding: number, others: number): number =>
      (decoding ? bare : bare / 2) + row * Math.max(0, others - free);
    const sizes = { tokens: 256, sequences: 16, headRows: 8, context: 96, blocks: 64 };
    const p = await Played.open(sizes, { pace: { want: 25_000, takes } });
    p.startJob(0, Array(8).fill(40));
    const more = clients(p, 6, (i) => ({ length: 20 + 7 * i, grows: 13 + 5 * i }));
    for (let i = 0; i < 600; i++) {
      more();
      p.step();
    }
    // A unit may be longer than what is left: the mean is what is wanted.
    const last = p.timed.slice(-200);
    const mean = last.reduce((a, b) => a + b, 0) / last.length / 25_000;
    assert.is(last.length, 200, name);
    assert.ok(mean >= least && mean <= most, `${name}: ${mean.toFixed(2)} of the time that is wanted`);
  }
});

test("a request of most of the cache starts between micro-batches, and what follows", async () => {
  for (const lanes of [1, 2]) {
    const p = await Played.open({ context: 96, blocks: 4 }, { lanes });
    const jobs = [0, 1].map((j) => p.startJob(j, Array(4).fill(60), { most: 1 }));
    until(p, () => jobs.every((j) => j.steps > 1), 10_000);
    const steps = jobs.map((j) => j.steps);
    const big = p.ask({ length: 88, grows: 4 })!;
    const behind = p.ask({ length: 20, grows: 4 })!;
    until(p, () => behind.ended >= 0 && big.ended >= 0, 2000);
    jobs.forEach((j, i) =>
      assert.ok(j.steps - steps[i]! <= 8, `job ${i} did ${j.steps - steps[i]!} steps meanwhile`),
    );
  }
});

test("the base answers behind adapters that wait for slots as it does without them", async () => {
  const first = async (adapters: number): Promise<number> => {
    const p = await Played.open({ slots: 4, headRows: 16 });
    const jobs = [0, 1].map((j) => p.startJob(j, Array(4).fill(60)));
    const more = clients(p, adapters, (i) => ({ length: 5, grows: 100, adapter: 1 + i }));
    until(p, () => jobs.every((j) => j.steps > 0), 10_000, more);
    const ask = p.ask({ length: 5, grows: 1 })!;
    return until(p, () => ask.ended >= 0, 10_000, more);
  };
  const [alone, behind] = [await first(2), await first(7)];
  assert.ok(behind <= 3 * alone, `${behind} steps, ${alone} without`);
});

test("an adapter without a slot is overtaken so often, no more; a job's slot is drained", async () => {
  const p = await Played.open({ slots: 2 });
  // Two adapters whose clients never let their slots rest.
  const more = clients(p, 8, (i) => ({ length: 4, grows: 20 + i, adapter: 1 + (i % 2) }));
  until(p, () => p.steps[0]! > 200, 1000, more);
  // Who gives up while a slot is drained for it leaves the slot to those that had it.
  for (let k = 1; k < 60; k++) {
    const gives = p.ask({ length: 4, grows: 4, adapter: 3 })!;
    for (let i = 0; i < k; i++) {
      more();
      p.step();
    }
    if (gives.ended < 0) p.drop(gives);
    const asks = [1, 2].map((adapter) => p.ask({ length: 4, grows: 4, adapter })!);
    until(p, () => asks.every((a) => a.ended >= 0), 200, more);
  }
  const third = p.ask({ length: 4, grows: 4, adapter: 3 })!;
  const waited = until(p, () => third.started >= 0, 10_000, more);
  assert.ok(waited <= 16 * 4 + 40, `${waited} steps`);
  const job = p.startJob(0, [20]);
  assert.ok(until(p, () => job.steps > 0, 10_000, more) <= 120);
  // The one slot that is left serves both adapters in turn.
  const served = new Set<number>();
  until(
    p,
    () => served.size === 2,
    2000,
    () => {
      more();
      for (const a of p.live.values()) served.add(a.adapter);
    },
  );
});

test("adapters share slots by batches: many of them leave most of the table in use", async () => {
  const mean = async (adapters: number): Promise<number> => {
    const p = await Played.open({ slots: 4, sequences: 16, headRows: 16, blocks: 128 }, { queued: 400 });
    const asks = Array.from(
      { length: 400 },
      (_, i) => p.ask({ length: 20, grows: 40, adapter: 1 + (i % adapters) })!,
    );
    let live = 0;
    const steps = until(
      p,
      () => asks.every((a) => a.ended >= 0),
      100_000,
      () => {
        live += p.live.size;
      },
    );
    return live / steps;
  };
  const one = await mean(1);
  for (const adapters of [4, 8, 32])
    assert.ok(
      (await mean(adapters)) >= 0.75 * one,
      `${adapters} adapters: ${await mean(adapters)} of ${one}`,
    );
});

test("logits rows are shared: scores, evaluations, streams go on, with fewer rows", async () => {
  const p = await Played.open({ sequences: 40, blocks: 256, headRows: 12 });
  const more = clients(p, 30, () => ({ length: 3, grows: 60 }));
  until(p, () => p.live.size === 30, 100, more);
  const score = p.ask({ kind: "score", length: 100 })!;
  // A quarter of the rows: three a step.
  assert.ok(until(p, () => score.ended >= 0, 10_000, more) <= 100 / 3 + 10);
  const job = p.startJob(0, [32], { evaluates: Array(8).fill(60) });
  assert.ok(until(p, () => job.steps >= 2, 10_000, more) <= 2 * (8 * 20 + 100));
  // Every stream has its next token every few steps.
  for (let i = 0; i < 200; i++) {
    more();
    p.step();
    for (const a of p.live.values()) assert.ok(p.steps[0]! - a.last <= 12, "a stream stands still");
  }
});

test("a request that is paused takes nothing from others: no rows, no room, no slot, no steps of a job", async () => {
  for (const lanes of [1, 2]) {
    const p = await Played.open({ blocks: 8, sequences: 6, slots: 1, context: 96 }, { lanes });
    const slow = [0, 1].map((adapter) => p.ask({ length: 20, grows: 60, adapter })!);
    until(p, () => slow.every((a) => a.drawn > 4), 200);
    const drawn = slow.map((a) => a.drawn);
    for (const a of slow) p.pause(a, true);
    // Where nobody needs it they keep what they have, and go on as if nothing had been.
    const other = p.ask({ length: 8, grows: 8 })!;
    until(p, () => other.ended >= 0, 100);
    assert.equal([p.gaveWay, ...slow.map((a) => a.drawn)], [0, ...drawn]);
    p.pause(slow[0]!, false);
    until(p, () => slow[0]!.drawn > drawn[0]! + 2, 50);
    p.pause(slow[0]!, true);
    // Another adapter has the one slot, a long prompt the blocks, a job a slot and blocks.
    const adapter = p.ask({ length: 8, grows: 8, adapter: 2 })!;
    until(p, () => adapter.ended >= 0, 100);
    assert.ok(p.preempted.has(slow[1]!) && !p.preempted.has(slow[0]!), "the one in the slot gave way");
    const long = p.ask({ length: 90, grows: 6 })!;
    const more = p.ask({ length: 90, grows: 6 })!;
    until(p, () => long.ended >= 0 && more.ended >= 0, 200);
    const job = p.startJob(0, [60, 60, 60]);
    until(p, () => job.steps > 2, 2000);
    p.endJob(job);
    p.drain(500);
    assert.ok(slow.every((a) => a.ended >= 0 && a.length + a.grows === 80));
  }
});

test("fcfs: jobs run while no request does, or while all that run are paused", async () => {
  for (const lanes of [1, 2]) {
    const p = await Played.open({ blocks: 12, sequences: 6, context: 96 }, { lanes, policy: "fcfs" });
    const slow = [0, 1].map(() => p.ask({ length: 8, grows: 80 })!);
    const job = p.startJob(0, [20, 20]);
    until(p, () => slow.every((a) => a.drawn > 9), 200);
    assert.is(p.work.jobs[0], 0, "first come, first served");
    // One is read: the job waits. None is: it has the device, and they stand still.
    p.pause(slow[0]!, true);
    const drawn = slow[0]!.drawn;
    until(p, () => slow[1]!.drawn > 20, 200);
    assert.equal([p.work.jobs[0], slow[0]!.drawn], [0, drawn]);
    p.pause(slow[1]!, true);
    until(p, () => job.steps > 3, 200);
    // Who comes then is served before the job; what is read again, too.
    const alone = (a: Ask): void => {
      const before = p.work.jobs[0]!;
      until(
        p,
        () => a.ended >= 0,
        200,
        () => assert.ok(a.ended >= 0 || p.work.jobs[0] === before),
      );
      until(p, () => p.work.jobs[0]! > before, 20);
    };
    alone(p.ask({ length: 30, grows: 20 })!);
    p.pause(slow[0]!, false);
    alone(slow[0]!);
    assert.is(slow[1]!.ended, -1, "still paused");
    until(p, () => job.steps > 8, 500);
    p.endJob(job);
    p.drain(500);
    assert.ok(slow.every((a) => a.ended >= 0 && a.length + a.grows === 88));
  }
});

test("the queue has an end, and jobs' own requests a place beyond it", async () => {
  const p = await Played.open({ sequences: 4 }, { queued: 3 });
  const asks = Array.from({ length: 4 }, () => p.ask({ length: 4, grows: 30 }));
  assert.equal(asks.map(Boolean), [true, true, true, false]);
  p.step();
  assert.ok(p.ask({ length: 4, grows: 30 }), "room again once they run");
  const job = p.startJob(0, [8], { evaluates: [8] });
  until(
    p,
    () => job.steps > 1,
    1000,
    () => void p.ask({ length: 4, grows: 30 }),
  );
  p.endJob(job);
  p.drain(1000);
});
test.run();
