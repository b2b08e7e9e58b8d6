/**
 * Co-serving on the shape of SmolLM2-135M, on the Wasm target with two threads: streams at decode batch 1, 2, 4 and 8 beside a LoRA and an S2FT job.
 * A second list (this engine), fused rows (this engine with one list), time slicing of two engines at the better of two frequencies, and two processes
 * of one thread, pinned to a core each.
 * G = (time of the inference alone + time of the fine-tuning alone, same tokens, two threads) / time together.
 *
 *   npm run -s bench -- coserve [--steps 3]
 */
import { spawnSync } from "node:child_process";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { compile } from "../sdk/index.ts";
import { type Contender, contender, peerScript } from "./contender.ts";
import { machine } from "./machine.ts";
import { quantile, table } from "./measure.ts";
import { randomModel, smol } from "./model.ts";

interface Stopped {
  readonly ms: number;
  readonly served: number;
  readonly gaps: readonly number[];
}

export async function main(args: string[]): Promise<void> {
  const { values } = parseArgs({ args, options: { steps: { type: "string", default: "3" } } });
  const steps = Number(values.steps);
  const bundle = join(tmpdir(), "weft-bench-smol-coserve.weft");
  console.log("compiling …");
  await compile(randomModel(smol), bundle, {
    targets: ["wasm"],
    train: ["lora", "s2ft"],
    capacities: { context: 256, tokens: 256, headRows: 32, sequences: 16, blocks: 96, savedRows: 512, keptRows: 512, unitRows: 128, quantum: 32, slots: 4, jobs: 2 },
  });
  const start = async (name: string, threads: number, lanes: number, more: string[] = [], core?: number): Promise<Contender> => {
    const node = ["--import", "tsx", peerScript("coserve.ts"), bundle, String(threads), String(lanes), ...more];
    const c = await (core === undefined
      ? contender(name, process.execPath, node, process.cwd())
      : contender(name, "taskset", ["-c", String(core), process.execPath, ...node], process.cwd()));
    if (!c) throw new Error(`${name} did not start`);
    return c;
  };
  const pinned = spawnSync("taskset", ["-c", "0,1", "true"]).status === 0;
  const second = await start("second list", 2, 2);
  const fused = await start("fused", 2, 1);
  const sliced = await start("sliced", 2, 1, ["sliced"]);
  const [serving, tuning] = pinned ? [await start("serving", 1, 1, [], 0), await start("tuning", 1, 1, [], 1)] : [null, null];
  const here = await machine(false, 2);
  const [peak, bandwidth] = [(2 * 512 ** 3) / (await here.gemm(512, 512, 512)) / 1e6, await here.bandwidth()];
  here.end();
  console.log(
    `products ${peak.toFixed(0)} GFLOP/s, reading ${bandwidth.toFixed(0)} GB/s: the ridge is at ${(peak / bandwidth).toFixed(1)} FLOP a byte, decode of a batch B is at B / 2`,
  );

  for (const c of [second, fused, sliced, serving, tuning]) await c?.ask("jobs", { steps: 1 });
  const ftAlone = (await fused.ask<{ ms: number }>("jobs", { steps })).ms;
  /** Streams on `a` while `jobs` run on `b`. */
  const together = async (a: Contender, b: Contender, batch: number): Promise<Stopped & { readonly ft: number }> => {
    await a.ask("start", { batch });
    const { ms } = await b.ask<{ ms: number }>("jobs", { steps });
    return { ...(await a.ask<Stopped>("stop")), ft: ms };
  };
  const rows: string[][] = [["batch", "way", "G", "fine-tuning", "p50 alone → with, ms", "p99 alone → with, ms", "p99 ratio"]];
  const out: Record<string, unknown>[] = [];
  for (const batch of [1, 2, 4, 8]) {
    await fused.ask("start", { batch });
    await fused.ask("wait", { ms: 3000 });
    const alone = await fused.ask<Stopped>("stop");
    const rate = alone.served / alone.ms;
    const add = (way: string, r: Stopped & { readonly ft: number }): { way: string; g: number; p99: number } => {
      const g = (r.served / rate + ftAlone) / r.ft;
      const [a50, a99, w50, w99] = [quantile(alone.gaps, 0.5), quantile(alone.gaps, 0.99), quantile(r.gaps, 0.5), quantile(r.gaps, 0.99)];
      rows.push([
        String(batch),
        way,
        g.toFixed(2),
        `${(ftAlone / r.ft).toFixed(2)} ×`,
        `${a50.toFixed(1)} → ${w50.toFixed(1)}`,
        `${a99.toFixed(1)} → ${w99.toFixed(1)}`,
        `${(w99 / a99).toFixed(2)} ×`,
      ]);
      const x = { batch, way, g, fineTuning: ftAlone / r.ft, p50: w50 / a50, p99: w99 / a99 };
      out.push(x);
      return x;
    };
    add("a second list", await together(second, second, batch));
    add("fused rows", await together(fused, fused, batch));
    // Time slicing at the frequency with the best G.
    let best: { ms: number; r: Stopped & { readonly ft: number } } | null = null;
    for (const ms of [30, 300]) {
      await sliced.ask("slice", { ms });
      const r = await together(sliced, sliced, batch);
      const g = (x: typeof r): number => (x.served / rate + ftAlone) / x.ft;
      if (!best || g(r) > g(best.r)) best = { ms, r };
    }
    add(`time slices of ${best!.ms} ms`, best!.r);
    if (serving && tuning) add("two processes, a core each", await together(serving, tuning, batch));
    process.stdout.write(`  batch ${batch} done\r`);
  }
  for (const c of [second, fused, sliced, serving, tuning]) c?.end();
  console.log();
  table(rows);
  const small = out.filter((x) => x.way === "a second list" && Number(x.batch) <= 2);
  const ok = small.every((x) => Number(x.g) >= 1.15 && Number(x.p99) <= 1.5);
  console.log(JSON.stringify({ bench: "coserve", ok, peakGflops: peak, bandwidth, results: out }));
}
