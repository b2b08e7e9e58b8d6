/** weft inspect: what a bundle holds and takes, or what methods take of a shape. */
import {
  bytesOf,
  isForMany,
  isOf,
  kindsOf,
  type Manifest,
  planOf,
  type Sizes,
  showBytes,
  sizesFor,
} from "../../runtime/bundle.ts";
import { Host, readHost } from "../../runtime/host.ts";
import { readManifest, readVerified } from "../../runtime/load.ts";
import { openReader } from "../../runtime/reader.ts";
import { measureWasm, wasmLimits } from "../../runtime/wasm.ts";
import { measureWebGpu, shardsFor, webGpuLimits } from "../../runtime/webgpu.ts";
import { parseJson, readFileOr } from "../files.ts";
import { planMemory } from "../index.ts";
import type { MemoryOptions } from "../options.ts";
import { checkBundle } from "./bundle.ts";
import { type Command, type Flags, fail, needed, number, string, text, toggle } from "./command.ts";
import { table } from "./progress.ts";

/** What a load of one thread would choose, with `--for`: of so many bytes. */
export function roomOf(m: Manifest, target: "wasm" | "webgpu", f: Flags, limits = roomLimits[target]) {
  const memory = f.for === undefined ? undefined : bytesOf(f.for);
  if (Number.isNaN(memory)) fail("--for", "bytes, or a text like 512MB", String(f.for));
  const { layers } = m.model;
  const measure = target === "wasm" ? measureWasm(layers, 1, 1) : measureWebGpu(layers);
  const sizes = sizesFor(m, target, { memory }, limits, measure);
  const plan = planOf(m, target, sizes);
  const { bytes: byPurpose, total } = measure(plan);
  // On a CPU a tensor of any size is one.
  const shards = shardsFor(plan, limits.chamber).map(({ name, shards }) => [name, shards.length] as const);
  return { sizes, plan, bytes: total, byPurpose, shards: Object.fromEntries(shards), limits };
}
/** In how many parts matrices are that have some of their own, in words; none where all are whole. */
export const partsIn = ({
  shards,
  limits,
}: Pick<ReturnType<typeof roomOf>, "shards" | "limits">): string[] => {
  const parts = Object.entries(shards).map(([name, n]) => `${name.replace(/\.weight$/, "")} in ${n}`);
  return parts.length
    ? [`in shards, for bindings of ${showBytes(limits.chamber, Math.floor)}: ${parts.join(", ")}`]
    : [];
};
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
    await readHost((name) => readVerified(reader, m, name)),
  );
  return host.exports.memory.buffer.byteLength;
}
/** Bytes of a load by target: in total, and by purpose. */
async function loads(reader: Awaited<ReturnType<typeof openReader>>, m: Manifest, f: Flags) {
  const out: Record<
    string,
    Pick<ReturnType<typeof roomOf>, "shards"> & { total: number; bytes: Readonly<Record<string, number>> }
  > = {};
  for (const name of ["wasm", "webgpu"] as const) {
    if (!m.targets[name]) continue;
    const room = roomOf(m, name, f);
    const bytes = { ...room.byPurpose, host: await hostBytes(reader, m, room) };
    const planned = Object.values(room.byPurpose).reduce((a, b) => a + b, 0);
    // What alignment adds.
    const total = room.bytes + bytes.host;
    out[name] = { total, bytes: { ...bytes, padding: room.bytes - planned }, shards: room.shards };
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

/** The names of a list, or `none`. */
const listed = (names: readonly string[]): string => names.join(", ") || "none";
/** Rows of a name and what there is to say of it; a text may have several lines. */
export const described = (rows: readonly (readonly [name: string, ...text: string[]])[]): string => {
  const width = Math.max(...rows.map(([name]) => name.length));
  return rows
    .flatMap(([name, ...text]) => text.map((line, i) => `${(i ? "" : name).padEnd(width)}  ${line}`))
    .join("\n");
};
/** What such sizes have room for, in words. */
export const roomIn = ({ sequences, blocks, slots, jobs, savedRows }: Sizes, { train }: Manifest): string =>
  [
    `${sequences} requests or rows at once`,
    `${(blocks * 32).toLocaleString("en")} tokens in the cache`,
    `${slots} adapter${slots === 1 ? "" : "s"}`,
    ...(train.length
      ? [`${jobs} job${jobs === 1 ? "" : "s"} with ${savedRows.toLocaleString("en")} tokens in flight`]
      : []),
  ].join(", ");
/** Bytes by purpose, the largest first. */
export const purposes = (bytes: Readonly<Record<string, number>>): string =>
  Object.entries(bytes)
    .filter(([, n]) => n > 0)
    .sort(([, a], [, b]) => b - a)
    .map(([purpose, n]) => `${purpose} ${showBytes(n)}`)
    .join(", ");
const diskBytes = ({ files }: Manifest): number => Object.values(files).reduce((n, f) => n + f.bytes, 0);

type Loads = Awaited<ReturnType<typeof loads>>;
/** What whoever has a bundle wants to know of it first. */
function summary(bundle: string, m: Manifest, taken: Loads, f: Flags): string {
  const { model } = m;
  const text = m.tokenizer
    ? m.chatTemplate
      ? "text and chat"
      : "text, no chat template"
    : "token ids alone";
  return described([
    ["bundle", bundle],
    [
      "model",
      `${model.family}, ${model.parameters.toLocaleString("en")} parameters in ${model.format}${rounded(m)}`,
    ],
    ["on disk", showBytes(diskBytes(m))],
    ...Object.entries(taken).map(([name, { total, bytes }], i) => {
      const room = roomOf(m, name as keyof Manifest["targets"], f);
      return [
        i ? "" : "a load takes",
        `${showBytes(total)} on ${name}: ${purposes(bytes)}`,
        `with room for ${roomIn(room.sizes, m)}`,
        ...partsIn(room),
      ] as const;
    }),
    ["runs on", listed(Object.keys(m.targets))],
    ["adapters", `${listed(Object.keys(m.methods))}; of rank up to ${m.capacities.rank}`],
    ["trains", listed(m.train)],
    ["speaks", text],
    ["context", `${m.capacities.context} tokens`],
  ]);
}
/** What the compiler made of it. */
function details(m: Manifest, taken: Loads, f: Flags): string {
  const { model } = m;
  const numbersOf = (sizes: object): string =>
    Object.entries(sizes)
      .map(([name, n]) => `${name} ${typeof n === "object" ? JSON.stringify(n) : n}`)
      .join(", ");
  const lines = [
    `${model.layers} layers × ${model.hiddenSize}, ${model.heads}/${model.kvHeads} heads × ` +
      `${model.headDim}, vocab ${model.vocab}, base ${m.base.slice(0, 12)}`,
    `policy ${m.policy}; capacities ${numbersOf(m.capacities)}`,
    ...Object.entries(m.saved).map(
      ([cls, s]) =>
        `saved activations, ${cls}: ${s.bytes.naive} bytes a token a layer naive, ${s.bytes.all} ` +
        `pruned, ${s.bytes.boundary} boundary  ` +
        `(${s.fields.map((x) => `${x.name.replace(/^\w+\./, "")}×${x.cols}`).join(", ")})`,
    ),
  ];
  for (const name of Object.keys(taken) as (keyof Manifest["targets"])[]) {
    const { sizes, plan } = roomOf(m, name, f);
    lines.push(
      "",
      `target ${name}: ${Object.keys(plan.kernels).length} kernels, arena ` +
        `${showBytes(plan.arenaWords * 4)}, metadata ${showBytes(plan.metaWords * 4)}; ${numbersOf(sizes)}`,
    );
    for (const [space, w] of Object.entries(plan.spaces))
      lines.push(
        `  ${space.padEnd(9)} ${showBytes(w.layer * 4).padStart(10)} a layer, ` +
          `${showBytes((w.layer * model.layers + w.outer) * 4).padStart(10)} in all`,
      );
    for (const p of plan.programs) {
      // Of two kernels for few rows and for many, a step launches one.
      const launches = p.launches.filter(isForMany);
      const kinds = p.launches.some((l) => l.kinds) ? kindsOf(model) : 1;
      for (let kind = 0; kind < kinds; kind++) {
        const own = launches.filter((l) => isOf(l, kind));
        const always = own.filter((l) => l.bits.length === 0).length;
        const each = p.region === "layer" ? " a layer" : "";
        lines.push(
          `  ${p.name.padEnd(24)} ${String(own.length).padStart(2)} launches (${always} when nothing is ` +
            `adapted or trained)${each}${kinds > 1 ? ` of kind ${kind}` : ""}`,
        );
      }
      if (f.kernels) lines.push(...p.launches.map((l) => `      ${l.kernel}`));
    }
  }
  return lines.join("\n");
}
async function inspectBundle(positional: readonly string[], f: Flags, json: boolean): Promise<void> {
  const bundle = needed(positional, "inspect", "a bundle");
  await checkBundle("inspect", bundle);
  const reader = await openReader(bundle);
  const m = await readManifest(reader);
  const taken = await loads(reader, m, f);
  if (json) return console.log(JSON.stringify({ ...m, disk: diskBytes(m), loads: taken }));
  if (f.graph === undefined) return console.log(`${summary(bundle, m, taken, f)}\n\n${details(m, taken, f)}`);
  const graphs = new TextDecoder().decode(await reader.read("graphs.txt")).split(/^(?=# )/m);
  const names = graphs.map((g) => g.slice(2, g.indexOf("\n")));
  const graph = graphs[names.indexOf(string(f, "graph"))];
  console.log((graph ?? fail("--graph", names.join(", "), string(f, "graph"))).trimEnd());
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
