/** Run by a process whose engine has relaxed SIMD: prints what it found, as one line of JSON. */
import { load } from "../../sdk/index.ts";
import { batchOf, bits, bundle, configs, contentBits, idsOf } from "./engines.ts";
import { scratch } from "./tiny.ts";

const path = await bundle(configs.even, { relaxed: true });
const ids = idsOf("relaxed", 60, 128);
const job = { name: "job", data: batchOf(128), steps: 2, batchSize: 5, rank: 4, learningRate: 5e-3 };
const dir = scratch();
const run = async (options: { relaxed?: boolean; threads?: number }) => {
  await using engine = await load(path, { device: "wasm", ...options });
  const { logits } = await engine.score(ids, { logits: true });
  let saved: Promise<void> | null = null;
  const j = await engine.finetune({
    ...job,
    onEvent: (e) => {
      if (options.relaxed === undefined && e.type === "step" && e.step === 1)
        saved = j.checkpoint(`${dir}/checkpoint`);
    },
  });
  const { losses } = await j.done;
  await saved;
  const refused =
    options.relaxed === false
      ? await engine.finetune({ ...job, resume: `${dir}/checkpoint` }).then(
          () => null,
          (e: { code: string; message: string }) => e,
        )
      : null;
  return {
    numerics: engine.core.info.numerics,
    invariance: engine.core.invariance,
    logits: logits!,
    losses,
    content: contentBits(engine, "job"),
    refused,
  };
};
const relaxed = await run({ threads: 1 });
const two = await run({ threads: 2, relaxed: true });
const exact = await run({ relaxed: false });
let max = 0;
let error = 0;
relaxed.logits.forEach((row, i) =>
  row.forEach((x, j) => {
    max = Math.max(max, Math.abs(x));
    error = Math.max(error, Math.abs(x - exact.logits[i]![j]!));
  }),
);
const same = (a: typeof exact, b: typeof exact): boolean =>
  a.logits.every((row, i) => bits(row) === bits(b.logits[i]!)) &&
  a.content === b.content &&
  String(a.losses) === String(b.losses);
console.log(
  JSON.stringify({
    taken: relaxed.numerics,
    forced: exact.numerics,
    invariance: relaxed.invariance,
    same: same(relaxed, exact),
    near: error < 1e-4 * max && relaxed.losses.every((x, i) => Math.abs(x - exact.losses[i]!) < 1e-4),
    threads: same(relaxed, two),
    resumed: exact.refused?.code,
    numerics: /numerics/.test(exact.refused?.message ?? ""),
  }),
);
process.exit(0);
