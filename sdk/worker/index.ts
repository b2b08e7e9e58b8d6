/** An engine in a worker: the page stays awake, and the engine survives what ends it. */
import * as v from "valibot";
import type { Place } from "../../runtime/folders.ts";
import type { LoadOptions } from "../../runtime/loading.ts";
import { Reports } from "../../runtime/report.ts";
import { atLeast0, callback, check, exactly, type Of, object } from "../../runtime/schema.ts";
import type { AsyncEngine } from "../async.ts";
import type { Backend, Facts } from "../replay/backend.ts";
import { ReplayEngine } from "../replay/engine.ts";
import { replayEntries } from "../replay/options.ts";
import { Remote } from "./client.ts";
import { here, startWorker } from "./transport.ts";

export { type ErrorCode, WeftError } from "../../runtime/errors.ts";
export type { AsyncAdapter, AsyncEngine, AsyncJob } from "../async.ts";
export type {
  Completion,
  FinetuneOptions,
  GenerateOptions,
  Piece,
  TrainEvent,
  TrainResult,
} from "../engine.ts";
export type { RecoverEvent } from "../replay/options.ts";

const entries = {
  ...replayEntries,
  /**
   * A function that starts the worker, where a bundler is not to find its script (`worker-entry.js` in a
   * page, `entry.js` in Node). `false`: none, all in this thread. Default: the package's own.
   */
  worker: v.optional(v.union([exactly(false), callback<() => unknown>()], "false, or a function")),
  /**
   * Milliseconds between two questions whether the worker is still there; six without an answer are a loss.
   * Default 10000; 0: it is not asked.
   */
  heartbeat: v.optional(atLeast0),
};
const OwnOptions = object(entries);
export type WorkerOptions = LoadOptions & Of<typeof OwnOptions>;

const HEARTBEAT = 10_000;

/**
 * Load a bundle into a worker of its own. The engine is asked as one that `load` gives, but answers with
 * promises; and when its worker or device is lost, another takes its place: answers and jobs go on where they
 * were, with the same bits. Throws as `load`.
 */
export async function createWorkerEngine(location: Place, options: WorkerOptions = {}): Promise<AsyncEngine> {
  const { recover, onRecover, worker, heartbeat, onError, onProgress, onStep, signal, ...rest } = options;
  check(OwnOptions, { recover, onRecover, worker, heartbeat }, { code: "WEFT_OPTION", where: "" });
  const reporting = new Reports(onError);
  const progress = reporting.guard("onProgress", onProgress);
  const step = reporting.guard("onStep", onStep);
  let first = true;
  const open = async (like: Facts | null): Promise<Backend> => {
    const o = like ? { ...rest, ...computesAs(like) } : rest;
    // Who gave up loading gave up the first engine; later ones are opened for who uses it.
    const given = first ? signal : undefined;
    first = false;
    if (worker === false) {
      const [{ load }, { Local }] = await Promise.all([import("../engine.ts"), import("../replay/local.ts")]);
      const heard = { onProgress: progress, ...(onStep && { onStep: step }), signal: given };
      return new Local(await load(location, { ...o, ...heard }));
    }
    return Remote.open(
      () => startWorker(worker),
      {
        ...{ location: location instanceof URL ? location.href : location, here: here(), options: o },
        hears: { progress: onProgress !== undefined, step: onStep !== undefined },
      },
      { progress, step },
      given,
      heartbeat ?? HEARTBEAT,
    );
  };
  return ReplayEngine.open(open, { recover, onRecover }, reporting);
}
/** Another device would compute other bits. */
function computesAs({ device: { target, software, numerics } }: Facts): LoadOptions {
  if (target === "webgpu") return { device: software ? "software" : "webgpu" };
  return { device: "wasm", relaxed: numerics.startsWith("wasm relaxed") };
}
