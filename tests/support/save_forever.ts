/** Saves one adapter again and again until it is killed: arguments are a bundle and a folder. */
import { load } from "../../sdk/index.ts";
import { batchOf } from "./engines.ts";

const [bundle, dir] = process.argv.slice(2) as [string, string];
const engine = await load(bundle, { device: "wasm" });
await (await engine.finetune({ name: "a", data: batchOf(128), steps: 1 })).done;
for (;;) await engine.adapters.get("a").save(dir);
