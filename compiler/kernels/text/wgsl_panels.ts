/** Matrices in panels of 16 columns, as WGSL reads them: 16 bytes are a word of each of four columns. */
import { formatOf, type PlacedPlane, planesOf, WGSL_PANEL } from "../../../runtime/bundle.ts";
import { type Lines, lines } from "./lines.ts";

/** k's that a word of a plane is for. */
const perWord = (p: PlacedPlane): number => (p.every * p.run) / p.count;
const shifted = (k: string, by: number): string => (by === 1 ? k : `((${k}) >> ${Math.log2(by)}u)`);

export interface Panels {
  /** k's in a word. */
  readonly run: number;
  /** Where the words of column quad `quad` of a panel are that hold k, an index in `weights`. */
  readonly at: (panel: string, k: string, quad: string) => string;
  /** Statements that declare what a block of k's shares; none for most formats. */
  readonly scales: (panel: string, k: string, quad: string) => Lines;
  /** Four columns at step j of words. */
  readonly value: (words: string, j: number) => string;
  /**
   * Statements that declare `v0` …: four columns at each of `count` k's, at most four, from k on, which is a
   * multiple of their number, or of four.
   */
  readonly some: (count: number, panel: string, k: string, quad: string) => Lines;
}
/**
 * The matrix [n, k] at word `offset` of the group's weights; `one`: of several matrices, so many vectors of
 * four words apart, that with the number in a variable; `rows`: in blocks of so many.
 */
export function panelsOf(
  name: string,
  offset: number,
  n: number,
  k: number,
  {
    one,
    rows = n,
  }: { readonly one?: { readonly at: string; readonly step: string } | null; readonly rows?: number } = {},
): Panels {
  const format = formatOf(name);
  const planes = planesOf(name, rows, k, WGSL_PANEL);
  const [values, shared] = planes;
  const block = planes.at(-1)!.to / 16;
  const index = (p: PlacedPlane, panel: string, row: string, quad: string): string => {
    const first = (offset * 4 + p.from) / 16;
    const start = one ? `${first} + ${one.at} * ${one.step}` : first;
    const words = Math.ceil(p.terms / p.run);
    const at = (panel: string): string => `(${panel} * ${words} + ${shifted(row, perWord(p))}) * 4 + ${quad}`;
    // Blocks of one plane are panels in order.
    if (rows === n || planes.length === 1) return `${start} + ${at(`(${panel})`)}`;
    const panels = rows / WGSL_PANEL;
    return `${start} + ((${panel}) / ${panels}) * ${block} + ${at(`((${panel}) % ${panels})`)}`;
  };
  const run = perWord(values!);
  const { value, scales } = format.wgsl;
  const at: Panels["at"] = (panel, row, quad) => index(values!, panel, row, quad);
  const scalesAt: Panels["scales"] = (panel, row, quad) => {
    if (!scales) return [];
    const second = perWord(shared!) / shared!.every === 2 ? `((${row}) & ${shared!.every}) != 0` : "false";
    return [`let h = weights[${index(shared!, panel, row, quad)}];`, ...scales("h", second)];
  };
  return {
    run,
    at,
    scales: scalesAt,
    value,
    some: (count, panel, row, quad) => {
      const steps = Array.from({ length: count }, (_, j) => j);
      const words = steps.slice(0, Math.ceil(count / run));
      // The part of a word of more that is wanted.
      const part = run > count ? ` >> vec4<u32>(u32((${row}) & ${run - count}) * ${32 / run}u)` : "";
      return lines`
        let p = ${at(panel, row, quad)};
        ${words.map((i) => `let w${i} = weights[p + ${4 * i}]${part};`)}
        ${scalesAt(panel, row, quad)}
        ${steps.map((j) => `let v${j} = ${value(`w${Math.floor(j / run)}`, j % run)};`)}`;
    },
  };
}
