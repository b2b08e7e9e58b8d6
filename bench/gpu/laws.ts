/** The laws on a device, with tiny models: against the CPU's kernels, and against itself, bit for bit. */
import { join } from "node:path";
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

export async function laws(device: DeviceChoice, folder: string): Promise<Verdict[]> {
  const out: Verdict[] = [];
  const tell = (law: string, ok: boolean, found: string): void => void out.push({ law, ok, found });
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
    const list = [0, 1, 2, 3, 4];
    const alone: Said[] = [];
    for (const i of list) alone.push(await say(there, i));
    const running = await there.finetune({ ...job, name: "beside", steps: 6 });
    const together = await Promise.all(list.map((i) => say(there, i)));
    await running.done;
    const same = JSON.stringify(alone) === JSON.stringify(together);
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
  return out;
}
