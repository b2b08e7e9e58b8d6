/**
 * Where tensors of adapters lie: in pages of one size, so that a slot is as many as its rank takes and any
 * page will do for any of it. A method's first pages hold the vectors of its branches, those of a branch
 * side by side; then come quads, four rows of every factor of a layer, as many a page as fit.
 */
import {
  mostStates,
  type ParamEntry,
  QUAD,
  QUAD_WORDS,
  quadsOf,
  ranked,
  SLOT_ROW,
  type TargetEntry,
} from "../runtime/bundle.ts";
import { type BranchSpec, tensorName } from "./layers.ts";
import { align } from "./target.ts";

export interface Pages {
  readonly factors: readonly ParamEntry[];
  readonly slots: TargetEntry["slots"];
  /** Words of a job's accumulators. */
  readonly jobWords: number;
}

export function placePages(branches: readonly BranchSpec[], train: readonly string[]): Pages {
  const of = (method: string): BranchSpec[] => branches.filter((b) => b.method.name === method);
  const methods = [...new Set(branches.map((b) => b.method.name))];
  const rowsOf = (b: BranchSpec, rows: "rank" | "one"): number => (rows === "rank" ? b.capacity : 1);
  const sizes = methods.map((method) => {
    let quad = 0;
    const homes = of(method).map((b) => {
      let home = 0;
      const tensors = b.tensors.map((t) => {
        const words = align((ranked(t) ? QUAD : rowsOf(b, t.rows)) * t.cols, 4);
        const offset = ranked(t) ? quad : home;
        if (ranked(t)) quad += words;
        else home += words;
        return { t, offset };
      });
      return { b, home, tensors };
    });
    return { method, quad, homes };
  });
  const page = align(
    Math.max(64, ...sizes.flatMap(({ quad, homes }) => [quad, ...homes.map((h) => h.home)])),
  );
  const places: TargetEntry["slots"]["branches"][number][] = [];
  let row = 0;
  for (const { homes } of sizes) {
    let [number, end] = [0, 0];
    for (const { b, home } of homes) {
      if (end + home > page) [number, end] = [number + 1, 0];
      const quads = b.tensors.some(ranked) ? quadsOf(b.capacity) : 0;
      places[b.index] = { at: row, quads, page: number, home: end };
      row += SLOT_ROW.quads + quads * QUAD_WORDS;
      end += home;
    }
  }
  const pagesOf = (homes: (typeof sizes)[number]["homes"]): number =>
    Math.max(0, ...homes.map(({ b, home }) => (home ? places[b.index]!.page + 1 : 0)));
  let jobWords = 0;
  const factors = sizes.flatMap(({ method, homes }) => {
    let accum = 0;
    const entries = homes.flatMap(({ b, tensors }) =>
      tensors.map(({ t, offset }): ParamEntry => {
        const n = rowsOf(b, t.rows);
        const words = align((ranked(t) ? quadsOf(n) * QUAD : n) * t.cols, 4);
        const entry: ParamEntry = {
          name: tensorName(b, t.name),
          kind: "factor",
          n,
          k: t.cols,
          format: "f32",
          branch: b.index,
          rows: t.rows,
          offset,
          words,
          accum: t.trained ? accum : -1,
          own: null,
        };
        if (t.trained) accum += (1 + mostStates) * words;
        return entry;
      }),
    );
    if (train.includes(method)) jobWords = Math.max(jobWords, align(accum));
    return entries;
  });
  return {
    factors,
    slots: {
      page,
      row,
      branches: places,
      methods: Object.fromEntries(
        sizes.map(({ method, quad, homes }) => [method, { homes: pagesOf(homes), quad }]),
      ),
    },
    jobWords,
  };
}
