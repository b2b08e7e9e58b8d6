/**
 * The strict runner: each test file in a process of its own, two at a time. A file passes only if it
 * registered tests and every one of them ran and passed; so a forgotten run(), a throwing hook, an empty file
 * and a crash all fail.
 *
 *   node --import tsx tests/run.ts [--long] [part of a file name …]
 *
 * `--long` runs the long form (support/scale.ts) of the files that have one.
 */
import { type ChildProcess, spawn } from "node:child_process";
import { chmodSync, mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { cpus, tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { serveAssembler } from "./support/assembler.ts";
import { buildTests } from "./support/build.ts";
import { built, program, root, tsx } from "./support/program.ts";

const runner = "tests/support/child.ts";
const here = fileURLToPath(new URL(".", import.meta.url));
// Test files know their form by it (support/scale.ts).
if (process.argv.includes("--long")) process.env.WEFT_LONG = "1";
const long = process.env.WEFT_LONG === "1";
const wanted = process.argv.slice(2).filter((w) => w !== "--long");

export interface FileResult {
  readonly file: string;
  readonly registered: number;
  readonly passed: number;
  readonly output: string;
  readonly ms: number;
  /** Seconds of processors, without those of processes that the file started. */
  readonly cpu: number;
}
/** Two thirds of the time to load on a software adapter, where nothing is read out of bounds. */
const unchecked = { WEFT_DAWN: "enable-dawn-features=disable_robustness" };
/** And all engines have one software device. */
const together = { ...unchecked, WEFT_SHARE: "1" };
/** Files with a process of their own, and its environment. */
const ALONE: Readonly<Record<string, NodeJS.ProcessEnv>> = {
  // Loads as shipped, as browsers do.
  webgpu: {},
  // Look at the memory, the temporary folder of their process.
  soak: unchecked,
  kept: unchecked,
};
/**
 * A process that plays test files, and starts anew after one that failed or asks for a process of its own.
 */
export class Lane {
  /** `env`: what its process has beside the environment. */
  constructor(private readonly env: NodeJS.ProcessEnv = together) {}
  private child: ChildProcess | undefined;
  private output = "";
  private ended: (code: number | null) => void = () => {};

  private start(built: boolean): ChildProcess {
    const child = spawn(process.execPath, built ? program(runner) : ["--import", tsx, join(root, runner)], {
      stdio: ["ignore", "pipe", "pipe", "ipc"],
      serialization: "advanced",
      env: { ...this.env, ...process.env },
    });
    for (const stream of [child.stdout!, child.stderr!])
      stream.on("data", (d) => {
        this.output += d;
        if (/weft-tests \{.*\}\n/.test(this.output)) this.ended(0);
      });
    child.on("close", (code) => {
      if (this.child === child) this.child = undefined;
      this.ended(code);
    });
    return child;
  }
  /** Run a test file: what was `built` of it, or its source. */
  async run(path: string, built?: string): Promise<FileResult> {
    const t0 = performance.now();
    this.output = "";
    const code = await new Promise<number | null>((resolve) => {
      this.ended = resolve;
      this.child ??= this.start(built !== undefined);
      this.child.send({ play: built ?? path });
    });
    const { output } = this;
    const line = /weft-tests (\{.*\})/.exec(output)?.[1];
    const r = line
      ? (JSON.parse(line) as {
          registered: number;
          passed: number;
          error: boolean;
          cpu: number;
          long: boolean;
        })
      : { registered: 0, passed: 0, error: true, cpu: 0, long };
    const narrowed = /\.(only|skip)\(/.test(readFileSync(path, "utf8"));
    const said = [
      ...(narrowed ? ["a test is narrowed or skipped"] : []),
      ...(r.long !== long ? [`it ran in its ${r.long ? "long" : "short"} form`] : []),
    ];
    const failed = code !== 0 || r.error || r.registered === 0 || said.length > 0;
    if (failed || r.registered !== r.passed) this.end();
    return {
      file: path,
      registered: Math.max(r.registered, failed ? r.passed + 1 : 0),
      passed: r.passed,
      output: [output, ...said].join("\n"),
      ms: performance.now() - t0,
      cpu: r.cpu,
    };
  }
  end(): void {
    const { child } = this;
    this.child = undefined;
    this.ended = () => {};
    if (child?.connected) child.disconnect();
  }
}

/** By what they took when it was last measured; the rest takes a few seconds each. */
const LONGEST = [
  "docs package attention families ops methods s2ft reference formats adapters example shards replay laws",
  "invariance export cli host arrivals compile page room soak webgpu signals fuzz experts",
  "optimizers wasm talk places openai worker kv crew numerics storage gguf correct vera sums selection",
  "prefix chat",
]
  .join(" ")
  .split(" ");
const rankOf = (file: string): number => {
  const at = LONGEST.findIndex((name) => file === `${name}.test.ts`);
  return at < 0 ? LONGEST.length : at;
};

async function main(): Promise<void> {
  const files = readdirSync(here)
    .filter((f) => f.endsWith(".test.ts") && (!wanted.length || wanted.some((w) => f.includes(w))))
    .filter((f) => !long || readFileSync(join(here, f), "utf8").includes("support/scale.ts"))
    // The longest first, so that no thread is alone with one in the end.
    .sort((a, b) => rankOf(a) - rankOf(b) || a.localeCompare(b));
  const folder = await buildTests(files.map((f) => `tests/${f}`));
  for (const signal of ["SIGINT", "SIGTERM"]) process.on(signal, () => process.exit(1));
  const scratch = mkdtempSync(join(tmpdir(), "weft-tests-"));
  // What a test opens to other users they must reach.
  chmodSync(scratch, 0o711);
  // A lane that ends may still write there.
  process.on("exit", () => rmSync(scratch, { recursive: true, force: true, maxRetries: 5 }));
  Object.assign(process.env, { WEFT_BUILT: folder, WEFT_SCRATCH: scratch }, await serveAssembler());
  const queue = [...files];
  let passed = 0;
  let failed = 0;
  const worker = async (): Promise<void> => {
    const shared = new Lane();
    for (let f = queue.shift(); f; f = queue.shift()) {
      const own = ALONE[f.replace(".test.ts", "")];
      const lane = own ? new Lane(own) : shared;
      const run = (on: Lane): Promise<FileResult> => on.run(join(here, f), built(`tests/${f}`));
      let r = await run(lane);
      if (own) lane.end();
      else if (r.passed !== r.registered && files.length > 1) {
        // What a file is worth is what it is on its own; that it fails beside others is told.
        console.log(`FAIL ${f} beside others; now alone\n${r.output}`);
        const alone = new Lane();
        r = await run(alone);
        alone.end();
      }
      const bad = r.registered - r.passed;
      passed += r.passed;
      failed += bad;
      const count = `${String(r.passed).padStart(3)} of ${r.registered}`.padEnd(11);
      const time = `${(r.ms / 1000).toFixed(1)} s, of processors ${r.cpu.toFixed(1)} s`;
      console.log(`${bad ? "FAIL" : "ok  "} ${f.padEnd(28)} ${count} ${time}`);
      if (bad || long || process.env.WEFT_TEST_TIMES) console.log(r.output);
    }
  };
  await Promise.all(Array.from({ length: Math.min(2, cpus().length) }, worker));
  if (!files.length) {
    console.log("no test file matches");
    failed++;
  }
  console.log(`\n${passed} passed, ${failed} failed`);
  process.exit(failed ? 1 : 0);
}
if (process.argv[1] === fileURLToPath(import.meta.url)) await main();
