/**
 * llama.cpp on a GGUF file, through node-llama-cpp, two threads: node llama.mjs FILE [vulkan]. A Vulkan
 * device that is a CPU it takes only when GGML_VK_VISIBLE_DEVICES names it.
 */
import { getLlama } from "node-llama-cpp";
import { prompt, serve, timed } from "./serve.mjs";

const [file, vulkan] = process.argv.slice(2);
const llama = await getLlama({
  gpu: vulkan ? "vulkan" : false,
  build: "never",
  logLevel: "error",
  maxThreads: 2,
  progressLogs: false,
});
const devices = vulkan ? await llama.getGpuDeviceNames() : ["CPU"];
// Without a device it would compute on the CPU, and say nothing.
if (!devices.length) throw new Error("llama.cpp found no Vulkan device");
const model = await llama.loadModel({ modelPath: file, gpuLayers: vulkan ? "max" : 0 });
const context = (sequences, more = {}) =>
  model.createContext({ contextSize: 1024, batchSize: 512, threads: 2, sequences, ...more });

await serve({
  device: async () => ({ name: `${devices.join(", ")}, ${model.gpuLayers} layers on it` }),
  /** `lora`: the file of an adapter; `context`: tokens that there is room for. */
  greedy: async ({ ids, count, context: contextSize, lora }) => {
    const c = await context(1, { ...(contextSize && { contextSize }), ...(lora && { lora }) });
    const out = [];
    for await (const t of c.getSequence().evaluate(ids, { temperature: 0, yieldEogToken: true }))
      if (out.push(t) >= count) break;
    await c.dispose();
    return { ids: out };
  },
  tokenize: ({ texts }) => ({ ids: texts.map((t) => model.tokenize(t, false)) }),
  prefill: async ({ n }) => {
    const c = await context(1);
    const s = c.getSequence();
    let seed = 0;
    const ms = await timed(async () => {
      await s.clearHistory();
      await s.evaluateWithoutGeneratingNewTokens(prompt(n, seed++));
    });
    await c.dispose();
    return { ms };
  },
  /** Milliseconds a step of `batch` sequences. */
  decode: async ({ batch, tokens }) => {
    const c = await context(batch);
    const all = Array.from({ length: batch }, () => c.getSequence());
    for (const [i, s] of all.entries()) await s.evaluateWithoutGeneratingNewTokens(prompt(31, i));
    const stamps = [];
    await Promise.all(
      all.map(async (s, i) => {
        let n = 0;
        for await (const _ of s.evaluate([500 + i], { temperature: 0, yieldEogToken: true })) {
          if (!i) stamps.push(performance.now());
          if (++n >= tokens) break;
        }
      }),
    );
    await c.dispose();
    return { ms: (stamps.at(-1) - stamps[2]) / (stamps.length - 3) };
  },
});
