/**
 * Products in a page: weft's kernel beside TensorFlow.js and jax-js on WebGPU, on one page of one Chromium
 * (its own software adapter, SwiftShader), turn by turn. weft's is the kernel that a bundle has for such a
 * device, alone. Peers are installed into the temporary folder (bench/peers).
 *
 *   npm run -s bench -- web [--repeats 5] [--shapes 512x2048x2048,1x2048x8192]
 */
import { join } from "node:path";
import { parseArgs } from "node:util";
import { build } from "esbuild";
import { emitLaunchWgsl, gridOf } from "../compiler/emit/wgsl.ts";
import { fuse } from "../compiler/fuse.ts";
import type { KernelEnv } from "../compiler/kernel.ts";
import { inQuads } from "../compiler/kernels/text/quads.ts";
import { PLAIN_ROWS } from "../compiler/kernels/text/wgsl_plain.ts";
import { blockLayouts } from "../compiler/metadata.ts";
import { align, defaultCapacities, targets } from "../compiler/target.ts";
import { Graph, isInput, linear, valueKey } from "../ops/index.ts";
import { headerWords } from "../runtime/bundle.ts";
import { pack } from "../runtime/formats.ts";
import { store } from "../runtime/values.ts";
import { openChromium, type Served } from "../tests/support/chromium.ts";
import { uniform } from "../tests/support/random.ts";
import { peerFolder } from "./contender.ts";
import { median, spread, table } from "./measure.ts";

interface Shape {
  readonly m: number;
  readonly k: number;
  readonly n: number;
}
/** As many rows as a prompt has, one row, and sizes that no tile divides. */
const usual = "512x2048x2048,128x576x1536,1x2048x8192,1x576x1536,77x300x1001";
/** Operations of a measurement, at least: short products are made again and again. */
const ENOUGH = 2e8;
const aim = 2;

interface Told {
  readonly adapter: string;
  /** Milliseconds of a product, by contender. */
  readonly ms: Readonly<Record<string, readonly number[]>>;
  /** The largest difference from weft's numbers, of the largest of these. */
  readonly error: Readonly<Record<string, number>>;
  readonly failed?: string;
}

export async function main(args: string[]): Promise<void> {
  const { values } = parseArgs({
    args,
    options: { repeats: { type: "string", default: "5" }, shapes: { type: "string", default: usual } },
  });
  const shapes = values.shapes.split(",").map((text): Shape => {
    const [m, k, n] = text.split("x").map(Number);
    if (!m || !k || !n) throw new Error(`--shapes ${text}: expected ROWSxTERMSxCOLUMNS`);
    return { m, k, n };
  });
  const dir = peerFolder();
  if (!dir) throw new Error("npm could not install the peers");
  const { outputFiles } = await build({
    ...{ entryPoints: [join(dir, "web.mjs")], bundle: true, write: false, format: "esm" },
    ...{ target: "es2022", logLevel: "error" },
  });
  const script = outputFiles[0]!.text;
  let served = new Map<string, Served>();
  const browser = await openChromium((path) => served.get(path) ?? null, {
    patience: 900_000,
    shipped: true,
  });
  const found: { name: string; told: Told; gflop: number }[] = [];
  try {
    for (const shape of shapes) {
      const { m, k, n } = shape;
      const name = `${m} × ${k} × ${n}`;
      process.stdout.write(`  ${name}\r`);
      const gflop = (2 * m * k * n) / 1e9;
      const times = Math.ceil(ENOUGH / (gflop * 1e9));
      const repeats = Number(values.repeats);
      served = pageOf(shape, script, { ...shape, times, repeats });
      const told = await browser.open<Told>("/");
      if (told.failed) throw new Error(`${name}: ${told.failed}`);
      found.push({ name, told, gflop });
    }
  } finally {
    browser.close();
  }
  const who = Object.keys(found[0]!.told.ms);
  console.log(`${found[0]!.told.adapter}; GFLOP/s`);
  table([
    ["", ...who, ...who.slice(1).map((w) => `/ ${w}`), "differ by"],
    ...found.map(({ name, told, gflop }) => [
      name,
      ...who.map((w) =>
        spread(
          told.ms[w]!.map((ms) => (gflop * 1000) / ms),
          2,
        ),
      ),
      ...ratios(told).map((r) => r.toFixed(2)),
      Object.values(told.error)
        .map((e) => e.toExponential(0))
        .join(", "),
    ]),
  ]);
  const wrong = found.filter(({ told }) => Object.values(told.error).some((e) => !(e < 1e-4)));
  for (const { name } of wrong) console.log(`WRONG ${name}: not the others' numbers`);
  const ok = !wrong.length && found.every(({ told }) => ratios(told).every((r) => r >= aim));
  const told = found.map((f) => ({ shape: f.name, ms: f.told.ms, ratios: ratios(f.told) }));
  console.log(JSON.stringify({ bench: "web", ok, aim, adapter: found[0]!.told.adapter, shapes: told }));
}
/** How much longer each of the others takes, within a turn. */
const ratios = ({ ms }: Told): number[] => {
  const [ours, ...others] = Object.values(ms);
  return others.map((theirs) => median(theirs.map((t, i) => t / ours![i]!)));
};
/** What the page asks for: itself, its script, the kernel, and the matrices as each wants them. */
function pageOf(shape: Shape, script: string, asked: object): Map<string, Served> {
  const { m, k, n } = shape;
  const x = uniform("web x", m * k);
  const w = uniform("web w", n * k);
  const turned = new Float32Array(k * n);
  for (let i = 0; i < n; i++) for (let j = 0; j < k; j++) turned[j * n + i] = w[i * k + j]!;
  const packed = pack("f32", store("f32", w, n, k, "w"), n, k, targets.webgpu.panel);
  const json = (value: object): Served => ({ type: "application/json", body: JSON.stringify(value) });
  const binary = ({ buffer, byteOffset, byteLength }: Float32Array | Uint32Array): Served => ({
    type: "application/octet-stream",
    body: new Uint8Array(buffer, byteOffset, byteLength),
  });
  return new Map<string, Served>([
    ["/", { type: "text/html", body: '<!doctype html><script type="module" src="/page.js"></script>' }],
    ["/page.js", { type: "text/javascript", body: script }],
    ["/asked", json({ ...asked, kernel: kernelOf(shape) })],
    ["/x", binary(x)],
    ["/w", binary(turned)],
    ["/packed", binary(packed)],
  ]);
}
/** y = x · Wᵀ alone: rows and results in the arena, the matrix in panels. */
function kernelOf({ m, k, n }: Shape) {
  const graph = new Graph();
  const x = graph.input("web", "x", { kind: "rows", domain: "T", cols: k });
  const w = graph.input("web", "w", { kind: "weight", n, k, format: "f32" });
  const y = linear(x, w, "y");
  const [launch] = fuse([y], { fuse: false });
  const at = align(m * k);
  const capacities = { ...defaultCapacities(m), tokens: m };
  const none = { slots: { row: 0, branches: [] }, jobWords: 0, groups: 1, norms: 0, partials: 0 };
  const env: KernelEnv = {
    ...{ ...none, products: "f32", plainRows: PLAIN_ROWS, capacities },
    layout: blockLayouts(capacities, []).step,
    panel: targets.webgpu.panel,
    address: (v) => {
      if (valueKey(v) === valueKey(y)) return { space: "arena", offset: at, stride: n };
      if (isInput(v) && v.type.kind === "weight") return { space: "weights", offset: 0, stride: 0 };
      return { space: "arena", offset: 0, stride: k };
    },
    param: (name) => {
      throw new Error(`a product asks for ${name}`);
    },
  };
  const grid = gridOf(launch!.bodies, env, "plain");
  const alone = emitLaunchWgsl("product", launch!.bodies, env, "plain");
  return {
    // Lanes exchange what they read where the adapter has subgroups, as a bundle's kernels do.
    ...{ alone, quads: inQuads(alone) ?? alone },
    groups: grid.map((g) => Math.ceil(((g.count === "one" ? 1 : m) * g.mul) / g.div)),
    rows: headerWords.indexOf("n_rows"),
    meta: env.layout.words,
    at,
    words: at + align(m * n),
  };
}
