/** What a GPU gives: bytes a second of a copy, f32 multiply-adds a second, and what a launch costs. */
import { openAdapter } from "../../runtime/dawn.ts";
import { type Unit, unitFeatures, unitOf } from "../../runtime/matrix.ts";
import { median } from "../measure.ts";

export interface Rates {
  /** GB/s, read plus written. */
  readonly copy: number;
  /** TFLOP/s of f32 fma. */
  readonly fma: number;
  /** TFLOP/s of matrix units, of f16 summed in f32; null where there are none. */
  readonly units: number | null;
  /** Microseconds of a launch that waits for the one before. */
  readonly launch: number;
}
export interface Adapter {
  readonly name: string;
  readonly vendor: string;
  readonly architecture: string;
  readonly features: readonly string[];
  readonly limits: Readonly<Record<string, number>>;
}

const COPY = `
@group(0) @binding(0) var<storage, read> src: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read_write> dst: array<vec4<f32>>;
@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  let at = wg.x * 1024u + lane;
  for (var i = 0u; i < 4u; i++) { dst[at + i * 256u] = src[at + i * 256u]; }
}`;
const TURNS = 256;
const CHAINS = 8;
const each = (f: (i: number) => string): string => Array.from({ length: CHAINS }, (_, i) => f(i)).join(" ");
const FMA = `
@group(0) @binding(0) var<storage, read> src: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read_write> dst: array<vec4<f32>>;
@compute @workgroup_size(256)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
  let x = src[id.x % 64u];
  ${each((i) => `var a${i} = x * ${i + 1}.0f;`)}
  for (var i = 0u; i < ${TURNS}u; i++) {
    ${each((i) => `a${i} = fma(a${i}, x, x);`)}
  }
  dst[id.x] = ${Array.from({ length: CHAINS }, (_, i) => `a${i}`).join(" + ")};
}`;

/** Sums of four products that wait for nobody, by each subgroup: what units give. */
const ofUnits = ({ m, n, k, lanes, asks }: Unit): string => `
enable f16; enable subgroups; enable chromium_experimental_subgroup_matrix;
${asks ? "enable subgroup_size_control;" : ""}
diagnostic(off, chromium.subgroup_matrix_uniformity);
@group(0) @binding(0) var<storage, read> src: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read_write> dst: array<vec4<f32>>;
var<workgroup> tile: array<f16, 1024>;
var<workgroup> sums: array<f32, 1024>;
@compute ${asks ? `@subgroup_size(${lanes}) ` : ""}@workgroup_size(256)
fn main(@builtin(global_invocation_id) id: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  for (var i = 0u; i < 4u; i++) { tile[lane * 4u + i] = f16(src[lane % 64u][i]); }
  workgroupBarrier();
  let left = subgroupMatrixLoad<subgroup_matrix_left<f16, ${k}, ${m}>, row_major>(&tile, 0u, ${k}u);
  let right = subgroupMatrixLoad<subgroup_matrix_right<f16, ${n}, ${k}>, col_major>(&tile, 0u, ${k}u);
  ${[0, 1, 2, 3].map((i) => `var a${i} = subgroup_matrix_result<f32, ${n}, ${m}>(f32(${i}));`).join(" ")}
  for (var i = 0u; i < ${TURNS}u; i++) {
    ${[0, 1, 2, 3].map((i) => `a${i} = subgroupMatrixMultiplyAccumulate(left, right, a${i});`).join(" ")}
  }
  ${[0, 1, 2, 3].map((i) => `subgroupMatrixStore<row_major>(&sums, ${i * m * n}u, a${i}, ${n}u);`).join(" ")}
  workgroupBarrier();
  dst[id.x] = vec4<f32>(sums[lane], sums[lane + 256u], sums[lane + 512u], sums[lane + 768u]);
}`;

export async function measure(
  kind: "hardware" | "software",
): Promise<{ adapter: Adapter; rates: Rates } | null> {
  const gpu = await openAdapter(kind);
  if (!gpu) return null;
  const software = kind === "software";
  const { info } = gpu;
  const limits: Record<string, number> = {};
  for (const key in gpu.limits) {
    const value = gpu.limits[key as keyof GPUSupportedLimits];
    if (typeof value === "number") limits[key] = value;
  }
  const bytes = Math.min(software ? 2 ** 24 : 2 ** 28, limits.maxStorageBufferBindingSize!);
  const unit = unitOf(gpu);
  const device = await gpu.requestDevice({
    requiredFeatures: (unit ? unitFeatures(unit) : []) as GPUFeatureName[],
    requiredLimits: { maxStorageBufferBindingSize: bytes, maxBufferSize: bytes },
  });
  try {
    const [from, to] = [0, 1].map(() => device.createBuffer({ size: bytes, usage: GPUBufferUsage.STORAGE }));
    /** Milliseconds of a launch of `groups`, of many in a row that wait for each other. */
    const time = async (code: string, groups: number, times: number): Promise<number> => {
      const module = device.createShaderModule({ code });
      const pipeline = await device.createComputePipelineAsync({ layout: "auto", compute: { module } });
      const group = device.createBindGroup({
        layout: pipeline.getBindGroupLayout(0),
        entries: [from!, to!].map((buffer, binding) => ({ binding, resource: { buffer } })),
      });
      const play = async (n: number): Promise<number> => {
        const encoder = device.createCommandEncoder();
        const pass = encoder.beginComputePass();
        pass.setPipeline(pipeline);
        pass.setBindGroup(0, group);
        for (let i = 0; i < n; i++) pass.dispatchWorkgroups(groups);
        pass.end();
        const t0 = performance.now();
        device.queue.submit([encoder.finish()]);
        await device.queue.onSubmittedWorkDone();
        return performance.now() - t0;
      };
      await play(2);
      const runs: number[] = [];
      // What a submission costs is in both, and falls out.
      for (let r = 0; r < 5; r++) runs.push(((await play(times + 1)) - (await play(1))) / times);
      return median(runs);
    };
    const copied = bytes / 16384;
    const threads = (software ? 2 ** 12 : 2 ** 20) / 256;
    const copy = (2 * bytes) / 1e6 / (await time(COPY, copied, software ? 8 : 40));
    const flops = threads * 256 * TURNS * CHAINS * 4 * 2;
    const fma = flops / 1e9 / (await time(FMA, threads, software ? 4 : 20));
    const subgroups = unit ? threads * (256 / unit.lanes) : 0;
    const products = unit ? subgroups * TURNS * 4 * 2 * unit.m * unit.n * unit.k : 0;
    const units = unit && products / 1e9 / (await time(ofUnits(unit), threads, 20));
    const launch = 1000 * (await time(COPY, 1, software ? 200 : 2000));
    return {
      adapter: {
        name: info.description || info.device || info.vendor,
        vendor: info.vendor,
        architecture: info.architecture,
        features: [...gpu.features].sort(),
        limits,
      },
      rates: { copy, fma, units, launch },
    };
  } finally {
    device.destroy();
  }
}
