/** The package's worker from its sources: Node 20 gives a thread none of what tsx does for the process. */
import { Worker } from "node:worker_threads";

const entry = new URL("../../sdk/worker/entry.ts", import.meta.url).href;
const tsx = import.meta.resolve("tsx/esm/api");
export const fromSources = (): Worker =>
  new Worker(
    `import(${JSON.stringify(tsx)}).then(({ register }) => {
      register();
      return import(${JSON.stringify(entry)});
    })`,
    { eval: true },
  );
