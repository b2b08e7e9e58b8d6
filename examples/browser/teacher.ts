/**
 * Learning: lessons come in at any time, one job at a time learns all that there are, and generations come
 * out.
 */
import { type DataRow, type TrainEvent, WeftError } from "../../sdk/index.ts";
import type { AsyncEngine, AsyncJob } from "../../sdk/worker/index.ts";
import type { Losses, Rates } from "./plots.ts";
import type { Shelf } from "./shelf.ts";
import { $, button, notice, show } from "./ui.ts";
import { count, generationOf, sentence } from "./words.ts";

/** What the adapter is called. */
export const NAME = "lessons";
const BATCH = 8;
const PUBLISH_EVERY = 10;
/** Optimizer steps for so many lessons: a few are gone through often, many at least once. */
const stepsFor = (rows: number): number => {
  const once = Math.ceil(rows / BATCH);
  return Math.max(once, Math.min(20 * once, 200), 30);
};

export class Teacher {
  private rows: DataRow[] = [];
  /** Lessons of `rows` that a job has gone through. */
  private learned = 0;
  private job: AsyncJob | null = null;
  /** While it learns: when that is over, and what ends it. */
  private learning: Promise<void> | null = null;
  private ending = new AbortController();
  /** Generations of earlier visits: the engine counts from 1 again. */
  private before = 0;
  private latest = 0;
  constructor(
    private readonly engine: AsyncEngine,
    private readonly shelf: Shelf | null,
    private readonly plots: { readonly losses: Losses; readonly rates: Rates },
    /** Hears when there is another generation, or none any more. */
    private readonly changed: () => void,
  ) {
    button("enough").addEventListener("click", () => void this.stop());
  }
  /** What an earlier visit learned. */
  async open(): Promise<void> {
    try {
      const kept = await this.shelf?.lessons();
      if (!kept) return;
      await this.engine.adapters.load(NAME, await this.shelf!.adapter());
      this.rows = [...kept.rows];
      this.learned = this.rows.length;
      this.before = kept.generation - 1;
      this.latest = 1;
      this.say(`It remembers ${count(this.learned, "lesson")} of an earlier visit.`);
    } catch (e) {
      notice(`What an earlier visit taught could not be read. ${sentence(e)}`);
    }
    this.changed();
  }
  get adapter(): string | null {
    return this.latest ? NAME : null;
  }
  /** Of what was learned, over all visits; 0: nothing was. */
  get generation(): number {
    return this.latest && this.before + this.latest;
  }
  answeredBy(adapter: string): string {
    const n = generationOf(adapter);
    return n ? `by what it learned, version ${this.before + n}` : "by the model as it came";
  }

  /** Learn these too: now, or behind the job that runs. */
  add(rows: readonly DataRow[]): void {
    this.rows.push(...rows);
    this.learning ??= this.learn().finally(() => {
      this.learning = null;
    });
  }
  private async learn(): Promise<void> {
    this.ending = new AbortController();
    const { signal } = this.ending;
    show("enough", true);
    while (this.learned < this.rows.length) {
      const rows = this.rows.slice();
      const steps = stepsFor(rows.length);
      try {
        this.job = await this.engine.finetune({
          ...{ name: NAME, data: rows, steps, batchSize: BATCH, publishEvery: PUBLISH_EVERY },
          ...(this.adapter && { from: NAME }),
          ...{ signal, onEvent: (e) => this.hear(e, rows, steps) },
        });
        await this.job.done;
        this.learned = rows.length;
        this.say(`It has learned ${count(this.learned, "lesson")}.`);
      } catch (e) {
        if ((e as Error).name === "AbortError") {
          this.learned = this.rows.length;
          this.say("It stopped learning. What it learned so far is used.");
        } else {
          // Lessons that cannot be learned are not tried again.
          this.rows.length = this.learned;
          this.say(
            this.learned ? `It knows ${count(this.learned, "lesson")}.` : "It has learned nothing yet.",
          );
          notice(sentence(e));
        }
      }
      this.job = null;
    }
    if (document.activeElement === button("enough")) $("question").focus();
    show("enough", false);
  }
  private hear(e: TrainEvent, rows: readonly DataRow[], steps: number): void {
    if (e.type === "step") {
      this.plots.losses.step(e.loss);
      this.plots.rates.learned(e.tokens);
      // Said aloud where it changes: screen readers would read each step.
      $("learning").ariaLive = "off";
      const more = this.rows.length > rows.length ? " More wait." : "";
      this.text(`Learning ${count(rows.length, "lesson")}: step ${e.step} of ${steps}.${more}`);
    } else if (e.type === "publish") {
      this.latest = generationOf(e.generation);
      this.changed();
      void this.keep(rows);
    }
  }
  private async keep(rows: readonly DataRow[]): Promise<void> {
    try {
      const adapter = await this.engine.adapters.get(NAME);
      await this.shelf?.keep(adapter, { rows, generation: this.generation });
      this.changed();
    } catch (e) {
      if (WeftError.from(e)?.code !== "WEFT_NOT_FOUND")
        notice(`What it learned could not be kept. ${sentence(e)}`);
    }
  }
  private async stop(): Promise<void> {
    const { job } = this;
    // What it knows by now is not lost.
    await job?.publish().catch(() => {});
    this.ending.abort();
  }
  async forget(): Promise<void> {
    this.ending.abort();
    await this.learning;
    const known = this.latest > 0;
    this.rows = [];
    this.learned = this.latest = this.before = 0;
    if (known) await this.engine.adapters.remove(NAME);
    await this.shelf?.forget();
    this.say("It has forgotten all that you taught it.");
    this.changed();
  }
  private say(text: string): void {
    $("learning").ariaLive = "polite";
    this.text(text);
  }
  private text(text: string): void {
    $("learning").textContent = text;
  }
}
