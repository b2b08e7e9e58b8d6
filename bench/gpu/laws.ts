/** The laws on a device, with tiny models: against the CPU's kernels, and against itself, bit for bit. */
import { readFileSync } from "node:fs";
import { join } from "node:path";
import type { Families } from "../../runtime/device.ts";
import { Engine as Core } from "../../runtime/engine.ts";
import { openWebGpu } from "../../runtime/webgpu.ts";
import { compile, type DeviceChoice, type Engine, load } from "../../sdk/index.ts";
import { batchOf, configs, idsOf, small } from "../../tests/support/engines.ts";
import { writeModel } from "../../tests/support/tiny.ts";

export interface Verdict {
  readonly law: string;
  readonly ok: boolean;
  readonly found: string;
}
const VOCAB = 128;
const job = { data: batchOf(VOCAB), steps: 3, batchSize: 5, shuffle: false, rank: 4, learningRate: 1e-3 };

async function losses(engine: Engine, method: string): Promise<number[]> {
  const running = await engine.finetune({ ...job, name: method, method });
  return [...(await running.done).losses];
}
interface Said {
  readonly ids: readonly number[];
  readonly logprobs: readonly number[];
}
async function say(engine: Engine, i: number): Promise<Said> {
  const [ids, logprobs]: [number[], number[]] = [[], []];
  const o = { prompt: idsOf(`p${i}`, 3 + 11 * i, VOCAB), maxTokens: 8, temperature: 0.9, seed: i };
  for await (const p of engine.generate({ ...o, logprobs: 0 })) {
    ids.push(p.id);
    logprobs.push(p.logprob!);
  }
  return { ids, logprobs };
}
const far = (a: readonly number[], b: readonly number[]): number => {
  const most = Math.max(...b.map(Math.abs));
  return Math.max(...a.map((x, i) => Math.abs(x - b[i]!))) / most;
};

/** Answers alone, then together beside a job. */
async function apartAndTogether(engine: Engine): Promise<boolean> {
  const list = [0, 1, 2, 3, 4];
  const alone: Said[] = [];
  for (const i of list) alone.push(await say(engine, i));
  const running = await engine.finetune({ ...job, name: "beside", steps: 6 });
  const together = await Promise.all(list.map((i) => say(engine, i)));
  await running.done;
  return JSON.stringify(alone) === JSON.stringify(together);
}
/** Logits of rows, and of what computed them. */
const scored = async (bundle: string, families?: Families): Promise<number[]> => {
  const read = async (name: string): Promise<Uint8Array> => readFileSync(join(bundle, name));
  const core = await Core.open(
    { where: bundle, read },
    async (m, file) => (await openWebGpu(m, file, "hardware", { families }))!,
  );
  const { logits } = await core.score(idsOf("score", 70, VOCAB), { logits: true });
  await core.dispose();
  return logits!.flatMap((r) => [...r]);
};
/** What matrix units make is what sums by lanes of the same rounded numbers are, but for how sums round. */
async function ofUnits(device: DeviceChoice, folder: string, tell: Tell): Promise<void> {
  const bundle = join(folder, "laws-units.weft");
  await compile(writeModel(configs.even), bundle, {
    ...{ targets: ["webgpu"], products: "matrix", train: ["lora"], capacities: small },
  });
  {
    await using engine = await load(bundle, { device });
    const { invariance } = engine.core;
    tell("units: the check at load", invariance === "verified", `${invariance}, ${engine.device.numerics}`);
    const same = await apartAndTogether(engine);
    tell("units: law 4: alone = together beside a job", same, same ? "the same bits" : "other bits");
  }
  const off = far(await scored(bundle), await scored(bundle, { fewRows: null }));
  tell("units: logits as by lanes", off > 0 && off <= 1e-3, off.toExponential(1));
}
type Tell = (law: string, ok: boolean, found: string) => void;
/** `units`: has the device any? */
export async function laws(device: DeviceChoice, folder: string, units: boolean): Promise<Verdict[]> {
  const out: Verdict[] = [];
  const tell: Tell = (law, ok, found) => void out.push({ law, ok, found });
  for (const name of ["even", "odd"] as const) {
    const bundle = join(folder, `laws-${name}.weft`);
    const vocab = configs[name].vocab_size;
    await compile(writeModel(configs[name]), bundle, {
      targets: ["wasm", "webgpu"],
      train: ["lora", "s2ft"],
      capacities: small,
    });
    await using there = await load(bundle, { device });
    await using here = await load(bundle, { device: "wasm" });
    tell(`${name}: the check at load`, there.core.invariance === "verified", there.core.invariance);
    const ids = idsOf("score", 70, vocab);
    const logits = async (e: Engine, adapter?: string): Promise<number[]> =>
      (await e.score(ids, { logits: true, ...(adapter && { adapter }) })).logits!.flatMap((r) => [...r]);
    const apart = far(await logits(there), await logits(here));
    tell(`${name}: logits as on the CPU`, apart <= 1e-4, apart.toExponential(1));
    for (const method of ["lora", "s2ft"]) {
      const [a, b] = [await losses(there, method), await losses(here, method)];
      const off = far(a, b);
      tell(`${name}: losses of ${method} as on the CPU`, off <= 1e-4, off.toExponential(1));
    }
    if (name !== "even") continue;
    const same = await apartAndTogether(there);
    tell("law 4: alone = together beside a job", same, same ? "the same bits" : "other bits");
    const adapted = await logits(there, "lora");
    await there.merge("lora");
    const merged = far(await logits(there), adapted);
    await there.merge(null);
    tell("law 5: merged = unmerged", merged <= 1e-4, merged.toExponential(1));
    await there.adapters.get("lora").save(join(folder, "laws-lora"));
    await there.adapters.load("again", join(folder, "laws-lora"));
    const again = await logits(there, "again");
    const kept = again.every((x, i) => Object.is(x, adapted[i]));
    tell("law 7: saved = loaded", kept, kept ? "the same bits" : "other bits");
  }
  if (units) await ofUnits(device, folder, tell);
  return out;
}
