/**
 * How much a load has room for, from what the bundle's plan takes for one of each. Pure arithmetic, the same
 * for `load`, `inspect` and `doctor`: kernels do not depend on it, so one bundle runs on a phone and on a
 * server, with the same bits.
 */
import { SLOT_TABLE } from "./contract.ts";
import { WeftError } from "./errors.ts";
import { type CapacityEntry, type Manifest, MOST_JOBS, type TargetEntry } from "./manifest.ts";
import { showBytes } from "./units.ts";

/** What is chosen at load; a bundle's own capacities are what it is meant for. */
export const sizeNames = ["blocks", "sequences", "slots", "pages", "jobs", "savedRows", "keptRows"] as const;
export type Sizes = Pick<CapacityEntry, (typeof sizeNames)[number]>;

interface Chambers {
  readonly layer: number;
  readonly outer: number;
}
/** A target's plan with its chambers, in words. */
export interface Plan extends TargetEntry {
  readonly spaces: Readonly<Record<"weights" | "kv" | "saved" | "adapters" | "accum" | "tables", Chambers>>;
  readonly arenaWords: number;
  readonly metaWords: number;
  /** The step's block of metadata, with a table of cache blocks for each sequence. */
  readonly stepWords: number;
}

/** 256-byte alignment, in words. */
const align = (words: number): number => Math.max(64, Math.ceil(words / 64) * 64);
/** Tiles read up to a panel past a row. */
const SLACK = 64;

/** Pages of a slot whose adapter has so many quads at most in any branch. */
export const pagesFor = ({ slots }: TargetEntry, method: string, quads: number): number => {
  const { homes, quad } = slots.methods[method]!;
  return homes + (quads ? Math.ceil(quads / Math.floor(slots.page / quad)) : 0);
};
/** Pages of the largest adapter. */
export const pagesAtMost = (m: Pick<Manifest, "branches">, plan: TargetEntry): number =>
  Math.max(1, ...m.branches.map((b) => pagesFor(plan, b.method, plan.slots.branches[b.index]!.quads)));

/** What a plan depends on. */
export type Sized = Pick<Manifest, "capacities" | "train" | "saved" | "branches" | "targets">;
function targetOf(m: Sized, target: "wasm" | "webgpu"): TargetEntry {
  const plan = m.targets[target];
  if (!plan)
    throw new WeftError({
      code: "WEFT_DEVICE",
      where: "target",
      expected: `a bundle compiled for ${target}`,
      found: Object.keys(m.targets).join(", "),
    });
  return plan;
}
/** The plan of a target for these sizes. */
export function planOf(m: Sized, target: "wasm" | "webgpu", s: Sizes): Plan {
  const plan = targetOf(m, target);
  const { room, blocks } = plan;
  const records = Object.entries(m.saved);
  const kept = Math.max(0, ...records.map(([, { words }]) => words.kept));
  const boundary = Math.max(0, ...records.map(([, { words }]) => words.boundary));
  // Kept records begin at a multiple of their own length behind the others.
  const saved = m.train.length ? s.savedRows * boundary + (s.keptRows + 1) * kept + SLACK : 0;
  const step = blocks.step.words + s.sequences * Math.ceil(m.capacities.context / 32);
  const stepWords = align(step);
  return {
    ...plan,
    spaces: {
      weights: room.weights,
      kv: { layer: s.blocks * room.block, outer: 64 },
      saved: { layer: align(saved), outer: align(s.savedRows * room.hidden + SLACK) },
      adapters: { layer: align(s.pages * plan.slots.page + SLACK), outer: 64 },
      accum: {
        layer: align(Math.max(room.accum.layer, s.jobs * plan.jobWords)),
        // Behind it, the loss of each saved row.
        outer: align(room.accum.outer + (m.train.length ? s.savedRows : 0)),
      },
      tables: { layer: align(SLOT_TABLE + (s.slots + 1) * plan.slots.row), outer: 128 },
    },
    arenaWords: align(room.arena + s.savedRows * room.work + SLACK),
    metaWords: stepWords + m.capacities.units * blocks.unit.words + (s.jobs + s.slots) * blocks.update.words,
    stepWords,
  };
}

/** Bytes that a device has: in all, and for one chamber. */
export interface Limits {
  readonly memory: number;
  readonly chamber: number;
  /** What may be done where that is not enough. */
  readonly hint?: string;
}
/** What a plan takes on a device, in bytes: by purpose, in all, and its largest chamber, with its purpose. */
export type Measure = (plan: Plan) => {
  readonly bytes: Readonly<Record<string, number>>;
  readonly total: number;
  readonly largest: readonly [bytes: number, purpose: string];
};

/**
 * The sizes of a load: those of `capacities`, and of the others as much as fits `memory` and the device's
 * limits: up to what the bundle is meant for; and where `memory` leaves more, room for more requests. Throws
 * WEFT_CAPACITY that tells what the smallest would take.
 */
export function sizesFor(
  m: Sized,
  target: "wasm" | "webgpu",
  {
    memory,
    capacities: asked = {},
  }: { memory?: number | undefined; capacities?: Partial<Sizes> | undefined },
  limits: Limits,
  measure: Measure,
): Sizes {
  const plan = targetOf(m, target);
  checkSizes(m, plan, asked);
  const least = leastOf(m, plan);
  const most = Math.min(memory ?? limits.memory, limits.memory);
  const at = (share: number): Sizes => {
    const of = (name: SizeName): number => {
      const want = m.capacities[name];
      const low = Math.min(want, least[name]);
      const size = share <= 1 ? low + (want - low) * share : want * (forRequests.has(name) ? share : 1);
      // Slots that are asked for have pages in proportion.
      const slots = name === "pages" && asked.slots ? want * (asked.slots / m.capacities.slots) : null;
      return asked[name] ?? Math.floor(slots ? Math.max(low, slots) : size);
    };
    return Object.fromEntries(sizeNames.map((name) => [name, of(name)])) as Sizes;
  };
  const fits = (share: number): boolean => {
    const { total, largest } = measure(planOf(m, target, at(share)));
    return total <= most && largest[0] <= limits.chamber;
  };
  if (!fits(0)) {
    const least = measure(planOf(m, target, at(0)));
    const list = Object.entries(least.bytes).sort(([, a], [, b]) => b - a);
    const over = least.total > most;
    throw new WeftError({
      code: "WEFT_CAPACITY",
      where: `memory of target ${target}`,
      expected: over
        ? `at least ${enough(least.total)} (${list.map(([space, n]) => `${space} ${enough(n)}`).join(", ")})`
        : `a binding of ${enough(least.largest[0])}, for ${least.largest[1]}`,
      found: showBytes(over ? most : limits.chamber, Math.floor),
      hint:
        limits.hint ??
        `${memory === undefined ? "" : "allow it more, or "}compile with --format int8 or f16, or with ` +
          "smaller capacities",
    });
  }
  let [low, high] = fits(1) ? [1, memory === undefined ? 1 : MOST_SHARE] : [0, 1];
  if (fits(high)) return at(high);
  // Until the shares next to each other give the same sizes.
  for (let i = 0; i < 24; i++) {
    const middle = (low + high) / 2;
    if (fits(middle)) low = middle;
    else high = middle;
  }
  return at(low);
}
type SizeName = (typeof sizeNames)[number];
/** Of more of these, more requests run at once. */
const forRequests: ReadonlySet<SizeName> = new Set(["blocks", "sequences", "slots", "pages"]);
/** More than this many times what a bundle is meant for helps nobody. */
const MOST_SHARE = 64;
/** Who allows as much as this says has allowed enough. */
const enough = (bytes: number): string => showBytes(bytes, Math.ceil);

/** One request and one job at a time, of a whole context. */
function leastOf(m: Sized, plan: TargetEntry): Sizes {
  const { context, quantum, unitRows } = m.capacities;
  return {
    blocks: Math.ceil(context / 32),
    sequences: 4,
    slots: 1,
    pages: pagesAtMost(m, plan),
    jobs: 1,
    savedRows: Math.max(quantum, Math.min(context, unitRows)),
    keptRows: quantum,
  };
}
/** Throws WEFT_CAPACITY for sizes that no bundle has. */
function checkSizes(m: Sized, plan: TargetEntry, asked: Partial<Sizes>): void {
  const refuse = (name: string, expected: string, found: number): never => {
    throw new WeftError({
      code: "WEFT_CAPACITY",
      where: `capacities.${name}`,
      expected,
      found: String(found),
    });
  };
  const jobs = asked.jobs ?? m.capacities.jobs;
  if (jobs > MOST_JOBS) refuse("jobs", `at most ${MOST_JOBS}`, jobs);
  const pages = pagesAtMost(m, plan);
  if (asked.pages !== undefined && asked.pages < pages)
    refuse("pages", `at least ${pages} pages to hold the largest adapter`, asked.pages);
  const blocks = Math.ceil(m.capacities.context / 32);
  if (asked.blocks !== undefined && asked.blocks < blocks)
    refuse("blocks", `at least ${blocks} blocks to hold one context`, asked.blocks);
}
