// Plain JavaScript in Node: compiles, loads, generates, teaches.
import { inspect } from "node:util";
import { compile, load, WeftError } from "@weft/sdk";
import { WeftError as same } from "@weft/sdk/runtime";
import { createWorkerEngine, WeftError as third } from "@weft/sdk/worker";

const { model, out, options, prompt, rows } = JSON.parse(process.argv[2]);
await compile(model, out, options);
const engine = await load(out, { device: "wasm", threads: 1 });
const { ids } = await engine.complete({ prompt, maxTokens: 6 });
const job = await engine.finetune({ name: "j", data: rows, steps: 1, batchSize: 5, shuffle: false, rank: 4 });
const { losses } = await job.done;
const shown = [engine, job, engine.core, engine.adapters.get("j")];
await engine.dispose();
// The same in a thread of its own.
const there = await createWorkerEngine(out, { device: "wasm", threads: 1 });
const apart = (await there.complete({ prompt, maxTokens: 6 })).ids;
const names = [...shown, there].map((x) => /^\S+/.exec(inspect(x))[0]);
await there.dispose();
const told = await load("/nowhere").catch((e) => [inspect(e), e.stack]);
console.log(
  JSON.stringify({ ids, losses: [...losses], apart, one: WeftError === same && same === third, told, names }),
);
