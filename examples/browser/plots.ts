/** Two small plots: the loss of what is being learned, and tokens a second. */
import uPlot from "uplot";
import { $ } from "./ui.ts";

const HEIGHT = 96;
/** Seconds that the plot of speed shows. */
const SHOWN = 120;
const dark = matchMedia("(prefers-color-scheme: dark)");
const colour = (name: string): string =>
  getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

/** Where the horizontal axis begins and ends, of the data's least and most; null while there is none. */
type Span = (least: number | null, most: number | null) => [number, number];
function plot(id: string, series: readonly string[], span: Span, unit: (x: number) => string): uPlot {
  const at = $(id);
  const axis = { stroke: () => colour("muted"), font: "11px system-ui", ticks: { show: false } };
  const grid = { stroke: () => colour("line"), width: 1 };
  const made = new uPlot(
    {
      ...{ width: at.clientWidth || 320, height: HEIGHT, padding: [8, 18, 0, 0] },
      ...{ legend: { show: false }, cursor: { show: false } },
      scales: {
        x: { time: false, range: (_, least, most) => span(least, most) },
        y: { range: (_, __, most) => [0, Number.isFinite(most) && most > 0 ? most * 1.1 : 1] },
      },
      axes: [
        {
          ...{ ...axis, size: 24, grid: { show: false }, space: 56 },
          ...{ incrs: [1, 2, 5, 10, 20, 30, 50, 100, 200, 500, 1000, 5000], values: (_, at) => at.map(unit) },
        },
        { ...axis, size: 36, grid, space: 24 },
      ],
      series: [
        {},
        ...series.map((name) => ({ stroke: () => colour(name), width: 2, points: { show: false } })),
      ],
    },
    [[], ...series.map(() => [])] as unknown as uPlot.AlignedData,
    at,
  );
  new ResizeObserver(([e]) => {
    const { width } = e!.contentRect;
    if (width > 0) made.setSize({ width, height: HEIGHT });
  }).observe(at);
  dark.addEventListener("change", () => made.redraw());
  return made;
}

/** The loss, step by step, of all jobs one after another. */
export class Losses {
  private readonly made = plot("loss", ["learns"], (_, most) => [1, Math.max(most ?? 0, 30)], String);
  private readonly steps: number[] = [];
  private readonly values: number[] = [];
  private drawing = 0;
  step(loss: number): void {
    this.steps.push(this.steps.length + 1);
    this.values.push(loss);
    // As often as a screen shows it.
    this.drawing ||= requestAnimationFrame(() => {
      this.drawing = 0;
      this.made.setData([this.steps, this.values]);
      $("loss-now").textContent = this.values.at(-1)!.toFixed(2);
    });
  }
}

/** Tokens a second, counted once a second while there are any. */
export class Rates {
  private readonly made = plot(
    "speed",
    ["answers", "learns"],
    (least) => [Math.min(least ?? 0, -30), 0],
    (x) => (x ? `${x} s` : "now"),
  );
  private readonly rows: { answers: number; learns: number }[] = [];
  private now = { answers: 0, learns: 0 };
  private last = performance.now();
  private quiet = 0;
  constructor() {
    setInterval(() => this.tick(), 1000);
  }
  answered(tokens: number): void {
    this.now.answers += tokens;
  }
  learned(tokens: number): void {
    this.now.learns += tokens;
  }
  private tick(): void {
    const seconds = (performance.now() - this.last) / 1000;
    this.last = performance.now();
    const { answers, learns } = this.now;
    this.now = { answers: 0, learns: 0 };
    this.quiet = answers + learns ? 0 : this.quiet + 1;
    // A page that does nothing draws nothing.
    if (this.quiet > 2) return;
    this.rows.push({ answers: answers / seconds, learns: learns / seconds });
    if (this.rows.length > SHOWN) this.rows.shift();
    const from = 1 - this.rows.length;
    this.made.setData([
      this.rows.map((_, i) => from + i),
      this.rows.map((r) => r.answers),
      this.rows.map((r) => r.learns),
    ]);
    $("answers-now").textContent = String(Math.round(answers / seconds));
    $("learns-now").textContent = String(Math.round(learns / seconds));
  }
}
