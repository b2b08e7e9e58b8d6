/** In a page: adapters are the browser's own. */
import type * as there from "./dawn.ts";
import { askAdapter } from "./gpu.ts";

export const openAdapter: typeof there.openAdapter = (kind) =>
  askAdapter(kind, async () => (navigator as Partial<Navigator>).gpu ?? null);
export const settled: typeof there.settled = async (work, _, queue) =>
  navigator.userAgent.includes("Firefox") ? (await import("./nudged.ts")).nudged(work, queue) : work;
export const destroyAtExit: typeof there.destroyAtExit = () => () => {};
export const mayHaveGpu: typeof there.mayHaveGpu = async () => "gpu" in navigator;
