/** A contender's side of the conversation: a request a line in, an answer a line out. */
import { readFileSync } from "node:fs";
import { createInterface } from "node:readline";

/**
 * Peak memory of this process, MiB: the high-water mark of its own memory, since getrusage also counts what
 * its parent had when it forked.
 */
const peak = () => Number(/VmHWM:\s+(\d+)/.exec(readFileSync("/proc/self/status", "utf8"))[1]) / 1024;
export const median = (xs) => [...xs].sort((a, b) => a - b)[xs.length >> 1];
/** Milliseconds of f, after one run that does not count. */
export async function timed(f, repeats = 3) {
  await f();
  const ms = [];
  for (let i = 0; i < repeats; i++) {
    const t0 = performance.now();
    await f();
    ms.push(performance.now() - t0);
  }
  return median(ms);
}
export async function serve(handlers) {
  const say = (x) => process.stdout.write(`answer ${JSON.stringify(x)}\n`);
  say({ ready: true });
  for await (const line of createInterface({ input: process.stdin })) {
    const { what, ...args } = JSON.parse(line);
    try {
      say(what === "rss" ? { mib: peak() } : await handlers[what](args));
    } catch (e) {
      say({ error: String(e?.stack ?? e) });
    }
  }
  process.exit(0);
}
export const prompt = (n, seed) =>
  Array.from({ length: n }, (_, i) => (i * 7919 + seed * 104729 + 13) % 40000);
