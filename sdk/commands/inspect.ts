/** weft inspect: what a bundle holds and takes, or what methods take of a shape. */
import { isForMany, type Manifest, planOf, sizesFor } from "../../runtime/bundle.ts";
import { Host } from "../../runtime/host.ts";
import { readManifest, readVerified } from "../../runtime/load.ts";
import { openReader } from "../../runtime/reader.ts";
import { measureWasm, wasmLimits } from "../../runtime/wasm.ts";
import { measureWebGpu, webGpuLimits } from "../../runtime/webgpu.ts";
import { parseJson, readFileOr } from "../files.ts";
import { planMemory } from "../index.ts";
import { bytesOf, type MemoryOptions } from "../options.ts";
import { checkBundle } from "./bundle.ts";
import { type Command, type Flags, fail, needed, number, string, text, toggle } from "./command.ts";
import { bytes as kb, table } from "./progress.ts";

/** What a load of one thread would choose, with `--for`: of so many bytes. */
export function roomOf(m: Manifest, target: "wasm" | "webgpu", f: Flags, limits = roomLimits[target]) {
  const memory = f.for === undefined ? undefined : bytesOf(f.for);
  if (Number.isNaN(memory)) fail("--for", "bytes, or a text like 512MB", String(f.for));
  const { layers } = m.model;
  const measure = target === "wasm" ? measureWasm(layers, 1, 1) : measureWebGpu(layers);
  const sizes = sizesFor(m, target, { memory }, limits, measure);
  const plan = planOf(m, target, sizes);
  const { bytes: byPurpose, total } = measure(plan);
  return { sizes, plan, bytes: total, byPurpose };
}
/** What host.wasm takes for a load of such sizes: it is started, and asked. */
async function hostBytes(
  reader: Awaited<ReturnType<typeof openReader>>,
  m: Manifest,
  { sizes, plan }: Pick<ReturnType<typeof roomOf>, "sizes" | "plan">,
): Promise<number> {
  const host = await Host.open(
    { ...m, capacities: { ...m.capacities, ...sizes } },
    plan.metaWords,
    { families: { fewRows: null }, lanes: 1 },
    (await readVerified(reader, m, "host.wasm")) as BufferSource,
  );
  return host.exports.memory.buffer.byteLength;
}
/** Bytes of a load by target: in total, and by purpose. */
async function loads(reader: Awaited<ReturnType<typeof openReader>>, m: Manifest, f: Flags) {
  const out: Record<string, { total: number; bytes: Readonly<Record<string, number>> }> = {};
  for (const name of ["wasm", "webgpu"] as const) {
    if (!m.targets[name]) continue;
    const room = roomOf(m, name, f);
    const bytes = { ...room.byPurpose, host: await hostBytes(reader, m, room) };
    const planned = Object.values(room.byPurpose).reduce((a, b) => a + b, 0);
    // What alignment adds.
    out[name] = { total: room.bytes + bytes.host, bytes: { ...bytes, padding: room.bytes - planned } };
  }
  return out;
}
export const roomLimits = { wasm: wasmLimits, webgpu: webGpuLimits };
/** Memory by method for a shape: a model folder's, or a preset's. */
async function inspectMemory(f: Flags, json: boolean): Promise<void> {
  const model = f.model ? string(f, "model") : "llama-2-7b";
  const tokens = number(f, "tokens") ?? 512;
  const rank = number(f, "rank") ?? 16;
  const format =
    f.format === undefined ? "f16" : (string(f, "format") as NonNullable<MemoryOptions["format"]>);
  const folder = /[\\/]|^\.+$/.test(model);
  const rows = await planMemory(
    folder ? parseJson(await readFileOr(`${model}/config.json`, "WEFT_IO"), `${model}/config.json`) : model,
    { tokens, rank, format },
  );
  if (json) return console.log(JSON.stringify({ model, tokens, rank, format, methods: rows }));
  const gb = (n: number): string => (n / 1e9).toFixed(2);
  console.log(
    `${model}, ${tokens} tokens a step, rank ${rank}; GB. Weights ${format} where frozen, f32 for ` +
      "full; kept: all · recomputing inside a layer · recomputing nothing",
  );
  console.log(
    table([
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
    ]),
  );
}

async function inspectBundle(positional: readonly string[], f: Flags, json: boolean): Promise<void> {
  const bundle = needed(positional, "inspect", "a bundle");
  await checkBundle("inspect", bundle);
  const reader = await openReader(bundle);
  const m = await readManifest(reader);
  const taken = await loads(reader, m, f);
  if (json) return console.log(JSON.stringify({ ...m, loads: taken }));
  if (f.graph) {
    const graphs = new TextDecoder()
      .decode(await (await openReader(bundle)).read("graphs.txt"))
      .split(/^(?=# )/m);
    const names = graphs.map((g) => g.slice(2, g.indexOf("\n")));
    return console.log(
      (
        graphs[names.indexOf(string(f, "graph"))] ?? fail("--graph", names.join(", "), string(f, "graph"))
      ).trimEnd(),
    );
  }
  console.log(
    `${m.model.family}, ${m.model.parameters} parameters, ${m.model.layers} layers × ` +
      `${m.model.hiddenSize}, ${m.model.heads}/${m.model.kvHeads} heads × ${m.model.headDim}, vocab ` +
      `${m.model.vocab}, ${m.model.format}${rounded(m)}, base ${m.base.slice(0, 12)}`,
  );
  console.log(
    `policy ${m.policy}; trains ${m.train.join(", ") || "nothing"}; capacities ${Object.entries(m.capacities)
      .map(([k, v]) => `${k} ${v}`)
      .join(", ")}`,
  );
  for (const [cls, s] of Object.entries(m.saved))
    console.log(
      `saved activations, ${cls}: ${s.bytes.naive} bytes a token a layer naive, ${s.bytes.all} ` +
        `pruned, ${s.bytes.boundary} boundary  ` +
        `(${s.fields.map((x) => `${x.name.replace(/^\w+\./, "")}×${x.cols}`).join(", ")})`,
    );
  for (const name of ["wasm", "webgpu"] as const) {
    if (!m.targets[name]) continue;
    const { sizes, plan } = roomOf(m, name, f);
    const list = Object.entries(sizes).map(([k, v]) => `${k} ${v}`);
    console.log(
      `\ntarget ${name}: ${Object.keys(plan.kernels).length} kernels, arena ` +
        `${kb(plan.arenaWords * 4)}, metadata ${kb(plan.metaWords * 4)}; a load takes ` +
        `${kb(taken[name]!.total)}: ${list.join(", ")}`,
    );
    const purposes = Object.entries(taken[name]!.bytes).filter(([, n]) => n > 0);
    console.log(`  of these ${purposes.map(([purpose, n]) => `${purpose} ${kb(n)}`).join(", ")}`);
    for (const [space, w] of Object.entries(plan.spaces))
      console.log(
        `  ${space.padEnd(9)} ${kb(w.layer * 4).padStart(10)} a layer, ` +
          `${kb((w.layer * m.model.layers + w.outer) * 4).padStart(10)} in all`,
      );
    for (const p of plan.programs) {
      // Of two kernels for few rows and for many, a step launches one.
      const launches = p.launches.filter(isForMany);
      const always = launches.filter((l) => l.bits.length === 0).length;
      console.log(
        `  ${p.name.padEnd(24)} ${String(launches.length).padStart(2)} launches (${always} when ` +
          `nothing is adapted or trained)${p.region === "layer" ? " a layer" : ""}`,
      );
      if (f.kernels) for (const l of p.launches) console.log(`      ${l.kernel}`);
    }
  }
}

export const inspect: Command = {
  summary: "what a bundle holds and a load takes; with --memory, what methods take of a shape",
  synopsis: "BUNDLE | --memory",
  details:
    "What a load takes is of one thread, and what is allocated: the system gives much of it only " +
    "when it is used. Node itself, and adapters that are not on the device, come on top.",
  flags: {
    for: text("SIZE", "choose as a load of so much memory would, as 512MB"),
    kernels: toggle("name the kernels of each program"),
    graph: text("PROGRAM", "print the graph of a program"),
    memory: toggle("bytes by method, from a shape alone"),
    model: text("MODEL", "with --memory: a model folder, or a name such as llama-3.2-1b; default llama-2-7b"),
    tokens: text("N", "with --memory: tokens an optimizer step; default 512"),
    rank: text("N", "with --memory: default 16"),
    format: text("FORMAT", "with --memory: of frozen weights; default f16"),
  },
  run: (positional, f, json) => (f.memory ? inspectMemory(f, json) : inspectBundle(positional, f, json)),
};

/** What storing took of the checkpoint's numbers, if anything. */
export const rounded = ({ model: { rounding } }: Manifest): string =>
  rounding ? ` (rounding error ${(100 * rounding).toPrecision(2)} % of the weights)` : "";
