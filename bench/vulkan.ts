/**
 * Prompts and answers on one Vulkan device: weft through Dawn, and llama.cpp's Vulkan kernels, on one
 * GGUF file as it is (Q4_1 or Q4_0), each in a process of its own, turn by turn. Where the machine has no
 * GPU, Vulkan's own variable VK_DRIVER_FILES may name a driver for CPUs, such as Mesa's llvmpipe: with
 * `--device software` both run on that.
 *
 *   npm run -s bench -- vulkan --model FILE.Q4_1.gguf [--device webgpu|software] [--prompts 128,512]
 *     [--repeats 3] [--keep]
 *
 * `--keep`: the bundle is as the last run made it.
 */
import { existsSync } from "node:fs";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { parseArgs } from "node:util";
import { compile } from "../sdk/index.ts";
import { contender, peerFolder, peerScript } from "./contender.ts";
import { median, spread, table } from "./measure.ts";
import { served } from "./model.ts";

const aim = 1;

export async function main(args: string[]): Promise<void> {
  const { values } = parseArgs({
    args,
    options: {
      model: { type: "string" },
      device: { type: "string", default: "webgpu" },
      prompts: { type: "string", default: "128,512" },
      repeats: { type: "string", default: "3" },
      keep: { type: "boolean", default: false },
    },
  });
  if (!values.model) throw new Error("--model FILE.gguf: a model in Q4_1 or Q4_0");
  const software = values.device === "software";
  if (software && !process.env.VK_DRIVER_FILES)
    throw new Error("--device software: VK_DRIVER_FILES must name the driver that both shall use");
  const file = resolve(values.model);
  const prompts = values.prompts.split(",").map(Number);
  const dir = peerFolder();
  if (!dir) throw new Error("npm could not install the peers");
  const bundle = join(tmpdir(), "weft-bench-vulkan.weft");
  if (!values.keep || !existsSync(bundle)) {
    console.log("compiling …");
    const capacities = { ...served, tokens: Math.max(...prompts), context: Math.max(...prompts) + 128 };
    await compile(file, bundle, { targets: ["webgpu"], train: [], format: "keep", capacities });
  }
  // The first device, also when it is a CPU.
  if (software) process.env.GGML_VK_VISIBLE_DEVICES ??= "0";
  const weft = await contender(
    "weft",
    process.execPath,
    ["--import", "tsx", peerScript("weft.ts"), bundle, "", "2", values.device],
    process.cwd(),
  );
  const llama = await contender("llama.cpp", process.execPath, ["llama.mjs", file, "vulkan"], dir);
  if (!weft || !llama) throw new Error("both must run");
  for (const c of [weft, llama]) console.log(`${c.name}: ${(await c.ask<{ name: string }>("device")).name}`);
  const found: Record<string, Record<string, number[]>> = {};
  const rows = [
    ...prompts.map((n) => ({ row: `prompt of ${n}, tokens/s`, what: "prefill", more: { n }, tokens: n })),
    { row: "answer, tokens/s", what: "decode", more: { batch: 1, tokens: 16 }, tokens: 1 },
  ];
  for (let turn = 0; turn < Number(values.repeats); turn++)
    for (const { row, what, more, tokens } of rows)
      for (const c of turn % 2 ? [llama, weft] : [weft, llama]) {
        process.stdout.write(`  turn ${turn + 1} of ${values.repeats}: ${row}, ${c.name}      \r`);
        const { ms } = await c.ask<{ ms: number }>(what, more);
        ((found[row] ??= {})[c.name] ??= []).push((tokens * 1000) / ms);
      }
  for (const c of [weft, llama]) c.end();
  // A machine that others use is faster in one turn than in the next: ratios are taken within a turn.
  const ratio = (row: string): number =>
    median(found[row]![weft.name]!.map((x, i) => x / found[row]![llama.name]![i]!));
  console.log();
  table([
    ["", weft.name, llama.name, "ratio"],
    ...rows.map(({ row }) => [
      row,
      ...[weft, llama].map((c) => spread(found[row]![c.name]!, 1)),
      ratio(row).toFixed(2),
    ]),
  ]);
  const ratios = Object.fromEntries(rows.map(({ row }) => [row, ratio(row)]));
  const ok = rows.every(({ row, what }) => what !== "prefill" || ratio(row) >= aim);
  console.log(JSON.stringify({ bench: "vulkan", ok, aim, ratios, found }));
}
