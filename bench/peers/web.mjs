/** A page's side of bench web: the same product by weft's kernel, TensorFlow.js and jax-js, turn by turn. */
import { defaultDevice, init, numpy as np } from "@jax-js/jax";
import * as tf from "@tensorflow/tfjs-core";
import "@tensorflow/tfjs-backend-webgpu";

const numbers = async (path) => new Float32Array(await (await fetch(path)).arrayBuffer());

/** weft's kernel on a device of its own. */
async function weft({ m, n, kernel }, x, packed) {
  const adapter = await navigator.gpu.requestAdapter();
  const { maxStorageBufferBindingSize, maxBufferSize } = adapter.limits;
  const quads = adapter.features.has("subgroups");
  const code = quads ? kernel.quads : kernel.alone;
  const device = await adapter.requestDevice({
    requiredFeatures: quads ? ["subgroups"] : [],
    requiredLimits: { maxStorageBufferBindingSize, maxBufferSize },
  });
  const buffer = (size, data) => {
    const { STORAGE, COPY_SRC, COPY_DST } = GPUBufferUsage;
    const made = device.createBuffer({ size, usage: STORAGE | COPY_SRC | COPY_DST });
    if (data) device.queue.writeBuffer(made, 0, data);
    return made;
  };
  const meta = new Int32Array(kernel.meta);
  meta[kernel.rows] = m;
  const of = {
    weights: buffer(packed.byteLength, packed),
    batch: buffer(meta.byteLength, meta),
    arena: buffer(kernel.words * 4, x),
  };
  const module = device.createShaderModule({ code });
  const pipeline = await device.createComputePipelineAsync({ layout: "auto", compute: { module } });
  const bound = [...code.matchAll(/@binding\((\d+)\) var<storage, \w+> (\w+)/g)];
  const group = device.createBindGroup({
    layout: pipeline.getBindGroupLayout(0),
    entries: bound.map(([, binding, id]) => ({ binding: Number(binding), resource: { buffer: of[id] } })),
  });
  return {
    adapter: `${adapter.info.vendor} ${adapter.info.architecture}${quads ? ", quads" : ""}`.trim(),
    multiply: async (times) => {
      const encoder = device.createCommandEncoder();
      const pass = encoder.beginComputePass();
      pass.setPipeline(pipeline);
      pass.setBindGroup(0, group);
      for (let i = 0; i < times; i++) pass.dispatchWorkgroups(...kernel.groups);
      pass.end();
      device.queue.submit([encoder.finish()]);
      await device.queue.onSubmittedWorkDone();
    },
    result: async () => {
      const bytes = m * n * 4;
      const { MAP_READ, COPY_DST } = GPUBufferUsage;
      const read = device.createBuffer({ size: bytes, usage: MAP_READ | COPY_DST });
      const encoder = device.createCommandEncoder();
      encoder.copyBufferToBuffer(of.arena, kernel.at * 4, read, 0, bytes);
      device.queue.submit([encoder.finish()]);
      await read.mapAsync(GPUMapMode.READ);
      return new Float32Array(read.getMappedRange());
    },
  };
}
async function tensorflow({ m, k, n }, x, w) {
  await tf.setBackend("webgpu");
  await tf.ready();
  const [a, b] = [tf.tensor2d(x, [m, k]), tf.tensor2d(w, [k, n])];
  const backend = tf.backend();
  return {
    multiply: async (times) => {
      for (let i = 0; i < times; i++) tf.matMul(a, b).dispose();
      backend.endComputePassEncoder();
      backend.submitQueue();
      await backend.queue.onSubmittedWorkDone();
    },
    result: () => tf.matMul(a, b).data(),
  };
}
async function jax({ m, k, n }, x, w) {
  await init("webgpu");
  defaultDevice("webgpu");
  const [a, b] = [np.array(x).reshape([m, k]), np.array(w).reshape([k, n])];
  return {
    multiply: async (times) => {
      const all = Array.from({ length: times }, () => np.matmul(a.ref, b.ref));
      for (const c of all) {
        await c.blockUntilReady();
        c.dispose();
      }
    },
    result: () => np.matmul(a.ref, b.ref).data(),
  };
}
const far = (got, want) => {
  const largest = want.reduce((most, v) => Math.max(most, Math.abs(v)), 0);
  return want.reduce((most, v, i) => Math.max(most, Math.abs(v - got[i])), 0) / largest;
};
async function measure() {
  const asked = await (await fetch("/asked")).json();
  const [x, w, packed] = await Promise.all(["/x", "/w", "/packed"].map(numbers));
  const ours = await weft(asked, x, packed);
  const all = {
    weft: ours,
    "tfjs webgpu": await tensorflow(asked, x, w),
    "jax-js webgpu": await jax(asked, x, w),
  };
  const ms = {};
  const error = {};
  // The first time counts for nobody: kernels are compiled.
  for (const c of Object.values(all)) await c.multiply(1);
  const want = await ours.result();
  for (const [name, c] of Object.entries(all)) if (c !== ours) error[name] = far(await c.result(), want);
  for (let turn = 0; turn < asked.repeats; turn++)
    for (const [name, { multiply }] of Object.entries(all)) {
      const t0 = performance.now();
      await multiply(asked.times);
      (ms[name] ??= []).push((performance.now() - t0) / asked.times);
    }
  return { adapter: ours.adapter, ms, error };
}
const told = await measure().catch((e) => ({ failed: String(e?.stack ?? e) }));
await fetch("/result", { method: "POST", body: JSON.stringify(told) });
