/** What an answer took, in a line behind it. */
import type { Piece } from "../index.ts";

export class Speed {
  private readonly begun = performance.now();
  private first = 0;
  private tokens = 0;
  /** Tokens of the prompt that were not computed. */
  cached = 0;
  constructor(private readonly prompt: number) {}
  hear(p: Piece): void {
    this.first ||= performance.now();
    this.tokens++;
    this.cached = p.cached;
  }
  /** Tokens and their speed, the time to the first, and what of the prompt was there from an earlier one. */
  line(): string {
    const since = (from: number): number => (performance.now() - from) / 1000;
    const speed = this.tokens > 1 ? `, ${((this.tokens - 1) / since(this.first)).toFixed(1)} tokens/s` : "";
    const wait = ((this.first || performance.now()) - this.begun) / 1000;
    return (
      `(${this.tokens} tokens${speed}, the first after ${wait.toFixed(2)} s; ${this.cached} of ` +
      `${this.prompt} prompt tokens reused)`
    );
  }
}
