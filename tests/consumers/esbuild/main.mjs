// One door of many: a bundler drops what is not used, and must keep what that needs.
import { load } from "@weft/sdk";

const { bundle, prompt } = JSON.parse(process.argv[2]);
const engine = await load(bundle, { device: "wasm", threads: 1 });
const { ids } = await engine.complete({ prompt, maxTokens: 6 });
await engine.dispose();
console.log(JSON.stringify({ ids }));
