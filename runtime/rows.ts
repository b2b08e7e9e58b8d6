/** Training rows: checked, shifted, and put behind the tokens of an adapter's own. */
import { BLOCK, IGNORE, type Manifest, WeftError } from "./bundle.ts";

/**
 * One training sequence; labels[i] is the id to predict at position i of input_ids (Hugging Face convention:
 * the same index, shifted inside), -100 ignored.
 */
export interface Row {
  readonly input_ids: readonly number[];
  readonly labels: readonly number[];
  /** Where it came from, as an error names it: a line of a file. Default is its number. */
  readonly at?: string;
}

/** A row as the forward takes it. */
export interface Item {
  readonly at: string;
  /** Rows of the forward: all ids but the last. */
  readonly ids: readonly number[];
  /** What each row predicts, -100 for none. */
  readonly next: readonly number[];
  readonly labels: number;
  readonly weight: number;
  readonly dropKey: number;
  readonly dropP: number;
}
function prepare(row: Row, index: number, what: string, context: number, vocab: number): Item {
  const where = row.at ?? `${what}, row ${index + 1}`;
  if (row.input_ids.length !== row.labels.length)
    throw new WeftError({
      code: "WEFT_DATA",
      where,
      expected: `${row.input_ids.length} labels`,
      found: String(row.labels.length),
    });
  if (row.input_ids.length > context + 1)
    throw new WeftError({
      code: "WEFT_DATA",
      where,
      expected: `at most ${context} tokens`,
      found: String(row.input_ids.length),
      hint: "split the row, or compile with a larger context",
    });
  for (const id of row.input_ids)
    if (!Number.isInteger(id) || id < 0 || id >= vocab)
      throw new WeftError({
        code: "WEFT_DATA",
        where,
        expected: `token ids below ${vocab}`,
        found: String(id),
      });
  for (const id of row.labels)
    if (!Number.isInteger(id) || id >= vocab || (id < 0 && id !== IGNORE))
      throw new WeftError({
        code: "WEFT_DATA",
        where,
        expected: `labels below ${vocab}, or ${IGNORE}`,
        found: String(id),
      });
  const ids = row.input_ids.slice(0, -1);
  const next = row.labels.slice(1);
  // Rows after the last label teach nothing.
  let end = next.length;
  while (end > 0 && next[end - 1] === IGNORE) end--;
  return {
    at: where,
    ids: ids.slice(0, end),
    next: next.slice(0, end),
    labels: next.filter((x) => x !== IGNORE).length,
    weight: 0,
    dropKey: 0,
    dropP: 0,
  };
}
/**
 * Rows of `what` that have something to learn, each checked. Throws WEFT_DATA for the first that is wrong, or
 * when none is left.
 */
function prepared(manifest: Manifest, rows: readonly Row[], what: string, virtual: number): Item[] {
  const { capacities, model } = manifest;
  const context = Math.min(capacities.context, capacities.blocks * BLOCK) - virtual;
  const learned = rows
    .map((row, i) => prepare(row, i, what, context, model.vocab))
    .filter((x) => x.labels > 0);
  if (!learned.length)
    throw new WeftError({
      code: "WEFT_DATA",
      where: what,
      expected: "rows with at least one token to learn",
      found: `${rows.length} rows, none with labels`,
    });
  return learned;
}

/** Rows to evaluate: they go through the forward alone. */
export const evalItems = (manifest: Manifest, rows: readonly Row[], virtual: number): Item[] =>
  prepared(manifest, rows, "evalData", virtual);

/**
 * Rows to train on, behind `virtual` tokens of the adapter's own. Throws WEFT_CAPACITY for one that the saved
 * rows have no room for.
 */
export function trainItems(
  manifest: Manifest,
  rows: readonly Row[],
  virtual: number,
): { items: Item[]; skippedRows: number } {
  const { capacities } = manifest;
  const items = prepared(manifest, rows, "data", virtual).map(
    (x): Item => ({
      ...x,
      ids: [...Array<number>(virtual).fill(0), ...x.ids],
      next: [...Array<number>(virtual).fill(IGNORE), ...x.next],
    }),
  );
  const longest = Math.min(capacities.savedRows, capacities.blocks * BLOCK);
  const tooLong = items.find((x) => x.ids.length > longest);
  if (tooLong)
    throw new WeftError({
      code: "WEFT_CAPACITY",
      where: tooLong.at,
      expected: `at most ${longest} tokens`,
      found: String(tooLong.ids.length),
      hint: "compile with larger savedRows",
    });
  return { items, skippedRows: rows.length - items.length };
}
