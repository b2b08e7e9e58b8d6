/**
 * The requests of an engine: queued with the host, started where it puts them, told what it says of them, and
 * ended once. Which runs when is the host's.
 */
import type { AdapterStore } from "./adapters.ts";
import { CANDIDATE_WORDS, FINISH, KIND, type Manifest, NONE, WeftError } from "./bundle.ts";
import type { Host } from "./host.ts";
import { notFinite, type Request, startIn, type TokenEvent, topOf } from "./requests.ts";

/** Salts whose number is kept: one that comes again after so many others shares nothing with before. */
const KEPT_SALTS = 4096;

type Asked = Omit<Request, "ticket" | "seq" | "done" | "drawn" | "cached" | "paused">;
/** A step's logits: its rows, what was picked out of them, and ln Σ exp of each. */
interface Logits {
  /** Of a row that is not read whole, only what was picked is right. */
  readonly rowOf: (h: number) => Float32Array;
  readonly pickedOf: (h: number) => Float32Array | undefined;
  readonly logSums: Float64Array;
}

export class Serving {
  /** By ticket, in order of arrival. */
  private readonly waiting = new Map<number, Request>();
  /** By sequence. */
  private readonly live = new Map<number, Request>();
  /**
   * Those that gave way while they were paused; and of them, in order, those that wait for a place in the
   * queue.
   */
  private readonly preempted = new Set<Request>();
  private readonly returning = new Set<Request>();
  /** Those that were given up under a list on its way, until it has ended. */
  private readonly leaving = new Map<number, Request>();
  /** The host's numbers of salts, the least recently used first: from 1 up, each once. */
  private readonly salts = new Map<string, number>();
  private salted = 0;
  constructor(
    private readonly manifest: Manifest,
    private readonly host: Host,
    private readonly adapters: AdapterStore,
    private readonly maxQueued: number,
    /** The adapter that is part of the base weights now. */
    private readonly merged: () => string | null,
    /** Something may be done now that could not before. */
    private readonly kick: () => void,
    prefixCache: boolean,
  ) {
    if (prefixCache) host.share((ticket) => this.waiting.get(ticket)!);
  }

  /** Requests that run or wait. */
  get size(): number {
    return this.waiting.size + this.live.size + this.preempted.size;
  }
  private saltOf({ salt }: Request): number {
    if (salt === null) return 0;
    const number = this.salts.get(salt) ?? ++this.salted;
    this.salts.delete(salt);
    this.salts.set(salt, number);
    if (this.salts.size > KEPT_SALTS) this.salts.delete(this.salts.keys().next().value!);
    return number;
  }
  /** Throws WEFT_CAPACITY, retryable, where too many wait. */
  enqueue(asked: Asked): Request {
    const fresh = { drawn: [], cached: null, paused: false, ticket: NONE, seq: NONE, done: false };
    const request: Request = { ...asked, ...fresh };
    // Those that come back were here before.
    if (this.returning.size || !this.submit(request))
      throw new WeftError({
        code: "WEFT_CAPACITY",
        where: asked.kind,
        expected: `at most ${this.maxQueued} requests that wait`,
        found: "one more",
        hint: "try again when some have ended; load({ maxQueued }) allows more",
        retryable: true,
      });
    // An admitted request finishes on the generation it asked for, even while it waits for a slot.
    if (request.generation) this.adapters.pin(request.generation);
    this.kick();
    return request;
  }
  /** Queue it with the host; false where there is no place. */
  private submit(r: Request): boolean {
    const { generation, job, virtual } = r;
    const length = virtual + r.prompt.length;
    const limit = length + r.maxTokens;
    const kind = KIND[r.kind];
    const ticket = this.adapters.submit(kind, length, limit, virtual, generation, job, this.saltOf(r));
    if (ticket === NONE) return false;
    r.ticket = ticket;
    this.waiting.set(ticket, r);
    return true;
  }
  /** A request's reader has enough for now, or (false) wants more again. */
  pause(r: Request, on: boolean): void {
    if (r.done) return;
    r.paused = on;
    if (r.seq !== NONE) this.host.exports.pause(r.seq, on ? 1 : 0);
    else if (this.preempted.has(r)) {
      if (on) this.returning.delete(r);
      else this.returning.add(r);
      this.comeBack();
    }
    this.kick();
  }
  /**
   * The host gave a paused request's place to others: when it comes back, what it said is part of its prompt.
   */
  preempt(seq: number): void {
    const r = this.live.get(seq)!;
    this.live.delete(seq);
    r.seq = NONE;
    r.prompt = [...r.prompt, ...r.drawn];
    r.said += r.drawn.length;
    r.maxTokens -= r.drawn.length;
    r.drawn = [];
    this.preempted.add(r);
  }
  /** Those whose readers want more again are queued, as far as there are places. */
  private comeBack(): void {
    for (const r of this.returning) {
      if (!this.submit(r)) break;
      this.returning.delete(r);
      this.preempted.delete(r);
    }
  }
  /** End a request at once, waiting or running: with an error, or (null) because nobody wants more of it. */
  cancel(r: Request, error: unknown = null): void {
    if (r.done) return;
    if (this.preempted.has(r)) this.returning.delete(r);
    else if (r.seq === NONE) this.host.exports.withdraw(r.ticket);
    else if (!this.host.exports.cancel(r.seq)) this.leaving.set(r.seq, r);
    this.finish(r, error);
    this.comeBack();
    this.kick();
  }
  /** All of them end with `error`; the host is not asked any more. */
  endAll(error: unknown): void {
    for (const r of [...this.live.values(), ...this.waiting.values(), ...this.preempted])
      this.finish(r, error);
  }
  private finish(r: Request, error: unknown): void {
    if (r.done) return;
    r.done = true;
    if (this.preempted.delete(r)) this.returning.delete(r);
    else if (r.seq === NONE) this.waiting.delete(r.ticket);
    else this.live.delete(r.seq);
    if (!this.leaving.has(r.seq)) this.release(r);
    r.end(error);
  }
  /** Its generation is its no more. */
  private release(r: Request): void {
    if (r.generation) this.adapters.unpin(r.generation);
  }
  /** The list that a request was given up under has ended. */
  private left(seq: number): void {
    this.release(this.leaving.get(seq)!);
    this.leaving.delete(seq);
  }

  /** The host starts a request in a sequence. */
  start(ticket: number, seq: number): void {
    const r = this.waiting.get(ticket)!;
    this.waiting.delete(ticket);
    r.seq = seq;
    this.live.set(seq, r);
    startIn(this.host, seq, r);
    if (r.paused) this.host.exports.pause(seq, 1);
    this.comeBack();
    const failed =
      r.generation && [r.generation, ...r.generation.parts.map(({ g }) => g)].find((g) => g.failed);
    if (failed) this.cancel(r, failed.failed);
  }

  /** What the events of one step say of requests, in their order. */
  telling(): Telling {
    const { vocab } = this.manifest.model;
    const logits = this.host.logits();
    const picked = this.host.picked();
    return new Telling(
      this.live,
      {
        rowOf: (h) => logits.subarray(h * vocab, (h + 1) * vocab),
        pickedOf: (h) => picked?.subarray(h * CANDIDATE_WORDS, (h + 1) * CANDIDATE_WORDS),
        logSums: this.host.logSums(),
      },
      (r) => (r.cached ??= Math.max(0, this.host.exports.foundOf(r.seq) - r.virtual)),
      (r) => r.generation?.ref ?? this.merged() ?? "base",
      (r, error) => this.finish(r, error),
      (r, error) => this.cancel(r, error),
      (seq) => this.left(seq),
    );
  }
}

function tell(r: Request, e: TokenEvent): void {
  r.drawn.push(e.id);
  r.push(e);
}
/** One step's events of requests. A token is told once it is known whether it is the last. */
class Telling {
  private readonly wrong = new Set<Request>();
  private held: { r: Request; e: Omit<TokenEvent, "finish"> } | null = null;
  constructor(
    private readonly live: ReadonlyMap<number, Request>,
    private readonly logits: Logits,
    private readonly cachedOf: (r: Request) => number,
    private readonly adapterOf: (r: Request) => string,
    private readonly finish: (r: Request, error: unknown) => void,
    private readonly cancel: (r: Request, error: unknown) => void,
    private readonly left: (seq: number) => void,
  ) {}

  private request(seq: number): Request | null {
    const r = this.live.get(seq);
    return r && !r.done ? r : null;
  }
  private sound(r: Request, logSum: number): boolean {
    if (!Number.isFinite(logSum)) this.wrong.add(r);
    return !this.wrong.has(r);
  }
  token(seq: number, id: number, h: number): void {
    this.flush();
    const r = this.request(seq);
    const logSum = this.logits.logSums[h]!;
    if (!r || !this.sound(r, logSum)) return;
    const row = this.logits.rowOf(h);
    this.held = {
      r,
      e: {
        id,
        logprob: row[id]! - logSum,
        top: topOf(row, this.logits.pickedOf(h), r.sampling.logprobs ?? 0, logSum),
        adapter: this.adapterOf(r),
        seed: r.seed,
        cached: this.cachedOf(r),
      },
    };
  }
  scored(seq: number, position: number, h: number): void {
    const r = this.request(seq);
    const logSum = this.logits.logSums[h]!;
    if (r && position >= r.virtual && this.sound(r, logSum))
      r.scored(position - r.virtual, this.logits.rowOf(h), logSum);
  }
  finished(seq: number, why: number): void {
    if (why === FINISH.givenUp) {
      this.left(seq);
      return;
    }
    const r = this.request(seq);
    if (!r) return;
    const finish = why === FINISH.stop ? "stop" : r.clipped ? "context" : "length";
    if (this.held?.r === r) {
      tell(r, { ...this.held.e, finish });
      this.held = null;
    }
    this.finish(r, this.wrong.has(r) ? notFinite(r) : null);
  }
  private flush(): void {
    if (this.held) tell(this.held.r, { ...this.held.e, finish: null });
    this.held = null;
  }
  end(): void {
    this.flush();
    for (const r of this.wrong) this.cancel(r, notFinite(r));
  }
}
