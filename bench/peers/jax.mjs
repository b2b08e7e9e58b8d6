/** jax-js on its Wasm backend: matmul, and a jitted training step of an MLP 512-2048-512 at batch 128. */
import { serve, timed } from "./serve.mjs";

Object.defineProperty(globalThis, "navigator", {
  value: { userAgent: "node", hardwareConcurrency: 2 },
  configurable: true,
  writable: true,
});
const { numpy: np, init, defaultDevice, jit, grad, nn } = await import("@jax-js/jax");
await init("wasm");
defaultDevice("wasm");
const random = (r, c, s = 1) =>
  np.array(new Float32Array(r * c).map(() => (Math.random() - 0.5) * s)).reshape([r, c]);
const [batch, d, hidden] = [128, 512, 2048];
const x = random(batch, d);
const y = random(batch, d);
let p = { w1: random(d, hidden, 0.05), w2: random(hidden, d, 0.05) };
const loss = (p, x, y) => {
  const e = np.matmul(nn.relu(np.matmul(x, p.w1)), p.w2).sub(y);
  return np.mean(e.ref.mul(e));
};
const step = jit((p, x, y) => {
  const g = grad(loss)({ w1: p.w1.ref, w2: p.w2.ref }, x, y);
  return { w1: p.w1.sub(g.w1.mul(0.1)), w2: p.w2.sub(g.w2.mul(0.1)) };
});
await serve({
  matmul: async ({ m, k, n }) => {
    const [a, b] = [random(m, k), random(k, n)];
    const ms = await timed(async () => {
      const c = np.matmul(a.ref, b.ref);
      await c.blockUntilReady();
      c.dispose?.();
    }, 5);
    return { ms };
  },
  step: async () => ({
    gflop: (5 * 2 * batch * d * hidden) / 1e9,
    ms: await timed(async () => {
      p = step(p, x.ref, y.ref);
      await Promise.all([p.w1.blockUntilReady(), p.w2.blockUntilReady()]);
    }),
  }),
});
