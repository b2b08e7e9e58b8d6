/** What is read back of a step's logits: rows that the host wants whole, and what was picked out of all. */
import { CANDIDATE_WORDS, COUNTER, type Manifest } from "./bundle.ts";
import type { Device, Range } from "./device.ts";
import type { Host } from "./host.ts";

export class LogitsReader {
  constructor(
    private readonly manifest: Manifest,
    private readonly device: Device,
    private readonly host: Host,
  ) {}
  /** Ranges to read with a lane's step, and what puts them where the host looks for them. */
  ofStep(lane: number): { ranges: Range[]; put: (read: readonly Float32Array[]) => void } {
    const rows = this.rows(lane);
    const offset = this.device.plan.homes.candidates;
    const words = this.host.exports.counterOf(lane, COUNTER.head) * CANDIDATE_WORDS;
    if (!this.device.picks || offset === null || !words) return rows;
    const { vocab } = this.manifest.model;
    const { logits } = this.device.plan.homes;
    const single = this.host.raised(lane).flatMap((ids, h) => ids.map((id) => h * vocab + id));
    const at = { space: "arena", group: 0, lane } as const;
    return {
      ranges: [
        ...rows.ranges,
        { ...at, offset, words },
        ...single.map((i): Range => ({ ...at, offset: logits + i, words: 1 })),
      ],
      put: (read) => {
        rows.put(read);
        const picked = rows.ranges.length;
        this.host.picked()!.set(read[picked]!);
        const to = this.host.logits();
        single.forEach((i, n) => {
          to[i] = read[picked + 1 + n]![0]!;
        });
      },
    };
  }
  /** Rows that candidates did not tell, when the step has run and what was picked is there. */
  async settle(lane: number): Promise<void> {
    if (!this.host.exports.settle(lane)) return;
    const { ranges, put } = this.rows(lane);
    put(await this.device.readAll(ranges));
  }
  /** Those that are wanted whole, in runs. */
  private rows(lane: number): { ranges: Range[]; put: (read: readonly Float32Array[]) => void } {
    const { vocab } = this.manifest.model;
    const { logits } = this.device.plan.homes;
    const runs: { from: number; n: number }[] = [];
    this.host.whole(lane).forEach((whole, h) => {
      const last = runs.at(-1);
      if (whole && last && last.from + last.n === h) last.n++;
      else if (whole) runs.push({ from: h, n: 1 });
    });
    return {
      ranges: runs.map(({ from, n }): Range => {
        return { space: "arena", group: 0, offset: logits + from * vocab, words: n * vocab, lane };
      }),
      put: (read) => {
        const to = this.host.logits();
        for (const [i, { from }] of runs.entries()) to.set(read[i]!, from * vocab);
      },
    };
  }
}
