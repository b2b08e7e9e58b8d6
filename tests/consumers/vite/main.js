// A page: the same for Vite and for esbuild. The bundle lies beside it, its address is relative.
import { compile, load } from "@weft/sdk";

const send = (result) => fetch("/result", { method: "POST", body: JSON.stringify(result) });
try {
  const { prompt } = await (await fetch("/asked.json")).json();
  const engine = await load("model.weft?token=abc", { device: "wasm" });
  const { ids } = await engine.complete({ prompt, maxTokens: 6 });
  const job = await engine.finetune({
    name: "j",
    data: "rows.jsonl",
    steps: 1,
    batchSize: 5,
    shuffle: false,
    rank: 4,
  });
  const { losses } = await job.done;
  const told = await compile("model", "model.weft").catch((e) => e.stack);
  const names = [engine, job, engine.core, engine.adapters.get("j")].map((x) => x.constructor.name);
  await engine.dispose();
  // The same in a worker, whose script the bundler has to find.
  const { createWorkerEngine } = await import("@weft/sdk/worker");
  const there = await createWorkerEngine("model.weft", { device: "wasm" });
  const apart = (await there.complete({ prompt, maxTokens: 6 })).ids;
  await there.dispose();
  await send({ ids, losses: [...losses], told, apart, names: [...names, there.constructor.name] });
} catch (e) {
  await send({ error: String(e?.stack ?? e) });
}
