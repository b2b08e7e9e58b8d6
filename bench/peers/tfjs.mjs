/**
 * TensorFlow.js on its Wasm backend (in Node: one thread): matmul, and a training step of an MLP 512-2048-512
 * at batch 128.
 */
import { createRequire } from "node:module";
import { dirname, join } from "node:path";
import { serve, timed } from "./serve.mjs";

const require = createRequire(import.meta.url);
const tf = require("@tensorflow/tfjs");
const { setWasmPaths } = require("@tensorflow/tfjs-backend-wasm");
setWasmPaths(join(dirname(require.resolve("@tensorflow/tfjs-backend-wasm/package.json")), "wasm-out/"));
await tf.setBackend("wasm");
await tf.ready();
const [batch, d, hidden] = [128, 512, 2048];
const x = tf.randomUniform([batch, d]);
const y = tf.randomUniform([batch, d]);
const w1 = tf.variable(tf.randomUniform([d, hidden], -0.05, 0.05));
const w2 = tf.variable(tf.randomUniform([hidden, d], -0.05, 0.05));
const optimizer = tf.train.sgd(0.1);
await serve({
  matmul: async ({ m, k, n }) => {
    const a = tf.randomUniform([m, k]);
    const b = tf.randomUniform([k, n]);
    const ms = await timed(async () => {
      const c = tf.matMul(a, b);
      await c.data();
      c.dispose();
    }, 5);
    a.dispose();
    b.dispose();
    return { ms };
  },
  step: async () => ({
    gflop: (5 * 2 * batch * d * hidden) / 1e9,
    ms: await timed(async () => {
      const loss = optimizer.minimize(
        () => tf.losses.meanSquaredError(y, tf.matMul(tf.relu(tf.matMul(x, w1)), w2)),
        true,
      );
      await loss.data();
      loss.dispose();
    }),
  }),
});
