/**
 * The step loop: plan → schedule → upload → run → commit; one loop a lane of the device. The host decides;
 * the loops move bytes and tell requests and jobs what it says. What a list on its way may touch (blocks,
 * slots, accumulators) the host gives back after its commit, so what two lanes touch is always apart.
 */
import type { AdapterStore } from "./adapters.ts";
import { COUNTER, EVENT, EVENT_WORDS, KIND, type Manifest } from "./bundle.ts";
import type { Device, KernelTime } from "./device.ts";
import type { Host } from "./host.ts";
import { LogitsReader } from "./logits.ts";
import type { Serving } from "./serving.ts";
import { turn } from "./turn.ts";

export interface StepTrace {
  /** Whose list it was: requests have lane 0, jobs the device's last. */
  readonly lane: number;
  readonly rows: { readonly generate: number; readonly score: number; readonly train: number };
  /**
   * Requests, and jobs, with rows in this forward: more rows than requests means that a prompt chunk was
   * among them.
   */
  readonly requests: number;
  readonly jobs: number;
  /** Tokens of prompts that its requests found computed. */
  readonly cached: number;
  readonly units: number;
  readonly commands: number;
  readonly ms: number;
  /** What its kernels took; null unless `load({ timestamps })` asked for it. */
  readonly kernels: readonly KernelTime[] | null;
}
/** By the host's number. */
const kinds = Object.fromEntries(Object.entries(KIND).map(([name, n]) => [n, name as keyof typeof KIND]));

/** What the host says to a job. */
export interface Feed {
  /** It has a slot of its own. */
  hold(slot: number): void;
  /** A micro-batch begins with the first `n` rows on offer. */
  feed(n: number): void;
  microDone(): Promise<void>;
  fail(error: unknown): void;
}

interface Played {
  readonly manifest: Manifest;
  readonly device: Device;
  readonly host: Host;
  readonly serving: Serving;
  readonly adapters: AdapterStore;
  readonly jobs: ReadonlyMap<number, Feed>;
}
export class Loops {
  /** Does each run, may something have come since it last looked for work, and the step on its way. */
  private readonly lanes: { running: boolean; kicked: boolean; step: Promise<boolean> | null }[];
  /** How often the host was given something back, as far as the loops know. */
  private given = 0;
  private ended = false;
  private readonly logits: LogitsReader;
  constructor(
    private readonly engine: Played,
    private readonly o: {
      /** 0: what the host measures. */
      readonly budget: number;
      readonly idle: number;
      readonly onStep: ((t: StepTrace) => void) | null;
    },
    private readonly fail: (error: unknown) => void,
  ) {
    const { manifest, device, host } = engine;
    this.logits = new LogitsReader(manifest, device, host);
    const { lanes } = device;
    this.lanes = Array.from({ length: lanes }, () => ({ running: false, kicked: false, step: null }));
  }

  /** Start those that sleep. */
  kick(): void {
    for (const [i, lane] of this.lanes.entries()) {
      lane.kicked = true;
      if (lane.running || this.ended) continue;
      lane.running = true;
      queueMicrotask(() => void this.loop(i));
    }
  }
  end(): void {
    this.ended = true;
  }
  /** Resolves when the list that a lane has on its way has ended. */
  async atRest(lane: number): Promise<void> {
    await this.lanes[lane]!.step?.catch(() => {});
  }
  private async loop(index: number): Promise<void> {
    const lane = this.lanes[index]!;
    try {
      while (!this.ended) {
        lane.kicked = false;
        this.decide(index);
        lane.step = this.step(index);
        const worked = await lane.step.finally(() => {
          lane.step = null;
        });
        if (!worked && !lane.kicked) break;
        // Consumers and timers run between steps.
        await turn();
      }
    } catch (e) {
      this.fail(e);
    } finally {
      lane.running = false;
      this.engine.device.rest(index);
    }
  }

  /** What comes in before a lane's next step, as the host decides. */
  private decide(lane: number): void {
    const count = this.engine.host.exports.decide(lane);
    if (!count) return;
    const events = this.engine.host.events(lane, count);
    for (let i = 0; i < events.length; i += EVENT_WORDS) {
      const [type, a, b] = [events[i]!, events[i + 1]!, events[i + 2]!];
      if (type === EVENT.preempt) {
        this.engine.serving.preempt(a);
        // Who waits for its place may be of the other lane.
        this.kick();
      } else if (type === EVENT.load) this.engine.adapters.load(a, b, 0);
      else if (type === EVENT.start) this.engine.serving.start(a, b);
      else if (type === EVENT.hold) this.engine.jobs.get(a)!.hold(b);
      else this.engine.jobs.get(a)!.feed(b);
    }
  }
  private async step(lane: number): Promise<boolean> {
    const t0 = performance.now();
    const { host, device } = this.engine;
    const count = host.exports.schedule(lane, this.o.budget, this.o.idle);
    const units = host.exports.counterOf(lane, COUNTER.units);
    if (count === 0 && units === 0) return false;
    const { ranges, put } = this.logits.ofStep(lane);
    const t1 = performance.now();
    put(await device.run(lane, host.commands(lane, count), host.meta(lane), ranges));
    await this.logits.settle(lane);
    const micros = Math.min(2 ** 31 - 1, Math.round(1000 * (performance.now() - t1)));
    const trace = this.o.onStep && this.traceRows(lane);
    const cached = host.exports.counterOf(lane, COUNTER.found);
    const events = host.events(lane, host.exports.commit(lane, micros)).slice();
    await this.handle(events);
    const given = host.exports.counterOf(lane, COUNTER.given);
    // Who waits for room may be of the other lane.
    if (given !== this.given) this.kick();
    this.given = given;
    if (trace) {
      const { kernels } = device.stats;
      const ms = performance.now() - t0;
      this.o.onStep!({ lane, ...trace, cached, units, commands: count, ms, kernels });
    }
    return true;
  }
  private traceRows(lane: number): Pick<StepTrace, "rows" | "requests" | "jobs"> {
    const rows = { generate: 0, score: 0, train: 0 };
    const requests = new Set<number>();
    const jobs = new Set<number>();
    for (const s of this.engine.host.rowSequences(lane)) {
      // As the host knows it: who was aborted under this list is no longer live.
      const kind = kinds[this.engine.host.exports.kindOf(s)]!;
      rows[kind]++;
      if (kind === "train") jobs.add(this.engine.host.exports.jobOf(s));
      else requests.add(s);
    }
    return { rows, requests: requests.size, jobs: jobs.size };
  }

  private async handle(events: Int32Array): Promise<void> {
    const said = this.engine.serving.telling();
    const micros: number[] = [];
    for (let i = 0; i < events.length; i += EVENT_WORDS) {
      const [type, a, b, c] = [events[i]!, events[i + 1]!, events[i + 2]!, events[i + 3]!];
      if (type === EVENT.token) said.token(a, b, c);
      else if (type === EVENT.scored) said.scored(a, b, c);
      else if (type === EVENT.finished) said.finished(a, b);
      else micros.push(a);
    }
    said.end();
    for (const j of micros) await this.engine.jobs.get(j)?.microDone();
  }
}
