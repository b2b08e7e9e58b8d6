/**
 * How many rows beside whole tiles go to the kernels for a few: they and the tiles give a row the same bits,
 * so the faster may have it. What a device takes for either is measured once for a bundle, and kept.
 */
import { BLOCK, COMMAND_WORDS, type Manifest } from "./bundle.ts";
import { cacheFolder } from "./cache.ts";
import type { Device } from "./device.ts";
import { sha256 } from "./hash.ts";
import { Check, idsOf, type List, type OpenHost, sameLeft } from "./invariance.ts";
import { node } from "./node.ts";

/**
 * What is chosen from: multiples of the four rows that share what is read of a matrix. Never none: attention
 * of single rows goes with it.
 */
export const CHOICES = [4, 8, 12, 16, 24, 32] as const;
const LEAST = CHOICES[0];
const MOST = CHOICES.at(-1)!;
/** Milliseconds that a measurement may take. */
const BUDGET = 300;
/** Of so many turns the shortest counts. */
const TURNS = 3;

/** Milliseconds that a device takes for a list. */
type Time = (list: List) => Promise<number>;

/** Of a list, what launches kernels that another has not. */
function own({ commands, meta }: List, other: List): List {
  const kernels = new Set<number>();
  for (let i = 0; i < other.commands.length; i += COMMAND_WORDS) kernels.add(other.commands[i]!);
  const words = commands.filter((_, i) => !kernels.has(commands[i - (i % COMMAND_WORDS)]!));
  return { commands: words, meta };
}

/**
 * The choice, by measuring in turns as long as kernels for a few win, and while there is time; what was not
 * measured stays as the device has it.
 */
export async function measured(
  manifest: Manifest,
  device: Device,
  open: OpenHost,
  time: Time,
  budget = BUDGET,
): Promise<number> {
  const { context, blocks, tokens } = manifest.capacities;
  const most = Math.min(tokens, context - 1, blocks * BLOCK - 1);
  const t0 = performance.now();
  const checkOf = async (fewRows: number): Promise<Check> =>
    new Check(manifest, device, await open(manifest, device, { fewRows }));
  // Attention is alike in both.
  const checks = [await checkOf(MOST), await checkOf(1)] as const;
  let chosen = device.families.fewRows!;
  let before: number = LEAST;
  for (const rows of CHOICES.slice(1)) {
    if (rows > most) break;
    const play = { ids: idsOf(rows, manifest.model.vocab), kind: "generate" } as const;
    const lefts = [];
    for (const check of checks) lefts.push((await check.play([play], rows))[0]!);
    if (!sameLeft(lefts[0]!, lefts[1]!)) return before;
    const [few, tiles] = [own(checks[0].list!, checks[1].list!), own(checks[1].list!, checks[0].list!)];
    const least = [Number.POSITIVE_INFINITY, Number.POSITIVE_INFINITY];
    // The first turn is to warm up.
    for (let turn = 0; turn <= TURNS; turn++) {
      if (performance.now() - t0 > budget) return chosen;
      for (const [i, list] of [few, tiles].entries()) {
        const ms = await time(list);
        if (turn) least[i] = Math.min(least[i]!, ms);
      }
    }
    if (least[0]! > least[1]!) return before;
    before = rows;
    chosen = Math.max(chosen, rows);
  }
  return chosen;
}

/** The file of a choice in the user's cache; null where nothing is kept. */
async function fileOf(bundle: string, adapter: string): Promise<string | null> {
  const folder = await cacheFolder("tuned");
  if (!folder) return null;
  const { path } = await node();
  return path.join(folder, `${await sha256(JSON.stringify([bundle, adapter]))}.json`);
}
/** Written aside and renamed. A cache that cannot be written is no reason to fail: the next load measures. */
async function keep(file: string, text: string): Promise<void> {
  const { fs } = await node();
  const aside = `${file}.${process.pid}`;
  try {
    await fs.writeFile(aside, text, { mode: 0o600 });
    await fs.rename(aside, file);
  } catch {
    await fs.rm(aside, { force: true }).catch(() => {});
  }
}
/** The choice for a bundle, by its hash, on a device: as it was kept, or measured now. */
export async function tuned(
  manifest: Manifest,
  device: Device,
  open: OpenHost,
  bundle: string,
): Promise<number> {
  const { fs } = await node();
  const file = await fileOf(bundle, device.tunes!);
  // What is not there, or not of this version, is measured anew.
  const text = file && (await fs.readFile(file, "utf8").catch(() => null));
  const kept = CHOICES.find((n) => text === JSON.stringify({ fewRows: n }));
  if (kept) return kept;
  const fewRows = await measured(manifest, device, open, async ({ commands, meta }) => {
    const t0 = performance.now();
    await device.run(0, commands, meta, []);
    return performance.now() - t0;
  });
  if (file) await keep(file, JSON.stringify({ fewRows }));
  return fewRows;
}
