/** Starts fine-tuning jobs: what is wrong in options or rows is said here, and not at step 40. */
import { type Manifest, WeftError } from "./bundle.ts";
import type { Engine } from "./engine.ts";
import { type Data, Job } from "./job.ts";
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

/** Tokens of its own that the job's adapter puts before every row. */
function virtualOf(manifest: Manifest, o: TrainOptions): number {
  if (!manifest.methods[o.method]?.virtual) return 0;
  return (
    configOf(manifest, o).rank ??
    Math.max(...manifest.branches.map((b) => (b.method === o.method ? b.capacity : 0)))
  );
}

/** Options that the method would ignore are refused: WEFT_OPTION. */
function checkUsed(manifest: Manifest, o: TrainOptions): void {
  const refuse = (where: string, expected: string, found: string): never => {
    throw new WeftError({ code: "WEFT_OPTION", where, expected, found });
  };
  if (o.method === "full") {
    const { publishEvery, disjointFrom, tuned } = o;
    for (const [key, value] of Object.entries({ ...o.adapter, publishEvery, disjointFrom, tuned }))
      if (value !== undefined && value !== null)
        refuse(key, "none: full training has no adapter", JSON.stringify(value) ?? typeof value);
    return;
  }
  const { dropout } = configOf(manifest, o);
  if (dropout > 0 && !manifest.methods[o.method]!.dropout)
    refuse("dropout", `0: ${o.method} has none`, String(dropout));
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
    throw new WeftError({
      code: "WEFT_OPTION",
      where: "method",
      expected: manifest.train.join(", ") || "a bundle compiled for training",
      found: o.method,
      hint: near ? `${near} or ${how}` : how,
    });
  }
  if (o.epochs !== undefined && o.steps !== undefined)
    throw new WeftError({
      code: "WEFT_OPTION",
      where: "steps",
      expected: "epochs or steps",
      found: `both: ${o.epochs} epochs, ${o.steps} steps`,
    });
  if (o.method !== "full") checked(adapterName, o.name, { where: "name" });
  const optimizer = o.optimizer ?? "adamw";
  if (!manifest.updates.optimizers.includes(optimizer))
    throw new WeftError({
      code: "WEFT_OPTION",
      where: "optimizer",
      expected: manifest.updates.optimizers.join(", "),
      found: optimizer,
      hint: "compile the bundle anew",
    });
  for (const j of running)
    if (!j.finished && j.name === o.name)
      throw new WeftError({
        code: "WEFT_CONFLICT",
        where: `job ${o.name}`,
        expected: "a name no running job has",
        found: "one that is running",
      });
  if (o.from && o.from.config.method !== o.method)
    throw new WeftError({
      code: "WEFT_OPTION",
      where: "from",
      expected: `an adapter of method ${o.method}`,
      found: `one of method ${o.from.config.method}`,
    });
  for (const key of ["rank", "alpha", "rslora", "targetModules", "rankPattern", "alphaPattern"] as const) {
    const [asked, has] = [o.adapter?.[key], o.from?.config[key]];
    if (o.from && asked !== undefined && canonical(asked) !== canonical(has))
      throw new WeftError({
        code: "WEFT_OPTION",
        where: key,
        expected: `${JSON.stringify(has)}, as the adapter has it that the job starts from`,
        found: JSON.stringify(asked),
      });
  }
  if (o.from?.replaces)
    throw new WeftError({
      code: "WEFT_ADAPTER",
      where: "from",
      expected: "an adapter that shares the base",
      found: `one with modules of its own (${[...o.from.replaces.keys()][0]}, …)`,
      hint: "merge it and save the model to go on from it",
    });
  if (engine.merged)
    throw new WeftError({
      code: "WEFT_CONFLICT",
      where: `job ${o.name}`,
      expected: "a base without a merged adapter",
      found: `${engine.merged} merged into it`,
      hint: "merge(null) first",
    });
  const full = o.method === "full";
  const found = full ? engine.inUse : engine.exclusive;
  if (found)
    throw new WeftError({
      code: "WEFT_CONFLICT",
      where: `job ${o.name}`,
      expected: full
        ? "exclusive use of the base weights for full training"
        : "base weights that nobody changes",
      found,
      retryable: true,
    });
  if (o.select === "best" && (full || !o.evalRows))
    throw new WeftError({
      code: "WEFT_OPTION",
      where: "select",
      expected: full ? "last: full training keeps no other weights" : "evalData to choose the best step by",
      found: "best",
    });
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
