#!/usr/bin/env node
// The command line, from a checkout: sets up what is missing, then runs sdk/cli.ts.
process.argv.splice(2, 0, "sdk/cli.ts");
await import("./setup.mjs");
