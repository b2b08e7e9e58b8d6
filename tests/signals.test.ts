/** The command line is told to stop: what was learned is kept, nothing is left running, nothing is torn. */
import { spawn, spawnSync } from "node:child_process";
import { existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import * as assert from "uvu/assert";
import { withLock } from "../runtime/lock.ts";
import { batchOf, bundle, configs } from "./support/engines.ts";
import { suite } from "./support/suite.ts";
import { scratch } from "./support/tiny.ts";

const test = suite("signals");
const root = fileURLToPath(new URL("..", import.meta.url));

interface Run {
  /** Resolves when it has said so on stderr; rejects when it ends before. */
  readonly says: (what: RegExp) => Promise<RegExpExecArray>;
  readonly kill: (signal: NodeJS.Signals) => void;
  /** Its exit code, all that it said, and whether a process it started runs on. */
  readonly ended: Promise<{ code: number | null; signal: string | null; err: string; orphans: boolean }>;
}
function start(...args: string[]): Run {
  // A process group of its own: who of it is left can be asked.
  const child = spawn(process.execPath, args, {
    cwd: root,
    detached: true,
    stdio: ["ignore", "ignore", "pipe"],
  });
  let err = "";
  let over = false;
  const waiting = new Set<() => void>();
  const tell = (): void => {
    for (const f of waiting) f();
  };
  child.stderr.on("data", (d) => {
    err += d;
    tell();
  });
  const ended = new Promise<Awaited<Run["ended"]>>((resolve) =>
    child.on("exit", (code, signal) => {
      // Of its group, in which tsx has processes of its own that end by themselves.
      const group = spawnSync("ps", ["-A", "-o", "pgid=,args="], { encoding: "utf8" }).stdout.split("\n");
      const orphans = group.some((l) => l.trim().startsWith(`${child.pid} `) && l.includes("cli.ts"));
      if (orphans) process.kill(-child.pid!, "SIGKILL");
      // What it said last is read to the end.
      child.on("close", () => {
        over = true;
        tell();
        resolve({ code, signal, err, orphans });
      });
    }),
  );
  return {
    says: (what) =>
      new Promise((resolve, reject) => {
        const look = (): void => {
          const found = what.exec(err);
          if (!found && !over) return;
          waiting.delete(look);
          if (found) resolve(found);
          else reject(new Error(`ended without ${what}: ${err}`));
        };
        waiting.add(look);
        look();
      }),
    kill: (signal) => void child.kill(signal),
    ended,
  };
}
const setup = ["scripts/setup.mjs", "sdk/cli.ts"];
/** A job of many steps, and where it writes. */
async function job(): Promise<{ dir: string; args: string[] }> {
  const dir = scratch();
  const rows = batchOf(128).map((r) => JSON.stringify(r));
  writeFileSync(join(dir, "rows.jsonl"), rows.join("\n"));
  const flags = {
    data: join(dir, "rows.jsonl"),
    name: "n",
    out: join(dir, "out"),
    steps: "100000",
    device: "wasm",
  };
  const args = Object.entries(flags).flatMap(([k, v]) => [`--${k}`, v]);
  return { dir, args: ["finetune", await bundle(configs.even), ...args] };
}

for (const [signal, code] of [
  ["SIGTERM", 143],
  ["SIGINT", 130],
  ["SIGHUP", 129],
] as const)
  test(`${signal}: a checkpoint, the command to go on, and exit code ${code}`, async () => {
    const { dir, args } = await job();
    const checkpoint = join(dir, "it's here");
    const run = start(...setup, ...args, "--checkpoint", checkpoint);
    await run.says(/step [1-9]/);
    run.kill(signal);
    const { err, orphans, ...end } = await run.ended;
    assert.equal(end, { code, signal: null }, err);
    assert.not(orphans, "a process runs on");
    assert.match(
      err,
      /checkpoint in .*it's here; go on with\n {2}weft finetune .*--resume '.*it'\\''s here'/,
    );
    assert.not.match(err, /\n\s+at /, "no stack");
    assert.not(existsSync(join(dir, "out")), "the result is not there yet, and nothing in its place");
    const [current, version, ...more] = readdirSync(checkpoint).sort();
    assert.equal([current, more], ["CURRENT", []]);
    const step = Number(/^v-(\d+)-/.exec(version!)![1]);
    assert.ok(step > 0);
    if (signal !== "SIGTERM") return;
    const again = start(...setup, ...args, "--checkpoint", checkpoint, "--resume", checkpoint);
    const [, first] = await again.says(/step ([1-9]\d*) /);
    again.kill("SIGTERM");
    assert.is(Number(first), step + 1);
    assert.is((await again.ended).code, code);
    assert.ok(readdirSync(checkpoint).length <= 3, "the checkpoint before is kept, and no more");
  });

test("SIGTERM to npm, whose shell passes nothing on, ends the job with a checkpoint", async () => {
  const { dir, args } = await job();
  const checkpoint = join(dir, "kept");
  const npm = spawn("npm", ["run", "-s", "weft", "--", ...args, "--checkpoint", checkpoint], {
    cwd: root,
    stdio: ["ignore", "ignore", "pipe"],
  });
  let err = "";
  await new Promise<void>((resolve, reject) => {
    npm.stderr.on("data", (d) => {
      err += d;
      if (/step [1-9]/.test(err)) resolve();
    });
    npm.on("close", () => reject(new Error(err)));
  });
  npm.kill("SIGTERM");
  // Its stderr is closed when the last process that has it has ended.
  await new Promise((resolve) => npm.on("close", resolve));
  assert.match(err, /checkpoint in .*kept; go on with/);
  assert.ok(existsSync(join(checkpoint, "CURRENT")));
});

test("a run has checkpoints unasked: killed or told to stop, it goes on by --resume", async () => {
  const { dir, args } = await job();
  const run = start(...setup, ...args, "--save-every", "0.01");
  const kept = join(dir, "out.checkpoint");
  await run.says(/step [1-9]/);
  while (!existsSync(join(kept, "CURRENT"))) await new Promise((resolve) => setTimeout(resolve, 5));
  run.kill("SIGKILL");
  await run.ended;
  const again = start("--import", "tsx", "sdk/cli.ts", "finetune", "--resume", kept);
  const [, first] = await again.says(/step ([1-9]\d*) of 100000 .* left/);
  assert.ok(Number(first) > 1);
  again.kill("SIGTERM");
  const { code, err } = await again.ended;
  assert.is(code, 143);
  assert.match(err, /go on with\n {2}weft finetune --resume .*out\.checkpoint\n/);
  const step = Number(/^v-(\d+)-/.exec(readdirSync(kept).sort().at(-1)!)![1]);
  const rest = start(
    "--import",
    "tsx",
    "sdk/cli.ts",
    "finetune",
    "--resume",
    kept,
    "--steps",
    `${step + 100000}`,
  );
  const [, next] = await rest.says(/step ([1-9]\d*) of/);
  assert.ok(Number(next) > Number(first), "it goes on from the second, with more steps");
  rest.kill("SIGINT");
  assert.is((await rest.ended).code, 130);
});

test("with --checkpoint none a signal ends the job, and says what keeps one", async () => {
  const { dir, args } = await job();
  const run = start(...setup, ...args, "--checkpoint", "none");
  await run.says(/step [1-9]/);
  run.kill("SIGINT");
  const { code, err, orphans } = await run.ended;
  assert.is(code, 130, err);
  assert.not(orphans);
  assert.match(err, /stopped at step \d+; --checkpoint DIR keeps/);
  assert.not.match(err, /\n\s+at /);
  assert.equal(readdirSync(dir), ["rows.jsonl"]);
});

test("a second signal exits at once; nothing is half-written", async () => {
  const { dir, args } = await job();
  const checkpoint = join(dir, "checkpoint");
  const run = start(...setup, ...args, "--checkpoint", checkpoint);
  await run.says(/step [1-9]/);
  // Somebody else writes there, so the checkpoint waits.
  await withLock(checkpoint, async () => {
    run.kill("SIGTERM");
    await run.says(/taking a checkpoint/);
    const insist = setInterval(() => run.kill("SIGTERM"), 100);
    const { code, err, orphans } = await run.ended;
    clearInterval(insist);
    assert.is(code, 143, err);
    assert.not(orphans);
  });
  assert.equal(readdirSync(dir), ["rows.jsonl"]);
});

test("paths that are not theirs are refused before the training", async () => {
  const { dir, args } = await job();
  const precious = join(dir, "precious");
  mkdirSync(precious);
  writeFileSync(join(precious, "notes.txt"), "mine");
  for (const flags of [
    ["--out", precious],
    ["--checkpoint", precious],
  ]) {
    const { code, err } = await start(...setup, ...args, ...flags).ended;
    assert.is(code, 1);
    assert.match(err, /^WEFT_IO at .*precious: .*found notes\.txt/);
    assert.not.match(err, /step/);
  }
  assert.equal(readdirSync(precious), ["notes.txt"]);
  assert.is(readFileSync(join(precious, "notes.txt"), "utf8"), "mine");
});
test.run();
