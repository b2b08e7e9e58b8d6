/** The choices of an answer: as many streams of the engine at once, told together as their pieces come. */
import type { Engine, GenerateOptions, Piece } from "../index.ts";

export interface Told {
  readonly index: number;
  readonly piece: Piece;
}
export interface Usage {
  readonly prompt_tokens: number;
  readonly completion_tokens: number;
  readonly total_tokens: number;
  readonly prompt_tokens_details: { readonly cached_tokens: number };
}

export class Choices {
  private readonly streams: readonly AsyncGenerator<Piece, void, void>[];
  /** Of each stream, the piece that is on its way; none of those that have ended. */
  private readonly coming = new Map<number, Promise<{ index: number; got: IteratorResult<Piece, void> }>>();
  private readonly promptTokens: number;
  private said = 0;
  /** Of each stream that has begun, tokens of its prompt that were not computed for it. */
  private readonly cached = new Map<number, number>();

  /**
   * `n` answers to each prompt, in the order of the prompts. Each draws with a seed of its own: `seed + i`.
   */
  constructor(
    engine: Engine,
    prompts: readonly (readonly number[])[],
    private readonly n: number,
    o: GenerateOptions,
  ) {
    this.promptTokens = prompts.reduce((sum, p) => sum + p.length, 0);
    this.streams = prompts.flatMap((prompt) =>
      Array.from({ length: n }, (_, i) =>
        engine.generate({ ...o, prompt, ...(o.seed !== undefined && { seed: o.seed + i }) }),
      ),
    );
    this.streams.forEach((_, index) => this.ask(index));
  }
  private ask(index: number): void {
    const coming = this.streams[index]!.next().then((got) => ({ index, got }));
    // An error is told to who waits; with several, to the first.
    coming.catch(() => {});
    this.coming.set(index, coming);
  }
  get count(): number {
    return this.streams.length;
  }
  /** Rejects with what keeps any of them from running; resolves once one of them has begun to answer. */
  async begun(): Promise<void> {
    await Promise.race(this.coming.values());
  }
  /** The next piece of any; null once all have ended. An error of one ends all. */
  async next(): Promise<Told | null> {
    for (;;) {
      if (!this.coming.size) return null;
      try {
        const { index, got } = await Promise.race(this.coming.values());
        this.coming.delete(index);
        if (got.done) continue;
        this.said++;
        this.cached.set(index, got.value.cached);
        if (got.value.finish === null) this.ask(index);
        return { index, piece: got.value };
      } catch (e) {
        this.close();
        throw e;
      }
    }
  }
  /** End all that run, and free their cache, at once. */
  close(): void {
    for (const stream of this.streams) void stream.return();
    this.coming.clear();
  }
  get usage(): Usage {
    const [prompt, completion] = [this.promptTokens, this.said];
    // A prompt is counted once, as it came to its first answer, however many it has.
    const cached = [...this.cached].reduce((sum, [i, tokens]) => (i % this.n ? sum : sum + tokens), 0);
    return {
      prompt_tokens: prompt,
      completion_tokens: completion,
      total_tokens: prompt + completion,
      prompt_tokens_details: { cached_tokens: cached },
    };
  }
}
