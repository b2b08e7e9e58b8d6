/**
 * A fine-tuning step by method at equal trainable parameters (as LoRA of rank 16 on all seven linears, where
 * a method can have as many): time, saved, gradient and optimizer bytes, beside full training, interleaved in
 * one run on a random model of 30 M parameters.
 *
 *   npm run -s bench -- methods [--device wasm|software|webgpu] [--repeats 3] [--small]
 */
import { tmpdir } from "node:os";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { compile, type DeviceChoice, type Engine, load } from "../sdk/index.ts";
import type { Config } from "../tests/support/tiny.ts";
import { ids, median, spread, table } from "./measure.ts";
import { random, randomModel } from "./model.ts";

const shape = (small: boolean): Config => ({
  ...random,
  hidden_size: small ? 128 : 512,
  num_hidden_layers: small ? 3 : 8,
  num_attention_heads: 8,
  num_key_value_heads: 4,
  head_dim: small ? 16 : 64,
  intermediate_size: small ? 344 : 1376,
  vocab_size: 4096,
});
const methods = [
  "lora",
  "dora",
  "s2ft",
  "s2ft_permuted",
  "sparse",
  "ia3",
  "parallel",
  "series",
  "prefix",
  "prompt",
  "full",
] as const;

/** Which channels are trained makes no difference here. */
const anySelection = (config: Config) => ({
  layers: Array.from({ length: config.num_hidden_layers }, (_, l) => ({
    ffn: Array.from({ length: config.intermediate_size }, (_, i) => (i + 31 * l) % config.intermediate_size),
    groups: [],
  })),
  selector: "none",
});

export async function main(args: string[]): Promise<void> {
  const { values } = parseArgs({
    args,
    options: {
      device: { type: "string", default: "wasm" },
      repeats: { type: "string", default: "3" },
      small: { type: "boolean", default: false },
    },
  });
  const device = values.device as DeviceChoice;
  const target = device === "wasm" ? "wasm" : "webgpu";
  const config = shape(values.small);
  const dir = randomModel(config);
  const tokens = 128;
  const sequences = 2;
  const data = Array.from({ length: sequences }, (_, i) => ({
    input_ids: ids(tokens + 1, i, config.vocab_size),
  }));
  const engines = new Map<string, Engine>();
  for (const method of methods) {
    const out = join(tmpdir(), `weft-bench-methods-${config.hidden_size}-${method}-${target}.weft`);
    await compile(dir, out, {
      targets: [target],
      train: [method],
      methods: [],
      ...(method === "s2ft_permuted" && { selection: anySelection(config) }),
      capacities: {
        context: 256,
        tokens: 256,
        headRows: 64,
        savedRows: 256,
        keptRows: 256,
        quantum: 32,
        unitRows: 128,
        units: 16,
        slots: 2,
        jobs: 1,
        rank: 16,
        blocks: 64,
        sequences: 8,
      },
    });
    engines.set(method, await load(out, { device }));
  }
  const trainable: Record<string, number> = {};
  /** Milliseconds a step takes: of `n` behind the first, so that starting and ending a job do not count. */
  const step = async (method: string, n: number): Promise<number> => {
    const ends: number[] = [];
    const job = await engines.get(method)!.finetune({
      name: "bench",
      method,
      data,
      batchSize: sequences,
      steps: n + 1,
      learningRate: 1e-4,
      shuffle: false,
      ...(["lora", "dora", "sparse", "parallel", "series"].includes(method) && {
        rank: 16,
        targetModules: "all-linear",
      }),
      onEvent: (e) => {
        if (e.type === "start") trainable[method] = e.trainable;
        if (e.type === "step") ends.push(performance.now());
      },
    });
    await job.done;
    return (ends.at(-1)! - ends[0]!) / n;
  };
  // Once to warm up.
  for (const method of methods) await step(method, 1);
  const times = new Map<string, number[]>(methods.map((m) => [m, []]));
  for (let r = 0; r < Number(values.repeats); r++)
    for (const method of methods) times.get(method)!.push(await step(method, 4));
  const first = engines.get("lora")!;
  console.log(
    `${first.manifest.model.parameters} parameters, ${config.num_hidden_layers} layers × ` +
      `${config.hidden_size}, ${sequences} × ${tokens} tokens, on ${first.device.name}`,
  );
  const rows: string[][] = [
    [
      "",
      "ms a step (min–max)",
      "trainable",
      "kept, B/token/layer",
      "boundary",
      "no recompute",
      "kept MB",
      "grad + Adam MB",
      "sum MB",
    ],
  ];
  const result: Record<
    string,
    { ms: number; trainable: number; savedBytes: number; readBytes: number; stateBytes: number }
  > = {};
  for (const method of methods) {
    const bytes = engines.get(method)!.manifest.saved[method]!.bytes;
    const savedBytes = bytes.all * sequences * tokens * config.num_hidden_layers;
    const readBytes = bytes.read * sequences * tokens * config.num_hidden_layers;
    const stateBytes = 12 * trainable[method]!;
    result[method] = {
      ms: median(times.get(method)!),
      trainable: trainable[method]!,
      savedBytes,
      readBytes,
      stateBytes,
    };
    const mb = (n: number): string => (n / 1e6).toFixed(2);
    rows.push([
      method,
      spread(times.get(method)!, 1),
      String(trainable[method]),
      String(bytes.all),
      String(bytes.boundary),
      String(bytes.read),
      mb(savedBytes),
      mb(stateBytes),
      mb(savedBytes + stateBytes),
    ]);
  }
  table(rows);
  for (const e of engines.values()) await e.dispose();
  const total = (m: string): number => result[m]!.savedBytes + result[m]!.stateBytes;
  const ratios = {
    s2ftTime: result.s2ft!.ms / result.lora!.ms,
    permutedTime: result.s2ft_permuted!.ms / result.lora!.ms,
    permutedToIndexed: result.s2ft_permuted!.ms / result.s2ft!.ms,
    s2ftMemory: total("s2ft") / total("lora"),
    s2ftMemoryNoRecompute: total("s2ft") / (result.lora!.readBytes + result.lora!.stateBytes),
    fullTime: result.full!.ms / result.s2ft!.ms,
    fullMemory: total("full") / total("s2ft"),
  };
  console.log(
    JSON.stringify({
      bench: "methods",
      device,
      ok:
        ratios.permutedTime <= 1 &&
        ratios.s2ftMemoryNoRecompute <= 0.9 &&
        ratios.fullTime >= 1.5 &&
        ratios.fullMemory >= 2,
      ratios,
      methods: result,
    }),
  );
}
