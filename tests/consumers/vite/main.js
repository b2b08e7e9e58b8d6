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
  const told = await compile("model", "model.weft").catch((e) => e.message);
  await engine.dispose();
  await send({ ids, losses: [...losses], told });
} catch (e) {
  await send({ error: String(e?.stack ?? e) });
}
