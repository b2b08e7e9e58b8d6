/**
 * npm run -s bench -- NAME [options]: a table, then one line of JSON. Baselines run in the same process,
 * interleaved; medians and spread.
 */
import { readdirSync } from "node:fs";
import { fileURLToPath } from "node:url";

const here = fileURLToPath(new URL(".", import.meta.url));
const names = readdirSync(here)
  .filter(
    (f) =>
      f.endsWith(".ts") && !["run.ts", "measure.ts", "model.ts", "contender.ts", "machine.ts"].includes(f),
  )
  .map((f) => f.slice(0, -3));
const [name, ...rest] = process.argv.slice(2);
if (!name || !names.includes(name)) {
  console.error(`usage: npm run -s bench -- ${names.join(" | ")}`);
  process.exit(1);
}
const { main } = (await import(`./${name}.ts`)) as { main: (args: string[]) => Promise<void> };
await main(rest);
process.exit(0);
