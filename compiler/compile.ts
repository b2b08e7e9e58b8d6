/** The compiler on one page: model folder + adapter classes → bundle. */
import { print } from "../ops/index.ts";
import {
  BaseHash,
  BUNDLE_FORMAT,
  BUNDLE_VERSION,
  type CapacityEntry,
  formats,
  kindOf,
  layersWith,
  type Manifest,
  type MethodEntry,
  optimizerNames,
  pagesAtMost,
  type TargetEntry,
  updateWords,
  WeftError,
} from "../runtime/bundle.ts";
import { claimFolder, writeFolder } from "../runtime/folder.ts";
import { type AdapterMethod, namesOf, type Role } from "./adapters/adapter.ts";
import { correct } from "./correct.ts";
import { compileKernels, compileRelaxed } from "./emit/asc.ts";
import { prelude } from "./emit/assemblyscript.ts";
import { emitHost } from "./emit/host.ts";
import { type Emitted, emitTarget } from "./emit/target.ts";
import { type BundleFile, hasher } from "./files.ts";
import { checkFormats } from "./formats.ts";
import { launchesOf } from "./fuse.ts";
import { tileRowsOf } from "./kernels/text/wgsl_attend.ts";
import type { SiteSpec } from "./layers.ts";
import { type Layout, layoutOf } from "./layout.ts";
import { checkLimits } from "./limits.ts";
import { models } from "./models/index.ts";
import type { Family, Model } from "./models/model.ts";
import { openModel } from "./open.ts";
import type { CompileOptions } from "./options.ts";
import { packWeights } from "./pack.ts";
import { buildPrograms, type GraphProgram, type Programs, type TrainClass } from "./programs/index.ts";
import { checkSelected } from "./selection.ts";
import { checkOptions, type Settings, settingsOf } from "./settings.ts";
import type { ModelSource } from "./source.ts";
import { verify } from "./verify.ts";

export { compileEntries } from "./options.ts";
export type { CompileOptions };
export { openModel };
export interface Compiled {
  readonly manifest: Manifest;
  readonly files: ReadonlyMap<string, Uint8Array>;
  readonly graphs: Programs;
}

/**
 * Compile a Hugging Face model folder, or a GGUF file, in memory. Throws WeftError at the earliest pass that
 * can know.
 */
export async function compile(folder: string, options: CompileOptions = {}): Promise<Compiled> {
  const files = new Map<string, Uint8Array>();
  const stream = bundle(folder, options);
  for (;;) {
    const next = await stream.next();
    if (next.done) return { ...next.value, files };
    const [name, content] = next.value;
    files.set(name, content instanceof Uint8Array ? content : await joined(content));
  }
}
async function joined(pieces: AsyncIterable<Uint8Array>): Promise<Uint8Array> {
  const all: Uint8Array[] = [];
  for await (const piece of pieces) all.push(piece);
  return new Uint8Array(Buffer.concat(all));
}
/**
 * Compile and write a bundle folder, over an older bundle if there is one. Throws WEFT_IO before compiling
 * when `out` is anything else, or cannot be written.
 */
export async function compileTo(
  folder: string,
  out: string,
  options: CompileOptions = {},
): Promise<Manifest> {
  await claimFolder(out, "bundle");
  let manifest: Manifest | undefined;
  async function* files(): AsyncGenerator<BundleFile> {
    ({ manifest } = yield* bundle(folder, options));
  }
  await writeFolder(out, "bundle", files());
  return manifest!;
}

/**
 * The files of a bundle as they are made, the manifest last: weights are a stream that the one who takes them
 * reads.
 */
async function* bundle(
  folder: string,
  options: CompileOptions,
): AsyncGenerator<BundleFile, Omit<Compiled, "files">> {
  checkOptions(options);
  const source = await openModel(folder);
  const model = familyOf(source).read(source.config);
  const settings = settingsOf(model, source.weights, options);
  const { train } = settings;

  // Regions → programs (forward, pruned backward, head, update), verified; then launches.
  const programs = buildPrograms(model, settings.capacities, settings);
  checkPrograms(programs, model, settings);
  const params = [...programs.outerParams, ...programs.layerParams];
  const stored = formats.filter((f) => params.some((p) => p.kind === "weight" && p.format === f));
  const launches = launchesOf(model, programs, settings);

  // Launches → kernels and a plan of memory, for each target.
  const sums: Record<string, { bytes: number; sha256: string }> = {};
  const counted = (file: BundleFile): BundleFile => count(file, sums);
  const emitted = new Map<"wasm" | "webgpu", Emitted>();
  let saved: Manifest["saved"] = {};
  for (const target of settings.targets) {
    settings.progress({ phase: `emit ${target.name}`, done: 0, total: 1 });
    const layout = layoutOf(model, programs, settings, target);
    const made = emitTarget(target, model, settings, programs, launches, layout);
    emitted.set(target.name, made);
    saved = savedFields(programs, layout, train);
  }
  const targets = Object.fromEntries([...emitted].map(([name, e]): [string, TargetEntry] => [name, e.plan]));
  const { plan, kernels } = [...emitted.values()].at(-1)!;
  const branches = programs.branches.map((b) => ({
    index: b.index,
    method: b.method.name,
    site: b.site.index,
    capacity: b.capacity,
    tensors: b.tensors,
  }));
  const pagesPerSlot = pagesAtMost({ branches }, plan);
  const pages = settings.capacities.pages ?? settings.largest * pagesPerSlot;
  const capacities: CapacityEntry = { ...settings.capacities, pages };
  for (const target of settings.targets) checkLimits({ capacities, train, saved, branches, targets }, target);
  for (const [name, made] of emitted)
    for await (const file of kernelFiles(name, made, settings)) yield counted(file);

  // The scheduler, and this bundle's capacities and programs.
  const inLayers = programs.layerParams.reduce((n, p) => n + layersWith(model, p).length * p.n * p.k, 0);
  const host = await emitHost(
    {
      capacities,
      layers: model.layers,
      kinds: Array.from({ length: model.layers }, (_, l) => kindOf(model, l)),
      vocab: model.vocab,
      policy: settings.policy,
      blocks: plan.blocks,
      pagesPerSlot,
      tileRows: tileRowsOf(model.heads, model.kvHeads),
      train,
      saved,
      programs: plan.programs,
      kernels,
      parametersPerLayer: inLayers / model.layers,
      headParameters: model.vocab * model.hiddenSize,
    },
    settings.how,
  );
  yield counted(["host.wasm", host.wasm]);
  yield counted(["host.json", text(JSON.stringify(host.config))]);

  const checkpoint = {
    layer: Object.fromEntries(programs.layerParams.map((p) => [p.name, model.names.layer + p.name])),
    outer: Object.fromEntries(programs.outerParams.map((p) => [p.name, model.names.outer[p.name]!])),
    modules: model.names.layer,
    embedding: model.names.embedding,
    transposed: [...(model.names.transposed ?? [])],
  };
  const identity = new BaseHash(model);
  const weights = (done: number): void => settings.progress({ phase: "weights", done, total: model.layers });
  weights(0);
  const shards = packWeights(source, programs, model, checkpoint, identity, weights);
  let shard = await shards.next();
  for (; !shard.done; shard = await shards.next()) yield counted(shard.value);
  const { tensors, rounding } = shard.value;

  let correction: Manifest["correction"] = null;
  if (settings.correction) {
    const layer = (done: number): void => settings.progress({ phase: "correct", done, total: model.layers });
    const { format, kv } = settings;
    const { context, rank } = capacities;
    const said = { ...settings.correction, format, kv, context, rank };
    const made = await correct(source, model, programs, said, layer);
    for (const file of made.files) yield counted(file);
    correction = made.entry;
  }

  for (const [name, content] of source.files) yield counted([name, text(content)]);
  const architectures = [familyOf(source).loadedBy];
  yield counted(["config.json", text(JSON.stringify({ architectures, ...source.config }))]);
  const titled = ({ name, kinds }: GraphProgram): string => name + (kinds ? ` of kind ${kinds}` : "");
  const graphs = programs.graphs.map((g) => `# ${titled(g)}\n${print(g.roots)}\n`).join("\n");
  yield counted(["graphs.txt", text(graphs)]);
  const manifest: Manifest = {
    format: BUNDLE_FORMAT,
    version: BUNDLE_VERSION,
    base: await identity.digest(),
    model: {
      family: model.family,
      hiddenSize: model.hiddenSize,
      layers: model.layers,
      heads: model.heads,
      kvHeads: model.kvHeads,
      headDim: model.headDim,
      ffn: model.ffn,
      vocab: model.vocab,
      context: model.context,
      tied: model.tied,
      format: stored.join("+"),
      rounding,
      eps: model.eps,
      eos: source.generation.eos,
      ropes: model.ropes,
      constants: model.constants,
      perLayer: model.perLayer,
      parameters: inLayers + programs.outerParams.reduce((n, p) => n + p.n * p.k, 0),
    },
    generation: source.generation.sampling,
    selection: settings.selection,
    correction,
    policy: settings.policy,
    kv: settings.kv,
    products: settings.products,
    train,
    updates: { optimizers: optimizerNames, words: updateWords },
    capacities,
    sites: programs.sites,
    methods: Object.fromEntries(
      settings.methods.map((m) => [m.name, methodEntry(m, model, programs.sites, capacities.rank)]),
    ),
    branches,
    saved,
    checkpoint,
    tensors,
    tokenizer: source.files.has("tokenizer.json"),
    chatTemplate: source.files.has("chat_template.jinja"),
    targets,
    files: sums,
  };
  yield ["manifest.json", text(JSON.stringify(manifest))];
  return { manifest, graphs: programs };
}
const text = (s: string): Uint8Array => new TextEncoder().encode(s);

function familyOf({ config }: ModelSource): Family {
  const family = models[String(config.model_type)];
  if (!family)
    throw new WeftError({
      code: "WEFT_CONFIG",
      where: "config.json: model_type",
      expected: Object.keys(models).join(", "),
      found: String(config.model_type),
    });
  return family;
}
function checkPrograms(programs: Programs, model: Model, settings: Settings): void {
  const { selection, formats, train, methods, products } = settings;
  for (const method of methods)
    if (!programs.branches.some((b) => b.method === method))
      throw new WeftError({
        code: "WEFT_OPTION",
        where: `method ${method.name}`,
        expected: "a model with matrices that it adapts",
        found: "none, by default or of those that were asked for",
        ...(method.name.startsWith("s2ft") && { hint: "name sites in capacities.s2ft" }),
      });
  const params = [...programs.outerParams, ...programs.layerParams];
  const paths = [
    ...Object.values(model.names.outer),
    ...programs.layerParams.map(({ name }) => model.names.layer + name),
  ];
  const needs = { full: train.includes("full"), selection: selection !== null, products };
  checkFormats(formats, params, paths, needs);
  // Seeds of starts and of dropout tell the sites of a layer apart by six bits.
  if (programs.sites.length > 64)
    throw new WeftError({
      code: "WEFT_CONFIG",
      where: "sites",
      expected: "at most 64 in a layer",
      found: String(programs.sites.length),
    });
  for (const { method, site } of programs.branches)
    if (method.name === "s2ft_permuted") checkSelected(selection!, model, site);
  for (const g of programs.graphs) verify(g);
}
/** Sources and modules of a target's kernels. */
async function* kernelFiles(
  target: "wasm" | "webgpu",
  { sources }: Emitted,
  { relaxed, how }: Settings,
): AsyncGenerator<BundleFile> {
  if (target === "webgpu") {
    for (const s of sources) yield [`kernels/${s.name}.wgsl`, text(s.text)];
    return;
  }
  const module = `${prelude()}\n${sources.map((s) => s.text).join("\n")}`;
  yield ["kernels.as.ts", text(module)];
  yield ["kernels.wasm", await compileKernels(module, how)];
  if (relaxed) yield ["kernels.relaxed.wasm", await compileRelaxed(module, how)];
}
/** The file, and in `sums` its bytes and hash once it was read through. */
function count(
  [name, content]: BundleFile,
  sums: Record<string, { bytes: number; sha256: string }>,
): BundleFile {
  const hash = hasher();
  let bytes = 0;
  const took = (piece: Uint8Array): Uint8Array => {
    hash.update(piece);
    bytes += piece.length;
    return piece;
  };
  const end = (): void => {
    sums[name] = { bytes, sha256: hash.digest() };
  };
  if (content instanceof Uint8Array) {
    took(content);
    end();
    return [name, content];
  }
  async function* pieces(stream: AsyncIterable<Uint8Array>): AsyncGenerator<Uint8Array> {
    for await (const piece of stream) yield took(piece);
    end();
  }
  return [name, pieces(content)];
}
/** What each class keeps of a forward: its fields, and the words of a row. */
function savedFields(programs: Programs, layout: Layout, train: readonly TrainClass[]): Manifest["saved"] {
  return Object.fromEntries(
    train.map((cls) => {
      const { fields, bytes } = programs.saved[cls]!;
      const placed = fields.map((f) => ({ ...f, offset: layout.fields.get(f.name)!.offset }));
      return [cls, { fields: placed, words: layout.records[cls]!, bytes }];
    }),
  );
}
/**
 * What the runtime must know of a method. Its rank, when none is asked for, is one that the bundle has room
 * for.
 */
function methodEntry(m: AdapterMethod, model: Model, sites: readonly SiteSpec[], most: number): MethodEntry {
  const {
    at: _a,
    experts: _e,
    capacity: _c,
    tensors: _t,
    input: _i,
    output: _o,
    cache: _k,
    rowNorms: _r,
    calibrates: _s,
    peft,
    ...entry
  } = m;
  const named = (...wanted: Role[]): string[] => namesOf(sites, wanted);
  const targets = m.targets === "all-linear" ? m.targets : named(...m.targets);
  const rank = m.rank === null ? null : Math.min(m.rank, most);
  const said = typeof peft.fixed === "function" ? peft.fixed(model, named) : peft.fixed;
  // How checkpoints have matrices; what an adapter adds to them is the same.
  const turned = "fan_in_fan_out" in said && { fan_in_fan_out: model.names.transposed !== undefined };
  const fixed = { ...said, ...turned };
  return { ...entry, rank, targets, peft: { ...peft, fixed, meaning: peft.meaning ?? [] } };
}
