/** Starts fine-tuning jobs: what is wrong in options or rows is said here, and not at step 40. */
import { type Manifest, WeftError } from "./bundle.ts";
import type { Engine } from "./engine.ts";
import { type Data, Job } from "./job.ts";
import { resolveBranches } from "./match.ts";
import { checked, TrainOptions as TrainOptionsSchema } from "./options.ts";
import { evalItems, trainItems } from "./rows.ts";
import { adapterName, didYouMean } from "./schema.ts";
import { throwIfAborted } from "./signals.ts";
import { canonical, configOf, type TrainOptions } from "./training.ts";

export { Job } from "./job.ts";
export type { Row } from "./rows.ts";
export type {
  TrainEvent,
  TrainOptions,
  TrainResult,
  TrainState,
} from "./training.ts";

/** The largest rank that the bundle has room for. */
const largestRank = (manifest: Manifest, method: string): number =>
  Math.max(...manifest.branches.map((b) => (b.method === method ? b.capacity : 0)));
/** Tokens of its own that the job's adapter puts before every row. */
function virtualOf(manifest: Manifest, o: TrainOptions): number {
  if (!manifest.methods[o.method]?.virtual) return 0;
  return configOf(manifest, o).rank ?? largestRank(manifest, o.method);
}

function refuse(where: string, expected: string, found: string, hint?: string): never {
  throw new WeftError({ code: "WEFT_OPTION", where, expected, found, ...(hint && { hint }) });
}
const said = (value: unknown): string => JSON.stringify(value) ?? typeof value;
/** Options that the method would ignore are refused, and ranks that it cannot have: WEFT_OPTION. */
function checkUsed(manifest: Manifest, o: TrainOptions): void {
  const { method, adapter, publishEvery, disjointFrom, tuned } = o;
  const none = (options: object, why: string): void => {
    for (const [key, value] of Object.entries(options))
      if (value !== undefined && value !== null) refuse(key, `none: ${why}`, said(value));
  };
  if (method === "full") {
    none({ ...adapter, publishEvery, disjointFrom, tuned }, "full training has no adapter");
    return;
  }
  const own = manifest.methods[method]!;
  const { dropout } = configOf(manifest, o);
  if (dropout > 0 && !own.dropout) refuse("dropout", `0: ${method} has none`, said(dropout));
  const { alpha, rslora, alphaPattern, rank = 1 } = adapter ?? {};
  if (own.scale === "one" && !o.from) none({ alpha, rslora, alphaPattern }, `${method} has no scale`);
  const most = largestRank(manifest, method);
  const hint = most > 1 ? "compile the bundle with a larger rank" : undefined;
  if (rank > most) refuse("rank", `at most ${most} for ${method}`, said(rank), hint);
}

/** What is wrong with the adapter that is asked for, whatever it learns from. */
export async function checkAdapter(manifest: Manifest, o: TrainOptions): Promise<void> {
  if (!Object.hasOwn(manifest.methods, o.method)) return;
  checkUsed(manifest, o);
  await resolveBranches(manifest, configOf(manifest, o));
}
/**
 * Start a job on an engine. Throws at once for what is wrong in options or rows, and for a conflict: no free
 * job, a name in use, weights owned by another, requests that full training would change the weights of.
 */
export function startJob(engine: Engine, o: TrainOptions, running: Iterable<Job>): Job {
  checked(TrainOptionsSchema, o);
  const { manifest } = engine;
  engine.check();
  throwIfAborted(o.signal);
  if (!manifest.train.includes(o.method)) {
    const near = didYouMean(o.method, manifest.train);
    const how = `compile with --train ${o.method} (train: [${JSON.stringify(o.method)}])`;
    const there = manifest.train.join(", ") || "a bundle compiled for training";
    refuse("method", there, o.method, near ? `${near} or ${how}` : how);
  }
  if (o.epochs !== undefined && o.steps !== undefined) refuse("steps", "epochs or steps", "both");
  if (o.method !== "full") checked(adapterName, o.name, { where: "name" });
  const optimizer = o.optimizer ?? "adamw";
  if (!manifest.updates.optimizers.includes(optimizer))
    refuse("optimizer", manifest.updates.optimizers.join(", "), optimizer, "compile the bundle anew");
  for (const j of running)
    if (!j.finished && j.name === o.name)
      throw new WeftError({
        code: "WEFT_CONFLICT",
        where: `job ${o.name}`,
        expected: "a name no running job has",
        found: "one that is running",
      });
  if (o.from && o.from.config.method !== o.method)
    refuse("from", `an adapter of method ${o.method}`, `one of method ${o.from.config.method}`);
  for (const key of ["rank", "alpha", "rslora", "targetModules", "rankPattern", "alphaPattern"] as const) {
    const [asked, has] = [o.adapter?.[key], o.from?.config[key]];
    if (o.from && asked !== undefined && canonical(asked) !== canonical(has))
      refuse(key, `${said(has)}, as what it starts from has it`, said(asked));
  }
  if (o.from?.replaces)
    throw new WeftError({
      code: "WEFT_ADAPTER",
      where: "from",
      expected: "an adapter that shares the base",
      found: `one with modules of its own (${[...o.from.replaces.keys()][0]}, …)`,
      hint: "merge it and save the model",
    });
  if (engine.merged)
    throw new WeftError({
      code: "WEFT_CONFLICT",
      where: `job ${o.name}`,
      expected: "a base with nothing merged",
      found: engine.merged,
      hint: "merge(null) first",
    });
  const full = o.method === "full";
  const found = full ? engine.inUse : engine.exclusive;
  if (found)
    throw new WeftError({
      code: "WEFT_CONFLICT",
      where: `job ${o.name}`,
      expected: `base weights that nobody ${full ? "uses" : "changes"}`,
      found,
      retryable: true,
    });
  if (o.select === "best" && (full || !o.evalRows))
    refuse("select", full ? "last: full training keeps one" : "evalData to choose by", "best");
  checkUsed(manifest, o);
  const virtual = virtualOf(manifest, o);
  const data: Data = {
    ...trainItems(manifest, o.rows, virtual),
    evalItems: o.evalRows ? evalItems(manifest, o.evalRows, virtual) : [],
  };
  const index = engine.freeJob();
  if (index === null)
    throw new WeftError({
      code: "WEFT_CAPACITY",
      where: "jobs",
      expected: `at most ${manifest.capacities.jobs} jobs at once`,
      found: "one more",
      retryable: true,
    });
  if (full) engine.own("full training");
  const job = new Job(engine, index, o, data);
  engine.attach(index, job);
  return job;
}
