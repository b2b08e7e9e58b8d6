// Dependency-free: installs what the lock file says when it is not there yet, then runs a script with tsx.
// Used by npm start, npm test and the CI.
import { spawn, spawnSync } from "node:child_process";
import { existsSync, readFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

const root = join(dirname(fileURLToPath(import.meta.url)), "..");
const [major] = process.versions.node.split(".").map(Number);
if (major < 20) {
  console.error(`weft needs Node 20 or newer, found ${process.versions.node}`);
  process.exit(1);
}

/** Is every package of the lock file installed in its version? */
function installed() {
  const marker = join(root, "node_modules/.package-lock.json");
  if (!existsSync(marker)) return false;
  const want = JSON.parse(readFileSync(join(root, "package-lock.json"), "utf8")).packages;
  const have = JSON.parse(readFileSync(marker, "utf8")).packages;
  return Object.entries(want).every(
    ([path, p]) => path === "" || p.optional || have[path]?.version === p.version,
  );
}
if (!installed()) {
  console.error("weft: installing dependencies (npm ci)");
  const npm = spawnSync("npm", ["ci", "--no-audit", "--no-fund", "--loglevel=error"], {
    cwd: root,
    stdio: ["ignore", "inherit", "inherit"],
    shell: process.platform === "win32",
  });
  if (npm.status !== 0) process.exit(npm.status ?? 1);
}
const [script, ...args] = process.argv.slice(2);
if (script) {
  // The command line's paths are its user's: npm runs scripts at the root, wherever it was called.
  const cwd = script === "sdk/cli.ts" ? (process.env.INIT_CWD ?? process.cwd()) : root;
  const run = spawn(process.execPath, ["--import", import.meta.resolve("tsx"), join(root, script), ...args], {
    cwd,
    stdio: "inherit",
  });
  // Who signals this process means the script, which knows how to end.
  for (const signal of ["SIGINT", "SIGTERM", "SIGHUP"]) process.on(signal, () => run.kill(signal));
  // npm runs this in a shell that takes a signal for itself: with the shell gone, nobody would end the
  // script.
  if (process.env.npm_lifecycle_event) {
    const parent = process.ppid;
    const watch = setInterval(() => {
      if (process.ppid === parent) return;
      // Once: a second signal would not wait for what is being kept.
      clearInterval(watch);
      run.kill("SIGTERM");
    }, 250);
    watch.unref();
  }
  run.on("error", (e) => {
    console.error(`weft: cannot run ${script}: ${e.message}`);
    process.exit(1);
  });
  run.on("exit", (code, signal) => {
    if (signal) process.removeAllListeners(signal);
    if (signal) process.kill(process.pid, signal);
    else process.exit(code);
  });
}
