/**
 * WGSL → AMD machine code on a machine without a GPU: Dawn translates as it does everywhere, and Mesa's RADV
 * compiles for a chip that is not there (its null device). Nothing runs; what the compiler says of each
 * kernel, and what its main loop holds, comes back.
 */
import { spawn } from "node:child_process";
import { existsSync, readFileSync } from "node:fs";
import { homedir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { type Unit, unitFeatures, unitOf } from "../../runtime/matrix.ts";

const here = fileURLToPath(new URL(".", import.meta.url));
const cache =
  process.env.WEFT_MESA ?? join(process.env.XDG_CACHE_HOME ?? join(homedir(), ".cache"), "weft-gpu-isa");
/** How to get what is missing; null: all is there. */
export const missing = (): string | null =>
  existsSync(join(cache, "libs")) && existsSync(join(cache, "shim/libvulkan.so.1"))
    ? null
    : `no Mesa in ${cache} (WEFT_MESA names another folder): bash ${join(here, "setup.sh")}\n` +
      "(Debian with apt and cc; 64 MB from the machine's own mirror, no root, nothing else changes)";

const statistics = {
  registers: "VGPRs",
  spills: "Spilled VGPRs",
  scratch: "Scratch size",
  occupancy: "Subgroups per SIMD",
  shared: "LDS size",
  instructions: "Instructions",
} as const;
export interface Isa extends Readonly<Record<keyof typeof statistics, number>> {
  readonly ms: number;
  /**
   * Of the innermost loop with most multiply-adds, dot products too: their share, and loads of 16 bytes in
   * flight.
   */
  readonly fmaShare: number;
  readonly loads: number;
  /** Of that loop, products of matrix units, and their share of its multiply-adds. */
  readonly units: number;
  readonly unitShare: number;
}

/** What a process said that compiles for `chip`, and how it ended. */
async function said(chip: string, what: { texts: readonly string[]; features: readonly string[] }) {
  const libs = readFileSync(join(cache, "libs"), "utf8").trim();
  const run = spawn(process.execPath, [join(here, "child.mjs")], {
    stdio: ["pipe", "ignore", "pipe"],
    env: {
      ...process.env,
      WEFT_ISA_SHIM: join(cache, "shim/libvulkan.so.1"),
      WEFT_ISA_LOADER: join(libs, "libvulkan.so.1"),
      LD_LIBRARY_PATH: [libs, process.env.LD_LIBRARY_PATH].filter(Boolean).join(":"),
      VK_DRIVER_FILES: join(cache, "radeon.json"),
      VK_ICD_FILENAMES: join(cache, "radeon.json"),
      RADV_FORCE_FAMILY: chip,
      RADV_DEBUG: "nocache,shaderstats,asm",
    },
  });
  run.stdin.end(JSON.stringify(what));
  let all = "";
  run.stderr.setEncoding("utf8").on("data", (d: string) => {
    all += d;
  });
  const ended = await new Promise((done) => run.on("close", (...how) => done(how.join(" "))));
  return { all, ended };
}
/** Its matrix units, as Dawn has them; null: none. */
export async function unitFor(chip: string): Promise<Unit | null> {
  const { all } = await said(chip, { texts: [], features: [] });
  const line = /^@@@weft (\{"features".*)$/m.exec(all)?.[1];
  if (!line) throw new Error(`${chip}: no adapter:\n${all.slice(-2000)}`);
  const { features, info } = JSON.parse(line);
  return unitOf({ features: new Set(features), info });
}
/** Each text compiled for `chip`, with its units if any. Throws where one does not compile. */
export async function compileFor(
  chip: string,
  texts: readonly string[],
  unit: Unit | null = null,
): Promise<Isa[]> {
  const { all, ended } = await said(chip, { texts, features: unit ? unitFeatures(unit) : [] });
  const out: Isa[] = [];
  let text = "";
  for (const part of all.split(/^@@@weft /m).slice(1)) {
    const end = part.indexOf("\n");
    const mark = JSON.parse(part.slice(0, end)) as {
      none?: true;
      start?: number;
      ms?: number;
      error?: string;
      features?: readonly string[];
    };
    if (mark.features) continue;
    if (mark.none) break;
    if (mark.start !== undefined) text = part.slice(end);
    else if (mark.error) throw new Error(`kernel ${out.length} on ${chip}: ${mark.error}`);
    else out.push({ ms: Math.round(mark.ms!), ...statisticsOf(text), ...mainLoop(text) });
  }
  if (out.length < texts.length)
    throw new Error(`${chip}: the compiler ended (${ended}):\n${all.slice(-2000)}`);
  return out;
}
function statisticsOf(text: string): Record<keyof typeof statistics, number> {
  const of = (name: string): number => {
    const m = new RegExp(`^${name}: (\\d+)`, "m").exec(text);
    if (!m) throw new Error(`the compiler said nothing of ${name}`);
    return Number(m[1]);
  };
  return Object.fromEntries(Object.entries(statistics).map(([key, name]) => [key, of(name)])) as Record<
    keyof typeof statistics,
    number
  >;
}

const FMA = /\bv_(?:(?:pk_|dual_)?(?:fma|fmac|fmaak|fmamk|fma_mix)_f32|dot4_i32_i\w*)/g;
const isFma = (line: string): number => line.match(FMA)?.length ?? 0;
const isUnit = (line: string): number => Number(/\bv_wmma_f32_16x16x16_f16\b/.test(line));
/** Multiply-adds of one, a lane's share. */
const OF_UNIT = (16 * 16 * 16) / 32;
const multiplies = (line: string): number => isFma(line) + OF_UNIT * isUnit(line);
/** Where the machine code is not to be had, the compiler's own last form of it is printed. */
/** What takes no turn of its own: hints to the scheduler, alignment. */
const HINT = /^\s*(?:s_delay_alu|s_nop|s_clause|\(then repeated|;|\/\*)/;

/** The innermost loop with most fused multiply-adds; of code that was unrolled, all of it. */
function mainLoop(text: string): Pick<Isa, "fmaShare" | "loads" | "units" | "unitShare"> {
  const code = /^disasm:\n([\s\S]*?)\n\s*\*\*\* SHADER STATS/m.exec(text)?.[1] ?? "";
  const lines = code.split("\n").filter((l) => l.trim() && !HINT.test(l));
  const labels = new Map<string, number>();
  lines.forEach((l, i) => {
    const label = /^(BB\d+)\b/.exec(l)?.[1];
    if (label) labels.set(label, i);
  });
  const loops: [from: number, to: number][] = [];
  lines.forEach((l, i) => {
    const to = labels.get(/\bs_c?branch\w* (?:block:)?(BB\d+)/.exec(l)?.[1] ?? "");
    if (to !== undefined && to < i) loops.push([to, i]);
  });
  const inner = loops.filter(([a, b]) => !loops.some(([c, d]) => (c !== a || d !== b) && c >= a && d <= b));
  const sum = ([a, b]: [number, number], of: (line: string) => number): number =>
    lines.slice(a, b + 1).reduce((n, l) => n + of(l), 0);
  const fmas = (loop: [number, number]): number => sum(loop, multiplies);
  const all: [number, number] = [0, lines.length - 1];
  const most = inner.reduce((best, l) => (fmas(l) > fmas(best) ? l : best), inner[0] ?? all);
  // Where most of them are in no loop, it was unrolled.
  const [from, to] = 4 * fmas(most) < fmas(all) ? all : most;
  const body = lines.slice(from, to + 1).filter((l) => !/^BB/.test(l));
  return {
    // Two in one instruction count as two.
    fmaShare: sum([from, to], isFma) / Math.max(1, body.length + body.filter((l) => isFma(l) > 1).length),
    loads: inFlight(body),
    units: sum([from, to], isUnit),
    unitShare: (OF_UNIT * sum([from, to], isUnit)) / Math.max(1, fmas([from, to])),
  };
}
/** The most loads of 16 bytes that were asked for before the first of them is waited for. */
function inFlight(body: readonly string[]): number {
  let [most, waiting] = [0, [] as boolean[]];
  for (const line of body) {
    const load = /\b(?:buffer|global)_load_(\w+)/.exec(line)?.[1];
    if (load) waiting.push(/128|x4/.test(load));
    const wait = /s_waitcnt.*vmcnt\((\d+)\)|s_wait_loadcnt imm:(\d+)/.exec(line);
    if (wait) waiting = waiting.slice(Math.max(0, waiting.length - Number(wait[1] ?? wait[2])));
    most = Math.max(most, waiting.filter(Boolean).length);
  }
  return most;
}
