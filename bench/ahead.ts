/**
 * What a device waits for between two tokens: milliseconds from when a step's numbers are read to when the
 * next step's first launches are submitted, with lists encoded ahead and without, turn by turn in one run. As
 * many launches as a Llama of 1 B has; how long they take does not matter here.
 *
 *   npm run -s bench -- ahead [--device software|webgpu] [--tokens 64] [--repeats 5]
 */
import { rmSync } from "node:fs";
import { parseArgs } from "node:util";
import { compile } from "../compiler/compile.ts";
import { Engine } from "../runtime/engine.ts";
import { openWebGpu } from "../runtime/webgpu.ts";
import { checkpoint, shapes } from "./isa/shape.ts";
import { ids, median, spread, table } from "./measure.ts";

const now = (): number => performance.now();
/** Milliseconds from the end of a read to the next submission's, as they come. */
const gaps: number[] = [];
function listen(): void {
  let read = 0;
  const { mapAsync } = GPUBuffer.prototype;
  const { submit } = GPUQueue.prototype;
  GPUBuffer.prototype.mapAsync = async function (this: GPUBuffer, ...a: Parameters<typeof mapAsync>) {
    await mapAsync.apply(this, a);
    read = now();
    return undefined;
  };
  GPUQueue.prototype.submit = function (this: GPUQueue, ...a: Parameters<typeof submit>) {
    submit.apply(this, a);
    if (read) gaps.push(now() - read);
    read = 0;
    return undefined;
  };
}

export async function main(args: string[]): Promise<void> {
  const { values: o } = parseArgs({
    args,
    options: {
      device: { type: "string", default: "software" },
      tokens: { type: "string", default: "64" },
      repeats: { type: "string", default: "5" },
    },
  });
  const folder = checkpoint({ ...shapes.tiny!, num_hidden_layers: 16 }, true);
  const { files } = await compile(folder, {
    targets: ["webgpu"],
    train: [],
    capacities: { context: 2048, tokens: 512 },
  });
  rmSync(folder, { recursive: true });
  const reader = { where: "memory", read: async (name: string) => files.get(name)! };
  const kind = o.device === "software" ? "software" : "hardware";
  const open = (encodesAhead: boolean): Promise<Engine> =>
    Engine.open(reader, async (m, file) => {
      const device = await openWebGpu(m, file, kind, { encodesAhead, families: { fewRows: 8 } });
      if (!device)
        throw new Error("no such adapter: install the peer dependency webgpu, or --device software");
      return device;
    });
  const engines = [await open(false), await open(true)] as const;
  listen();
  const waits: [number[], number[]] = [[], []];
  const tokens = Number(o.tokens);
  for (let r = 0; r < Number(o.repeats); r++)
    for (const [i, engine] of engines.entries()) {
      gaps.length = 0;
      const prompt = ids(16, r, engine.manifest.model.vocab);
      for await (const _p of engine.generate({ prompt, maxTokens: tokens }));
      waits[i]!.push(median(gaps.slice(3)));
    }
  const { launches, encodeMs } = engines[0].device.stats;
  const { ahead } = engines[1].device.stats;
  table([
    ["a token", "median (min–max)", "unit"],
    ["device waits, encoded when asked for", spread(waits[0], 3), "ms"],
    ["device waits, encoded ahead", spread(waits[1], 3), "ms"],
    ["encoding a launch", ((1000 * encodeMs) / launches).toFixed(2), "µs"],
    ["lists encoded ahead", String(ahead), `of ${Number(o.repeats) * tokens}`],
  ]);
  await Promise.all(engines.map((e) => e.dispose()));
  console.log(
    JSON.stringify({
      bench: "ahead",
      asked: median(waits[0]),
      ahead: median(waits[1]),
      ratio: median(waits[0]) / median(waits[1]),
      encodeUs: (1000 * encodeMs) / launches,
    }),
  );
}
