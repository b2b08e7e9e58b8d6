#!/usr/bin/env node
// The command line, from a checkout: sets up what is missing, then runs sdk/cli.ts.
import { spawnSync } from "node:child_process";
import { fileURLToPath } from "node:url";

const setup = fileURLToPath(new URL("./setup.mjs", import.meta.url));
const run = spawnSync(process.execPath, [setup, "sdk/cli.ts", ...process.argv.slice(2)], {
  stdio: "inherit",
});
process.exit(run.status ?? 1);
