// A service with a text of its own: ids in, ids out, and a job, without the SDK.
import { openEngine, startJob } from "@weft/sdk/runtime";

const { bundle, prompt, rows } = JSON.parse(process.argv[2]);
const engine = await openEngine(bundle, { device: "wasm", threads: 1 });
const ids = [];
for await (const { id } of engine.generate({ prompt, maxTokens: 6 })) ids.push(id);
const job = startJob(
  engine,
  { name: "j", method: "lora", rows, steps: 1, batchSize: 5, shuffle: false, adapter: { rank: 4 } },
  [],
);
const { losses } = await job.done;
await engine.dispose();
console.log(JSON.stringify({ ids, losses: [...losses] }));
