/**
 * Streams as async generators by hand: unlike an `async function*`, `return()` does not wait for a `next()`
 * on its way; it settles both.
 */

interface Reader<T> {
  readonly resolve: (r: IteratorResult<T, void>) => void;
  readonly reject: (error: unknown) => void;
}
const over = { done: true, value: undefined } as const;
/** Unread values at which a producer is paused, and those at which it goes on. */
const ENOUGH = 16;
const FEW = 8;

/** What a stream may ask of who fills it. */
export interface Producer {
  /** Nobody wants more. */
  readonly leave: () => void;
  /** The reader has enough for now, or (false) wants more again. */
  readonly pause?: (on: boolean) => void;
}

/**
 * Values that a producer pushes and a consumer pulls. The producer begins with the first `next()`: a stream
 * that nobody reads holds nothing. One that is read slowly pauses its producer.
 */
export class Stream<T> implements AsyncGenerator<T, void, void> {
  private readonly unread: T[] = [];
  private readonly readers: Reader<T>[] = [];
  private ended = false;
  private failure: { readonly error: unknown } | null = null;
  private producer: Producer | null = null;
  private paused = false;
  /** `begin` starts the producer; what it throws is what the first `next()` rejects with. */
  constructor(private begin: ((stream: Stream<T>) => Producer) | null) {}

  push(value: T): void {
    const reader = this.readers.shift();
    if (reader) reader.resolve({ done: false, value });
    else if (this.unread.push(value) >= ENOUGH) this.pause(true);
  }
  private pause(on: boolean): void {
    if (this.paused === on) return;
    this.paused = on;
    this.producer?.pause?.(on);
  }
  /** No more values: null at the end, or the error that a reader gets after those already pushed. */
  end(error: unknown): void {
    if (this.ended) return;
    this.ended = true;
    this.producer = null;
    const first = error === null ? undefined : this.readers.shift();
    if (first) first.reject(error);
    else if (error !== null) this.failure = { error };
    for (const r of this.readers.splice(0)) r.resolve(over);
  }

  async next(): Promise<IteratorResult<T, void>> {
    this.start();
    if (this.unread.length) {
      const value = this.unread.shift()!;
      if (this.unread.length <= FEW) this.pause(false);
      return { done: false, value };
    }
    if (this.failure) {
      const { error } = this.failure;
      this.failure = null;
      throw error;
    }
    if (this.ended) return over;
    return new Promise((resolve, reject) => this.readers.push({ resolve, reject }));
  }
  private start(): void {
    const { begin } = this;
    if (!begin) return;
    this.begin = null;
    try {
      const producer = begin(this);
      if (!this.ended) this.producer = producer;
    } catch (e) {
      this.end(e);
    }
  }
  async return(): Promise<IteratorResult<T, void>> {
    this.begin = null;
    this.producer?.leave();
    this.end(null);
    this.failure = null;
    this.unread.length = 0;
    return over;
  }
  async throw(error: unknown): Promise<IteratorResult<T, void>> {
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

/**
 * A stream's values, each changed on its way; it ends after the first that is the `last`. The source is
 * opened by the first `next()`.
 */
export class MappedStream<A, B> implements AsyncGenerator<B, void, void> {
  private source: AsyncGenerator<A, void, void> | null = null;
  private ended = false;
  constructor(
    private readonly open: () => AsyncGenerator<A, void, void>,
    private readonly change: (a: A) => B,
    private readonly last: (b: B) => boolean,
  ) {}

  async next(): Promise<IteratorResult<B, void>> {
    if (this.ended) return over;
    try {
      this.source ??= this.open();
      const got = await this.source.next();
      // Changed in the order of the source, which settles its reads in the order they came.
      if (this.ended || got.done) {
        this.ended = true;
        return over;
      }
      const value = this.change(got.value);
      if (this.last(value)) await this.return();
      return { done: false, value };
    } catch (e) {
      await this.return();
      throw e;
    }
  }
  async return(): Promise<IteratorResult<B, void>> {
    this.ended = true;
    await this.source?.return();
    return over;
  }
  async throw(error: unknown): Promise<IteratorResult<B, void>> {
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
