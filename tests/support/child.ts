/** Runs one test file and reports what ran: the last line of its output is `weft-tests {json}`. */
import { pathToFileURL } from "node:url";
import { askRunner } from "./assembler.ts";

const g = globalThis as unknown as {
  UVU_DEFER: number;
  UVU_QUEUE: unknown[][];
  UVU_INDEX: number;
  weftTests: { registered: number };
};
g.UVU_DEFER = 1;
g.UVU_QUEUE = [[null]];
g.UVU_INDEX = 0;
g.weftTests = { registered: 0, narrowed: [] } as never;
const file = process.argv[2]!;
// Two thirds of the time to load on a software adapter, where nothing is read out of bounds; browsers, and
// webgpu.test.ts, load as shipped.
if (!/webgpu\.test\.[jt]s$/.test(file)) process.env.WEFT_DAWN ??= "enable-dawn-features=disable_robustness";
askRunner();
let passed = 0;
let error: string | null = null;
const write = process.stdout.write.bind(process.stdout);
let output = "";
process.stdout.write = ((chunk: string | Uint8Array) => {
  output += chunk;
  return write(chunk);
}) as typeof process.stdout.write;
try {
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
const { user, system } = process.cpuUsage();
const told = {
  registered: g.weftTests.registered,
  passed,
  error: error !== null,
  cpu: (user + system) / 1e6,
};
write(`\nweft-tests ${JSON.stringify(told)}\n`);
process.exit(error || passed !== g.weftTests.registered || passed === 0 ? 1 : 0);
