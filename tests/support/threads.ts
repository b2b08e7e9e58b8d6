/** Threads of Node that a test wants to know of. */
import { createRequire, syncBuiltinESMExports } from "node:module";
import type { Worker } from "node:worker_threads";

const threads = createRequire(import.meta.url)("node:worker_threads") as { Worker: typeof Worker };
/** Threads that are started while `f` runs: `program` replaces theirs. */
export async function withWorkers(
  f: (started: Worker[], gone: Promise<unknown>[]) => Promise<void>,
  program?: string,
) {
  const { Worker: Real } = threads;
  const started: Worker[] = [];
  const gone: Promise<unknown>[] = [];
  threads.Worker = new Proxy(Real, {
    construct: (of, [own, o]: ConstructorParameters<typeof Worker>) => {
      const w = new of(program ?? own, o);
      started.push(w);
      gone.push(new Promise((resolve) => w.once("exit", resolve)));
      return w;
    },
  });
  syncBuiltinESMExports();
  try {
    await f(started, gone);
  } finally {
    threads.Worker = Real;
    syncBuiltinESMExports();
  }
}
