/** onnxruntime-web's Wasm backend: one MatMul with a constant right side, two threads. */
import ort from "onnxruntime-web";
import { serve, timed } from "./serve.mjs";

ort.env.wasm.numThreads = 2;
const varint = (n) => {
  const out = [];
  for (; n > 127; n = Math.floor(n / 128)) out.push((n & 127) | 128);
  return Buffer.from([...out, n]);
};
const bytes = (field, b) => Buffer.concat([varint(field * 8 + 2), varint(b.length), b]);
const int = (field, n) => Buffer.concat([varint(field * 8), varint(n)]);
const text = (field, s) => bytes(field, Buffer.from(s));
const shaped = (name, dims) =>
  Buffer.concat([
    text(1, name),
    bytes(
      2,
      bytes(1, Buffer.concat([int(1, 1), bytes(2, Buffer.concat(dims.map((d) => bytes(1, int(1, d)))))])),
    ),
  ]);
/** y = x · w as an ONNX model: protobuf by hand, field numbers from onnx.proto. */
function matmul(m, k, n) {
  const w = new Float32Array(k * n).map(() => Math.random() - 0.5);
  const initializer = Buffer.concat([
    int(1, k),
    int(1, n),
    int(2, 1),
    text(8, "w"),
    bytes(9, Buffer.from(w.buffer)),
  ]);
  const node = Buffer.concat([text(1, "x"), text(1, "w"), text(2, "y"), text(4, "MatMul")]);
  const graph = Buffer.concat([
    bytes(1, node),
    text(2, "g"),
    bytes(5, initializer),
    bytes(11, shaped("x", [m, k])),
    bytes(12, shaped("y", [m, n])),
  ]);
  return Buffer.concat([int(1, 8), bytes(7, graph), bytes(8, int(2, 13))]);
}
const sessions = new Map();
await serve({
  matmul: async ({ m, k, n }) => {
    const key = `${m} ${k} ${n}`;
    if (!sessions.has(key))
      sessions.set(key, await ort.InferenceSession.create(matmul(m, k, n), { executionProviders: ["wasm"] }));
    const x = new ort.Tensor("float32", new Float32Array(m * k).fill(0.1), [m, k]);
    const ms = await timed(async () => {
      for (let i = 0; i < 4; i++) await sessions.get(key).run({ x });
    }, 5);
    return { ms: ms / 4 };
  },
});
