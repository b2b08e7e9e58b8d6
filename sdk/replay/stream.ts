/**
 * An answer that outlives the engine that says it: the next one gets the prompt with what was said, and goes
 * on with the same tokens. Draws depend on the seed and the position alone, penalties and limits count what
 * was said.
 */
import { seedOf } from "../../runtime/sampling.ts";
import type { Asked, Piece } from "../engine.ts";
import type { GenerateOptions } from "../options.ts";
import type { Backend } from "./backend.ts";
import { deferred } from "./deferred.ts";

const over = { done: true, value: undefined } as const;
type Result = IteratorResult<Piece, void>;

export class ReplayStream implements AsyncGenerator<Piece, void, void> {
  private on: { readonly backend: Backend; readonly pieces: AsyncGenerator<Piece, void, void> } | null = null;
  private readonly said: number[] = [];
  private asked = false;
  private first: Piece | null = null;
  private release: () => void = () => {};
  /** Reads take turns: an engine that ends rejects them all, and only the first goes on with the next. */
  private turn: Promise<unknown> = Promise.resolve();
  private ended = false;
  private readonly left = deferred<never>();

  constructor(
    private o: GenerateOptions,
    /** An engine that lives, once there is one; rejects when there will be none. */
    private readonly current: () => Promise<Backend>,
    private readonly hold: (asked: Asked) => () => void,
  ) {}

  next(): Promise<Result> {
    const read = this.turn.then(() => this.read());
    this.turn = read.catch(() => {});
    return read;
  }
  private async read(): Promise<Result> {
    while (!this.ended)
      try {
        // Who leaves waits for no engine.
        this.on ??= this.open(await Promise.race([this.current(), this.left.promise]));
        const got = await this.on.pieces.next();
        if (got.done) return this.end();
        return { done: false, value: this.hear(got.value) };
      } catch (e) {
        if (this.ended) break;
        if (!this.on?.backend.ended) {
          this.end();
          throw e;
        }
        this.on = null;
      }
    return over;
  }
  private open(backend: Backend): NonNullable<typeof this.on> {
    const said = this.said.length ? { said: [...(this.o.said ?? []), ...this.said] } : {};
    const pieces = backend.generate({ ...this.o, ...said }, (asked) => {
      if (this.asked || this.ended) return;
      this.asked = true;
      // What was asked for once is asked for again, whatever templates and names come to mean.
      const { messages: _, tools: __, templateArguments: ___, ...o } = this.o;
      this.o = { ...o, ...asked };
      this.release = this.hold(asked);
    });
    return { backend, pieces };
  }
  private hear(p: Piece): Piece {
    this.said.push(p.id);
    this.first ??= p;
    if (p.finish) this.end();
    // Of the prompt: not what a later engine found of it, or had to compute again.
    return { ...p, cached: this.first.cached };
  }
  private end(): Result {
    this.ended = true;
    this.release();
    return over;
  }
  async return(): Promise<Result> {
    this.end();
    this.left.reject(null);
    await this.on?.pieces.return();
    return over;
  }
  async throw(error: unknown): Promise<Result> {
    await this.return();
    throw error;
  }
  [Symbol.asyncIterator](): this {
    return this;
  }
  async [Symbol.asyncDispose](): Promise<void> {
    await this.return();
  }
}
/** With a seed of its own where it draws: the same in every engine. */
export const seeded = (o: GenerateOptions): GenerateOptions => {
  const seed = seedOf(o);
  return seed === null ? o : { ...o, seed };
};
