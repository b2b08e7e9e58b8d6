/**
 * Host memory of many adapters: of rank 8 on all seven linear sites of a model of SmolLM2-135M's shape, kept
 * in f32 (as training leaves them), in 16 bits (as they are published), and under a budget, past which they
 * are on disk. Each is read back and compared, bit for bit.
 *
 *   npm run -s bench -- kept [--adapters 2000] [--numbers f16|f32] [--memory 4GB]
 */
import { tmpdir } from "node:os";
import { join } from "node:path";
import { parseArgs } from "node:util";
import type { Manifest } from "../runtime/bundle.ts";
import { type AdapterContent, defaultConfig } from "../runtime/content.ts";
import { initialContent } from "../runtime/initial.ts";
import { Contents } from "../runtime/kept.ts";
import { Resident } from "../runtime/resident.ts";
import { openSpill } from "../runtime/spill.ts";
import { bytesOf } from "../runtime/units.ts";
import { compile, load } from "../sdk/index.ts";
import { table, timed } from "./measure.ts";
import { randomModel, smol } from "./model.ts";

const RANK = 8;
const GIB = 2 ** 30;
const rss = (): number => process.memoryUsage().rss;

/** The bundle's branches and sites are those of a layer: a bundle of two layers and few words has them. */
async function manifestOf(): Promise<Manifest> {
  const out = join(tmpdir(), "weft-bench-kept.weft");
  await compile(randomModel({ ...smol, num_hidden_layers: 2, vocab_size: 256 }), out, {
    targets: ["wasm"],
    train: [],
    capacities: { context: 64, tokens: 32, slots: 1, rank: 16 },
  });
  await using engine = await load(out, { device: "wasm", threads: 1 });
  const { manifest } = engine;
  return { ...manifest, model: { ...manifest.model, layers: smol.num_hidden_layers } };
}
const none = (): never => {
  throw new Error("LoRA starts from its seed alone");
};

export async function main(args: string[]): Promise<void> {
  const { values: o } = parseArgs({
    args,
    options: {
      adapters: { type: "string", default: "2000" },
      numbers: { type: "string", default: "f16" },
      memory: { type: "string" },
    },
  });
  const manifest = await manifestOf();
  const start = await initialContent(manifest, { ...defaultConfig(manifest, "lora"), rank: RANK }, 1, none);
  const n = Number(o.adapters);
  // 11 bits each where they are to be halves.
  const numberOf = (x: number): number =>
    o.numbers === "f16" ? ((x >>> 21) - 1024) / 2048 : ((x >>> 0) - 2 ** 31) / 2 ** 33;
  for (const [l, layer] of start.tensors.entries())
    layer.forEach((_, k) => {
      layer[k] = numberOf(Math.imul(k + 1, 0x9e3779b9) ^ Math.imul(l + 1, 0x85ebca6b));
    });
  /** Adapter i: a number of its own in each layer, in the same words again and again. */
  const contentOf = (i: number): AdapterContent => {
    for (const layer of start.tensors) layer[i % layer.length] = numberOf(Math.imul(i + 1, 0x9e3779b9));
    return start;
  };
  const original = start.tensors.map((t) => t.slice());
  const put = (i: number): void => start.tensors.forEach((t, l) => t.set(original[l]!.subarray(i, i + 1), i));
  const words = start.tensors.reduce((sum, t) => sum + t.length, 0);
  const most = o.memory === undefined ? null : bytesOf(o.memory);
  const contents = new Contents(manifest, most === null ? undefined : new Resident(most, await openSpill()));
  const before = rss();
  let peak = before;
  const kept: ReturnType<Contents["keep"]>[] = [];
  const [keeping] = await timed(async () => {
    for (let i = 0; i < n; i++) {
      kept.push(contents.keep(contentOf(i)));
      put(i);
      peak = Math.max(peak, rss());
    }
  });
  let wrong = 0;
  const sample = Math.min(n, 200);
  const [reading] = await timed(async () => {
    for (let s = 0; s < sample; s++) {
      const i = (s * 7919) % n;
      const want = contentOf(i).tensors;
      const got = kept[i]!.read().tensors;
      if (!got.every((t, l) => Buffer.compare(Buffer.from(t.buffer), Buffer.from(want[l]!.buffer)) === 0))
        wrong++;
      put(i);
      peak = Math.max(peak, rss());
    }
  });
  contents.close();
  console.log(
    `${n} adapters of ${words} numbers (rank ${RANK}), ${o.numbers}${most ? `, at most ${o.memory}` : ""}`,
  );
  table([
    ["", "GiB"],
    ["as f32, at the bundle's rank", ((n * words * 2 * 4) / GIB).toFixed(2)],
    ["kept in memory", (contents.bytes / GIB).toFixed(2)],
    ["peak of the process", (peak / GIB).toFixed(2)],
    ["of which before any adapter", (before / GIB).toFixed(2)],
  ]);
  console.log(
    `${(keeping / n).toFixed(1)} ms to keep one, ${(reading / sample).toFixed(1)} ms to make and read one`,
  );
  const ok = !wrong && peak <= 12 * GIB;
  console.log(
    JSON.stringify({
      bench: "kept",
      ok,
      adapters: n,
      numbers: o.numbers,
      memory: most,
      kept: contents.bytes,
      peak,
      wrong,
    }),
  );
}
