/**
 * A lane: plays test files one after another, as the runner asks for them, so that what they share (the
 * compiler's own code warmed up, kernels on the software device) is made once. After each file it writes a
 * line `weft-tests {json}` of what ran.
 */
import { pathToFileURL } from "node:url";
import { setFlagsFromString } from "node:v8";
import { askRunner } from "./assembler.ts";
import { shareDevice } from "./devices.ts";
import { long } from "./scale.ts";

const g = globalThis as unknown as {
  UVU_DEFER: number;
  UVU_QUEUE: unknown[][];
  UVU_INDEX: number;
  weftTests: { registered: number };
};
g.UVU_DEFER = 1;
g.UVU_INDEX = 0;
g.weftTests = { registered: 0 };
const channel = process.channel!;
// Tests call much a little: V8 optimises what has run nine times as long as by default, which leaves a tenth
// of the time of processors.
setFlagsFromString("--interrupt-budget=600000");
askRunner();

async function play(file: string): Promise<void> {
  g.UVU_QUEUE = [[null]];
  g.weftTests.registered = 0;
  const before = process.cpuUsage();
  let passed = 0;
  let error: string | null = null;
  const write = process.stdout.write.bind(process.stdout);
  let output = "";
  process.stdout.write = ((chunk: string | Uint8Array) => {
    output += chunk;
    return write(chunk);
  }) as typeof process.stdout.write;
  try {
    if (process.env.WEFT_SHARE) await shareDevice();
    await import(pathToFileURL(file).href);
    const { exec } = await import("uvu");
    await exec();
    passed = Number(/Passed:\s+(\d+)/.exec(output.replace(/\x1b\[\d+m/g, ""))?.[1] ?? 0);
  } catch (e) {
    error = (e as Error).stack ?? String(e);
  }
  process.stdout.write = write;
  if (error) write(`${error}\n`);
  else if (!g.weftTests.registered) write(`no test in it, or none that WEFT_TEST matches\n`);
  const { user, system } = process.cpuUsage(before);
  const { registered } = g.weftTests;
  const told = { registered, passed, error: error !== null, cpu: (user + system) / 1e6, long };
  write(`\nweft-tests ${JSON.stringify(told)}\n`);
}

process.on("message", ({ play: file }: { play?: string }) => {
  if (file === undefined) return;
  // While it plays only tests keep the process: one that waits for what never comes ends it, and fails.
  channel.unref();
  void play(file).then(() => channel.ref());
});
process.on("disconnect", () => process.exit());
