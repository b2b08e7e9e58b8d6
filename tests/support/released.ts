/**
 * Run with --expose-gc: opens engines on a bundle, and disposes of them or drops them. Its last line says
 * what was given back: memories still reachable (the engines that were disposed of are held on to), threads
 * alive, and dropped engines whose threads did not end.
 */
import { readdirSync } from "node:fs";
import { createRequire, syncBuiltinESMExports } from "node:module";
import type { Worker } from "node:worker_threads";
import { type Engine, load } from "../../sdk/index.ts";

const [, , bundle, count] = process.argv;
const memories: WeakRef<WebAssembly.Memory>[] = [];
const { Memory } = WebAssembly;
WebAssembly.Memory = new Proxy(Memory, {
  construct: (of, args) => {
    const memory = new of(...(args as [WebAssembly.MemoryDescriptor]));
    memories.push(new WeakRef(memory));
    return memory;
  },
});
const threads = createRequire(import.meta.url)("node:worker_threads") as { Worker: typeof Worker };
const running = new Set<Worker>();
threads.Worker = new Proxy(threads.Worker, {
  construct: (of, args) => {
    const worker = new of(...(args as ConstructorParameters<typeof Worker>));
    running.add(worker);
    worker.on("exit", () => running.delete(worker));
    return worker;
  },
});
syncBuiltinESMExports();

const tasks = (): number => readdirSync("/proc/self/task").length;
const turn = (): Promise<void> => new Promise((r) => setTimeout(r, 5));
const collected = async (done: () => boolean): Promise<boolean> => {
  for (let i = 0; i < 200; i++) {
    (globalThis as unknown as { gc(): void }).gc();
    // A look at a weak reference keeps what it refers to until the turn is over.
    await turn();
    if (done()) return true;
    await turn();
  }
  return false;
};
const used = async (): Promise<Engine> => {
  const engine = await load(bundle!, { device: "wasm", threads: 2 });
  const job = await engine.finetune({ name: "j", data: [{ input_ids: [5, 6, 7, 8] }], steps: 1 });
  await job.done;
  await engine.complete({ prompt: [5, 6, 7], maxTokens: 2 });
  return engine;
};
const held: Engine[] = [];
const first = await used();
await first.dispose();
held.push(first);
const before = tasks();
for (let i = 0; i < Number(count); i++) {
  const engine = await used();
  await engine.dispose();
  held.push(engine);
}
const after = tasks();
const alive = (): number => memories.filter((m) => m.deref()).length;
await collected(() => alive() === 0);
const reachable = alive();
const ended = running.size;
await (async () => {
  await used();
  await used();
})();
const dropped = await collected(() => running.size === 0 && alive() === 0);
console.log(
  `released ${JSON.stringify({
    ...{ reachable, threads: after - before, running: ended, dropped },
    held: held.length,
  })}`,
);
