/**
 * The Wasm target on the shape of SmolLM2-135M beside onnxruntime-web, llama.cpp, PyTorch + peft,
 * TensorFlow.js and jax-js, each in a process of its own, turn by turn; two threads each where they have
 * them. Peers are installed into the temporary folder (bench/peers); PyTorch needs a Python with the pins of
 * tests/fixtures/requirements.txt.
 *
 *   npm run -s bench -- wasm [--repeats 3] [--python python3]
 */
import { existsSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { hasRelaxed } from "../runtime/wasm.ts";
import { compile } from "../sdk/index.ts";
import { type Contender, contender, peerFolder, peerScript } from "./contender.ts";
import { median, spread, table } from "./measure.ts";
import { randomGguf, randomModel, served, smol } from "./model.ts";

export async function main(args: string[]): Promise<void> {
  const { values } = parseArgs({
    args,
    options: { repeats: { type: "string", default: "3" }, python: { type: "string", default: "python3" } },
  });
  const repeats = Number(values.repeats);
  const folder = randomModel(smol);
  const gguf = randomGguf(smol);
  const dir = peerFolder();
  const bundles: Record<string, string> = {};
  for (const format of ["f32", "f16", "bf16", "int8"] as const) {
    bundles[format] = join(tmpdir(), `weft-bench-smol-${format}.weft`);
    console.log(`compiling ${format} …`);
    await compile(folder, bundles[format], {
      targets: ["wasm"],
      train: ["lora"],
      format,
      relaxed: format === "f32",
      capacities: served,
    });
  }
  const relaxedFlag = hasRelaxed() ? [] : ["--experimental-wasm-relaxed-simd"];
  const weft = (name: string, format: string, more: string[] = []): Promise<Contender | null> =>
    contender(
      name,
      process.execPath,
      [
        ...(more[0] === "relaxed" ? relaxedFlag : []),
        "--import",
        "tsx",
        peerScript("weft.ts"),
        bundles[format]!,
        ...more,
      ],
      process.cwd(),
    );
  const peer = (name: string, script: string, ...more: string[]): Promise<Contender | null> =>
    dir && existsSync(join(dir, script))
      ? contender(name, process.execPath, [script, ...more], dir)
      : Promise.resolve(null);
  const python = (): Promise<Contender | null> =>
    contender("PyTorch + peft", values.python, [peerScript("torch_lora.py"), folder], process.cwd());
  console.log("starting the contenders …");
  const us = (await weft("weft f32", "f32"))!;
  const relaxed = await weft("weft f32 relaxed", "f32", ["relaxed"]);
  const f16 = (await weft("weft f16", "f16"))!;
  const bf16 = (await weft("weft bf16", "bf16"))!;
  const int8 = (await weft("weft int8", "int8"))!;
  const llama = await peer("llama.cpp f32", "llama.mjs", gguf);
  const ort = await peer("onnxruntime-web", "ort.mjs");
  const tfjs = await peer("tfjs wasm (1 thread)", "tfjs.mjs");
  const jax = await peer("jax-js wasm (1 thread)", "jax.mjs");
  const torch = await python();

  const found: Record<string, Record<string, number[]>> = {};
  const put = (row: string, who: string, x: number): void => {
    ((found[row] ??= {})[who] ??= []).push(x);
  };
  const ask = async (
    row: string,
    c: Contender | null,
    what: string,
    more: object,
    rate: (ms: number) => number,
  ): Promise<void> => {
    if (c) put(row, c.name, rate((await c.ask<{ ms: number }>(what, more)).ms));
  };
  const products = [
    [512, 512, 512],
    [512, 576, 1536],
  ] as const;
  for (let r = 0; r < repeats; r++) {
    process.stdout.write(`  turn ${r + 1} of ${repeats}\r`);
    for (const [m, k, n] of products) {
      const row = `${m} × ${k} × ${n}, GFLOP/s`;
      const rate = (ms: number): number => (2 * m * k * n) / ms / 1e6;
      for (const c of [us, relaxed, ort, tfjs, jax]) await ask(row, c, "matmul", { m, k, n }, rate);
    }
    put("read bandwidth, GB/s", us.name, (await us.ask<{ rate: number }>("bandwidth")).rate);
    for (const batch of [1, 4])
      for (const c of [us, relaxed, f16, bf16, int8, llama])
        await ask(
          `decode batch ${batch}, tokens/s`,
          c,
          "decode",
          { batch, tokens: 32 },
          (ms) => (batch * 1000) / ms,
        );
    for (const n of [128, 512])
      for (const c of [us, relaxed, f16, bf16, int8, llama])
        await ask(`prefill ${n}, tokens/s`, c, "prefill", { n }, (ms) => (n * 1000) / ms);
    for (const n of [128, 256])
      for (const c of [us, relaxed, f16, bf16, int8, torch])
        await ask(`LoRA step of ${n}, tokens/s`, c, "lora", { n }, (ms) => (n * 1000) / ms);
    for (const c of [tfjs, jax])
      if (c) {
        const { ms, gflop } = await c.ask<{ ms: number; gflop: number }>("step");
        put("training step, GFLOP/s", c.name, (gflop * 1000) / ms);
      }
  }
  // A LoRA step's arithmetic: forward and the gradient of what goes in, two operations a weight each.
  const weights = (shape: typeof smol): number => {
    const [d, f, hd] = [shape.hidden_size, shape.intermediate_size, Number(shape.head_dim)];
    return (
      shape.num_hidden_layers *
        (2 * d * shape.num_attention_heads * hd + 2 * d * shape.num_key_value_heads * hd + 3 * d * f) +
      shape.vocab_size * d
    );
  };
  const total = weights(smol);
  for (const tokens of found["LoRA step of 128, tokens/s"]![us.name]!)
    put("training step, GFLOP/s", us.name, (tokens * 4 * total) / 1e9);

  const greedy = { ids: [5, 600, 7000, 77, 8], count: 16 };
  const same = llama
    ? JSON.stringify(await us.ask("greedy", greedy)) === JSON.stringify(await llama.ask("greedy", greedy))
    : null;
  const kernels: Record<string, Record<string, number>> = {};
  for (const of of ["decode", "prefill", "lora"])
    kernels[of] = (await us.ask<{ kernels: Record<string, number> }>("kernels", { of })).kernels;
  for (const c of [us, relaxed, f16, bf16, int8, llama, ort, tfjs, jax, torch]) c?.end();
  // Peak memory, in processes that do nothing but train.
  const rss: Record<string, number> = {};
  for (const start of [
    () => weft("weft f32", "f32"),
    () => weft("weft f16", "f16"),
    () => weft("weft bf16", "bf16"),
    () => weft("weft int8", "int8"),
    python,
  ]) {
    const c = await start();
    if (!c) continue;
    await c.ask("lora", { n: 128 });
    rss[c.name] = (await c.ask<{ mib: number }>("rss")).mib;
    c.end();
  }

  const who = [...new Set(Object.values(found).flatMap((r) => Object.keys(r)))];
  console.log();
  table([
    ["", ...who],
    ...Object.entries(found).map(([row, by]) => [
      row,
      ...who.map((w) => (by[w] ? spread(by[w], by[w][0]! < 100 ? 1 : 0) : "–")),
    ]),
  ]);
  console.log(
    `\npeak memory of a process that trains LoRA, MiB: ${Object.entries(rss)
      .map(([n, m]) => `${n} ${m.toFixed(0)}`)
      .join(", ")}`,
  );
  const of = (row: string, name: string): number => median(found[row]?.[name] ?? []);
  const [peak, bandwidth] = [of("512 × 512 × 512, GFLOP/s", us.name), of("read bandwidth, GB/s", us.name)];
  console.log(
    `\nkernels of one step (${peak.toFixed(0)} GFLOP/s in products of 512³, ${bandwidth.toFixed(0)} ` +
      `GB/s, ridge at ${(peak / bandwidth).toFixed(1)} FLOP a byte):`,
  );
  for (const [kind, times] of Object.entries(kernels)) {
    const sum = Object.values(times).reduce((a, b) => a + b, 0);
    const rows = Object.entries(times)
      .sort(([, a], [, b]) => b - a)
      .slice(0, 8)
      .map(([name, ms]) => [
        name.slice(0, 60),
        `${ms.toFixed(2)} ms`,
        `${((ms / sum) * 100).toFixed(1)} %`,
        fraction(name, kind, ms, peak, bandwidth),
      ]);
    console.log();
    table([[`${kind}: ${sum.toFixed(1)} ms`, "time", "share", "of its roof"], ...rows]);
  }
  const ratio = (a: number, b: number): number | null => (a && b ? Number((a / b).toFixed(3)) : null);
  // A machine that others use is faster in one turn than in the next: ratios are taken within a turn.
  const byTurn = (a: readonly number[] | undefined, b: readonly number[] | undefined): number | null =>
    a && b ? Number(median(a.map((x, i) => x / b[i]!)).toFixed(3)) : null;
  const fast = (row: string, name: string, other: string | undefined): number | null =>
    other ? byTurn(found[row]?.[name], found[row]?.[other]) : null;
  const [d1, d4] = ["decode batch 1, tokens/s", "decode batch 4, tokens/s"];
  const wanted: Readonly<Record<string, readonly [number | null, number]>> = {
    "gemm 512 / onnxruntime-web": [fast("512 × 512 × 512, GFLOP/s", us.name, ort?.name), 1.15],
    "gemm 512x576x1536 / onnxruntime-web": [fast("512 × 576 × 1536, GFLOP/s", us.name, ort?.name), 1.15],
    "relaxed gemm 512 / onnxruntime-web": [
      fast("512 × 512 × 512, GFLOP/s", "weft f32 relaxed", ort?.name),
      1.4,
    ],
    "relaxed gemm 512x576x1536 / onnxruntime-web": [
      fast("512 × 576 × 1536, GFLOP/s", "weft f32 relaxed", ort?.name),
      1.4,
    ],
    "decode 1 / llama.cpp": [fast(d1, us.name, llama?.name), 1.1],
    "decode 1 of bandwidth": [
      byTurn(
        found[d1]?.[us.name]?.map((x) => (x * total * 4) / 1e9),
        found["read bandwidth, GB/s"]?.[us.name],
      ),
      0.75,
    ],
    "decode 1 int8 / f32": [fast(d1, int8.name, us.name), 1.3],
    "decode 4 / decode 1": [byTurn(found[d4]?.[us.name], found[d1]?.[us.name]), 2.2],
    "prefill 128 / llama.cpp": [fast("prefill 128, tokens/s", us.name, llama?.name), 0.5],
    "prefill 512 / llama.cpp": [fast("prefill 512, tokens/s", us.name, llama?.name), 0.45],
    "lora 128 / PyTorch": [fast("LoRA step of 128, tokens/s", us.name, torch?.name), 0.45],
    "lora 256 / PyTorch": [fast("LoRA step of 256, tokens/s", us.name, torch?.name), 0.45],
    "relaxed lora 128 / PyTorch": [fast("LoRA step of 128, tokens/s", "weft f32 relaxed", torch?.name), 0.6],
    "relaxed lora 256 / PyTorch": [fast("LoRA step of 256, tokens/s", "weft f32 relaxed", torch?.name), 0.6],
    "memory / PyTorch, at most": [ratio(rss["weft f32"] ?? 0, rss["PyTorch + peft"] ?? 0), 0.55],
    "memory f16 / PyTorch, at most": [ratio(rss["weft f16"] ?? 0, rss["PyTorch + peft"] ?? 0), 0.4],
    "matmul / tfjs": [fast("512 × 512 × 512, GFLOP/s", us.name, tfjs?.name), 2],
    "matmul / jax-js": [fast("512 × 512 × 512, GFLOP/s", us.name, jax?.name), 2],
    "training / tfjs": [fast("training step, GFLOP/s", us.name, tfjs?.name), 2],
    "training / jax-js": [fast("training step, GFLOP/s", us.name, jax?.name), 2],
  };
  const good = ([x, limit]: readonly [number | null, number], name: string): boolean =>
    x !== null && (name.endsWith("at most") ? x <= limit : x >= limit);
  console.log();
  table([
    ["ratio", "measured", "aim", ""],
    ...Object.entries(wanted).map(([n, v]) => [
      n,
      v[0]?.toFixed(2) ?? "not measured",
      String(v[1]),
      good(v, n) ? "yes" : "no",
    ]),
  ]);
  console.log(`greedy ids equal llama.cpp's: ${same ?? "not measured"}`);
  const ok = same === true && Object.entries(wanted).every(([n, v]) => good(v, n));
  console.log(
    JSON.stringify({
      bench: "wasm",
      ok,
      same,
      ratios: Object.fromEntries(Object.entries(wanted).map(([n, [x]]) => [n, x])),
      rss,
    }),
  );
}

/**
 * What part of its roof (arithmetic or bandwidth, whichever is lower) a product's kernel reaches; other
 * kernels have no such count.
 */
function fraction(name: string, kind: string, ms: number, peak: number, bandwidth: number): string {
  const [d, f, kv] = [
    smol.hidden_size,
    smol.intermediate_size,
    smol.num_key_value_heads * Number(smol.head_dim),
  ];
  const sizes: Readonly<Record<string, number>> = {
    q_proj: d * d,
    k_proj: d * kv,
    v_proj: d * kv,
    o_proj: d * d,
    gate_proj: d * f,
    up_proj: d * f,
    down_proj: d * f,
  };
  if (/lora/.test(name.replace(/^backward_lora_all_/, ""))) return "";
  const layer =
    Object.entries(sizes).reduce((n, [module, size]) => n + (name.includes(module) ? size : 0), 0) *
    smol.num_hidden_layers;
  const head = /lm_head|d_embed_tokens/.test(name) ? smol.vocab_size * d : 0;
  if (!layer && !head) return "";
  const rows = kind === "decode" ? 1 : 128;
  const headRows = kind === "prefill" ? 1 : rows;
  const flop = 2 * (layer * rows + head * headRows);
  const bytes = 4 * (layer + head * Math.ceil(headRows / 32));
  return `${((Math.max(flop / peak / 1e6, bytes / bandwidth / 1e6) / ms) * 100).toFixed(0)} %`;
}
