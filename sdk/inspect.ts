/** The commands that look: at a bundle, at a shape, at this machine. */
import { type Manifest, planOf, sizesFor } from "../runtime/bundle.ts";
import { openAdapter } from "../runtime/dawn.ts";
import { readManifest } from "../runtime/load.ts";
import { openReader } from "../runtime/reader.ts";
import { measureWasm, wasmLimits } from "../runtime/wasm.ts";
import { measureWebGpu, webGpuLimits } from "../runtime/webgpu.ts";
import { parseJson, readFileOr } from "./files.ts";
import { type Command, type Flags, fail, kb, number, string } from "./flags.ts";
import { planMemory } from "./index.ts";
import { bytesOf } from "./options.ts";

/** What a load of one thread would choose, with `--for`: of so many bytes. */
function roomOf(m: Manifest, target: "wasm" | "webgpu", f: Flags, limits = roomLimits[target]) {
  const memory = f.for === undefined ? undefined : bytesOf(f.for);
  if (Number.isNaN(memory)) fail("--for", "bytes, or a text like 512MB", String(f.for));
  const { layers } = m.model;
  const measure = target === "wasm" ? measureWasm(layers, 1, 1) : measureWebGpu(layers);
  const sizes = sizesFor(m, target, { memory }, limits, measure);
  const plan = planOf(m, target, sizes);
  return { sizes, plan, bytes: measure(plan).total };
}
const roomLimits = { wasm: wasmLimits, webgpu: webGpuLimits };
/** Memory by method for a shape: a model folder's, or a preset's. */
async function inspectMemory(f: Flags, json: boolean): Promise<void> {
  const model = f.model ? string(f, "model") : "llama-2-7b";
  const tokens = number(f, "tokens") ?? 512;
  const rank = number(f, "rank") ?? 16;
  const folder = /[\\/.]/.test(model);
  const rows = await planMemory(
    folder ? parseJson(await readFileOr(`${model}/config.json`, "WEFT_IO"), `${model}/config.json`) : model,
    { tokens, rank },
  );
  if (json) return console.log(JSON.stringify({ model, tokens, rank, methods: rows }));
  const gb = (n: number): string => (n / 1e9).toFixed(2);
  console.log(
    `${model}, ${tokens} tokens a step, rank ${rank}; GB. Weights f16 where frozen, f32 for full; kept: all · recomputing inside a layer · recomputing nothing`,
  );
  const table = [
    ["method", "trainable", "weights", "kept", "boundary", "no recompute", "grad + Adam", "sum"],
    ...rows.map((r) => [
      r.method,
      r.trainable.toLocaleString("en"),
      ...[
        r.weightBytes,
        r.savedBytes,
        r.boundaryBytes,
        r.readBytes,
        r.stateBytes,
        r.weightBytes + r.savedBytes + r.stateBytes,
      ].map(gb),
    ]),
  ];
  const widths = table[0]!.map((_, i) => Math.max(...table.map((r) => r[i]!.length)));
  for (const r of table)
    console.log(r.map((c, i) => (i ? c.padStart(widths[i]!) : c.padEnd(widths[0]!))).join("  "));
}

/** What a bundle holds; with `--memory`, what methods take of a shape. */
export const inspect: Command = async ([bundle], f, json) => {
  if (f.memory) return inspectMemory(f, json);
  const m = await readManifest(await openReader(bundle ?? fail("inspect", "a bundle", "nothing")));
  if (json) return console.log(JSON.stringify(m));
  if (f.graph) {
    const graphs = new TextDecoder()
      .decode(await (await openReader(bundle!)).read("graphs.txt"))
      .split(/^(?=# )/m);
    const names = graphs.map((g) => g.slice(2, g.indexOf("\n")));
    return console.log(
      (
        graphs[names.indexOf(string(f, "graph"))] ?? fail("--graph", names.join(", "), string(f, "graph"))
      ).trimEnd(),
    );
  }
  console.log(
    `${m.model.family}, ${m.model.parameters} parameters, ${m.model.layers} layers × ${m.model.hiddenSize}, ${m.model.heads}/${m.model.kvHeads} heads × ${m.model.headDim}, vocab ${m.model.vocab}, ${m.model.format}, base ${m.base.slice(0, 12)}`,
  );
  console.log(
    `policy ${m.policy}; trains ${m.train.join(", ") || "nothing"}; capacities ${Object.entries(m.capacities)
      .map(([k, v]) => `${k} ${v}`)
      .join(", ")}`,
  );
  for (const [cls, s] of Object.entries(m.saved))
    console.log(
      `saved activations, ${cls}: ${s.bytes.naive} bytes a token a layer naive, ${s.bytes.all} pruned, ${s.bytes.boundary} boundary  (${s.fields.map((x) => `${x.name.replace(/^\w+\./, "")}×${x.cols}`).join(", ")})`,
    );
  for (const name of ["wasm", "webgpu"] as const) {
    if (!m.targets[name]) continue;
    const { sizes, plan, bytes } = roomOf(m, name, f);
    const list = Object.entries(sizes).map(([k, v]) => `${k} ${v}`);
    console.log(
      `\ntarget ${name}: ${Object.keys(plan.kernels).length} kernels, arena ${kb(plan.arenaWords * 4)}, metadata ${kb(plan.metaWords * 4)}; a load takes ${kb(bytes)}: ${list.join(", ")}`,
    );
    for (const [cls, w] of Object.entries(plan.classes))
      console.log(
        `  ${cls.padEnd(9)} ${kb(w.layer * 4).padStart(10)} a layer, ${kb((w.layer * m.model.layers + w.outer) * 4).padStart(10)} in all`,
      );
    for (const p of plan.programs) {
      // Of two kernels for few rows and for many, a step launches one.
      const launches = p.launches.filter((l) => l.grid[0].count !== "few_rows");
      const always = launches.filter((l) => l.bits.length === 0).length;
      console.log(
        `  ${p.name.padEnd(24)} ${String(launches.length).padStart(2)} launches (${always} when nothing is adapted or trained)${p.region === "layer" ? " a layer" : ""}`,
      );
      if (f.kernels) for (const l of p.launches) console.log(`      ${l.kernel}`);
    }
  }
};

/** What this machine has, and what a load of a bundle would choose on it. */
export const doctor: Command = async ([bundle], f, json) => {
  const report: Record<string, unknown> = {
    node: process.version,
    platform: `${process.platform} ${process.arch}`,
    simd: WebAssembly.validate(
      new Uint8Array([
        0, 97, 115, 109, 1, 0, 0, 0, 1, 5, 1, 96, 0, 1, 123, 3, 2, 1, 0, 10, 10, 1, 8, 0, 65, 0, 253, 15, 253,
        98, 11,
      ]),
    ),
  };
  const adapter = await openAdapter("hardware").catch(() => null);
  report.webgpu = adapter
    ? {
        name: adapter.info.description || adapter.info.device,
        vendor: adapter.info.vendor,
        storageBinding: adapter.limits.maxStorageBufferBindingSize,
        bufferSize: adapter.limits.maxBufferSize,
        features: [...adapter.features],
      }
    : "no adapter: weft runs on Wasm (device: software needs the webgpu and @sparticuz/chromium packages)";
  if (bundle !== undefined) {
    const m = await readManifest(await openReader(bundle));
    const has = {
      wasm: wasmLimits,
      webgpu: adapter && { ...webGpuLimits, chamber: adapter.limits.maxStorageBufferBindingSize },
    };
    for (const target of ["wasm", "webgpu"] as const) {
      const limits = has[target];
      if (!m.targets[target] || !limits) continue;
      const { sizes, bytes } = roomOf(m, target, f, limits);
      report[`a load on ${target}`] = { bytes, ...sizes };
    }
  }
  console.log(
    json
      ? JSON.stringify(report)
      : Object.entries(report)
          .map(([k, v]) => `${k}: ${typeof v === "object" ? JSON.stringify(v) : v}`)
          .join("\n"),
  );
};
