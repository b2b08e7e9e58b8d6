/** What a fine-tuning job's results depend on: a checkpoint goes on with the same alone. */
import { IGNORE, type Manifest, type TargetEntry } from "./bundle.ts";
import type { AdapterContent } from "./content.ts";
import { sha256 } from "./hash.ts";
import type { Row } from "./rows.ts";
import { canonical, configOf, settingsOf, type TrainOptions } from "./training.ts";

const words = (list: readonly ArrayBufferView[]): Promise<string[]> =>
  Promise.all(list.map((x) => sha256(new Uint8Array(x.buffer, x.byteOffset, x.byteLength))));
/** Words hashed at a time. */
const PIECE = 2 ** 20;
async function hashOfRows(rows: readonly Row[]): Promise<string> {
  const pieces: Int32Array[] = [];
  let piece: number[] = [];
  const flush = (): void => {
    pieces.push(Int32Array.from(piece));
    piece = [];
  };
  for (const { input_ids, labels } of rows) {
    piece.push(input_ids.length);
    for (const id of input_ids) piece.push(id);
    for (const id of labels) piece.push(id);
    if (piece.length >= PIECE) flush();
  }
  flush();
  return sha256((await words(pieces)).join());
}
async function hashOfContent(c: AdapterContent): Promise<string> {
  return sha256(canonical([c.config, c.branches, await words(c.tensors)]));
}
/** How adapters, moments and weights lie on the device, word by word: so a checkpoint keeps them. */
const layoutOf = (
  { branches, selection }: Manifest,
  { panel, slots, jobWords, factors, layerParams, outerParams }: TargetEntry,
): Promise<string> =>
  sha256(
    canonical([
      panel,
      slots,
      jobWords,
      branches.map(({ method, site, capacity }) => [method, site, capacity]),
      [...factors, ...layerParams, ...outerParams].map((p) => [p.name, p.offset, p.accum, p.n, p.k, p.own]),
      selection?.layers ?? null,
    ]),
  );
/**
 * What a job's results depend on beside the base and the device's numerics, by value: a checkpoint goes on
 * with the same alone. Rows, and adapters to start from, are hashes of what they hold; names, and options
 * that never change a result, are not in it.
 */
export async function identityOf(
  manifest: Manifest,
  plan: TargetEntry,
  o: TrainOptions,
): Promise<Readonly<Record<string, unknown>>> {
  const learned = o.rows.filter((r) => r.labels.some((id, i) => i > 0 && id !== IGNORE)).length;
  const identity = {
    method: o.method,
    format: manifest.model.format,
    layout: await layoutOf(manifest, plan),
    adapter: o.method === "full" ? null : configOf(manifest, o),
    settings: settingsOf(o, learned),
    rows: await hashOfRows(o.rows),
    evalRows: o.evalRows ? await hashOfRows(o.evalRows) : null,
    from: o.from ? await hashOfContent(o.from) : null,
    disjointFrom: await Promise.all((o.disjointFrom ?? []).map(hashOfContent)),
  };
  return JSON.parse(canonical(identity)) as Readonly<Record<string, unknown>>;
}
