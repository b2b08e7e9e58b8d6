/** The compiler on one page: model folder + adapter classes → bundle. */
import { print } from "../ops/index.ts";
import {
  BaseHash,
  BUNDLE_FORMAT,
  BUNDLE_VERSION,
  encode,
  type Format,
  INT8_BLOCK,
  type LaunchEntry,
  type Manifest,
  type MethodEntry,
  type ProgramEntry,
  STORED_PANEL,
  store,
  type TargetPlan,
  type TensorData,
  type TensorEntry,
  WeftError,
} from "../runtime/bundle.ts";
import { claimFolder, writeFolder } from "../runtime/folder.ts";
import { check } from "../runtime/schema.ts";
import type { AdapterMethod } from "./adapters/adapter.ts";
import { adapterMethods } from "./adapters/index.ts";
import { compileKernels, compileRelaxed } from "./emit/asc.ts";
import { emitAlias, emitLaunchAs, prelude, scratchBytes } from "./emit/assemblyscript.ts";
import { emitHost, policies } from "./emit/host.ts";
import { emitLaunchWgsl, gridOf } from "./emit/wgsl.ts";
import { sha256 } from "./files.ts";
import { fuse, type Launch } from "./fuse.ts";
import {
  type AnyBody,
  isUpdate,
  type KernelEnv,
  type RowNorms,
  type UpdateBody,
  type Variant,
  variantsOf,
} from "./kernel.ts";
import { tensorName } from "./layers.ts";
import { type BlockKind, blockLayouts, headerWords, TRAIN_BIT } from "./metadata.ts";
import { models } from "./models/index.ts";
import type { Model } from "./models/model.ts";
import { CompileOptions } from "./options.ts";
import { addresser, align, checkLimits, type Layout, layoutOf, placeValues } from "./plan.ts";
import { buildPrograms, type GraphProgram, type Programs, type TrainClass } from "./programs/index.ts";
import { type ModelSource, openModel } from "./source.ts";
import { type Capacities, checkCapacities, defaultCapacities, type Target, targets } from "./target.ts";
import { verify } from "./verify.ts";

export type { CompileOptions };
export interface Compiled {
  readonly manifest: Manifest;
  readonly files: ReadonlyMap<string, Uint8Array>;
  readonly graphs: Programs;
}

/** A shard is read and verified as a whole at load: what that takes beside the memory plan. */
const SHARD_BYTES = 64 * 2 ** 20;
const text = (s: string): Uint8Array => new TextEncoder().encode(s);

/**
 * Compile a Hugging Face model folder, or a GGUF file, in memory. Throws WeftError at the earliest pass that
 * can know.
 */
export async function compile(folder: string, options: CompileOptions = {}): Promise<Compiled> {
  check(CompileOptions, options, { code: "WEFT_OPTION", where: "" });
  const progress = options.onProgress ?? (() => {});
  const source = await openModel(folder);
  const { config } = source;
  const family = models[String(config.model_type)];
  if (!family)
    throw new WeftError({
      code: "WEFT_CONFIG",
      where: "config.json: model_type",
      expected: Object.keys(models).join(", "),
      found: String(config.model_type),
    });
  const model = family(config);
  const train = options.train ?? ["lora"];
  const format = options.format ?? "f32";
  const cache = options.cache ?? true;
  const capacities = checkCapacities({ ...defaultCapacities(model.context), ...options.capacities });
  if (capacities.context > model.context)
    throw new WeftError({
      code: "WEFT_CAPACITY",
      where: "capacities.context",
      expected: `at most max_position_embeddings (${model.context})`,
      found: String(capacities.context),
    });
  const policy = options.policy ?? "coserve";
  if (!policies().includes(policy))
    throw new WeftError({
      code: "WEFT_OPTION",
      where: "policy",
      expected: policies().join(", "),
      found: policy,
    });
  const wanted = options.targets ?? ["wasm", "webgpu"];

  // Regions → programs (forward, pruned backward, head, update), verified; then launches.
  const names = [
    ...new Set([
      ...(options.methods ?? (train.includes("full") && train.length === 1 ? [] : ["lora"])),
      ...train.filter((t) => t !== "full"),
    ]),
  ];
  for (const n of names)
    if (!Object.hasOwn(adapterMethods, n))
      throw new WeftError({
        code: "WEFT_OPTION",
        where: "adapter method",
        expected: Object.keys(adapterMethods).join(", "),
        found: n,
      });
  const methods = names.map((n) => adapterMethods[n]!);
  const selection = checkSelection(options.selection ?? null, model, names);
  if (selection && format === "int8")
    throw new WeftError({
      code: "WEFT_OPTION",
      where: "format",
      expected: "f32 or f16 with a selection, which reorders channels",
      found: "int8, whose blocks are runs of channels",
      hint: "train the method s2ft, which leaves them in place",
    });
  const programs = buildPrograms(model, capacities, { format, methods, train });
  // Seeds of starts and of dropout tell the sites of a layer apart by six bits.
  if (programs.sites.length > 64)
    throw new WeftError({
      code: "WEFT_CONFIG",
      where: "sites",
      expected: "at most 64 in a layer",
      found: String(programs.sites.length),
    });
  for (const { method, site } of programs.branches)
    if (
      method.name === "s2ft_permuted" &&
      selection!.layers.some((layer) => !layer[site.coupling!.group === "ffn" ? "ffn" : "groups"].length)
    )
      throw new WeftError({
        code: "WEFT_OPTION",
        where: "selection",
        expected: `channels of ${site.module} in every layer`,
        found: "none",
        hint: "name fewer sites in capacities.s2ft",
      });
  for (const g of programs.graphs) verify(g);
  const launches = new Map(
    programs.graphs.map((g) => [g.name, fuse(g.roots, { fuse: options.fuse ?? true, homes: g.homes })]),
  );

  const files = new Map<string, Uint8Array>();
  const plans: Partial<Record<"wasm" | "webgpu", TargetPlan>> = {};
  let host: { programs: readonly ProgramEntry[]; kernels: readonly string[] } | null = null;
  for (const name of wanted) {
    progress({ phase: `emit ${name}`, done: 0, total: 1 });
    const target: Target = { ...targets[name], ...options.limits };
    const layout = layoutOf(model, programs, capacities, target, format, train);
    const emitted = emitTarget(target, model.layers, capacities, programs, launches, layout, train, format);
    checkLimits(layout, emitted.arenaWords, target);
    plans[name] = emitted.plan;
    host = { programs: emitted.plan.programs, kernels: emitted.kernels };
    if (name === "wasm") {
      const source = `${prelude()}\n${emitted.sources.map((s) => s.text).join("\n")}`;
      files.set("kernels.as.ts", text(source));
      files.set("kernels.wasm", await compileKernels(source, cache));
      if (options.relaxed) files.set("kernels.relaxed.wasm", await compileRelaxed(source, cache));
    } else for (const s of emitted.sources) files.set(`kernels/${s.name}.wgsl`, text(s.text));
  }

  const blocks = blockLayouts(capacities, train);
  const perLayer = programs.layerParams.reduce((n, p) => n + p.n * p.k, 0);
  const hostModule = await emitHost(
    {
      capacities,
      layers: model.layers,
      vocab: model.vocab,
      policy,
      blocks,
      train,
      programs: host!.programs,
      kernels: host!.kernels,
      parametersPerLayer: perLayer,
      headParameters: model.vocab * model.hiddenSize,
    },
    cache,
  );
  files.set("host.wasm", hostModule.wasm);
  files.set("host.config.ts", text(hostModule.config));

  progress({ phase: "weights", done: 0, total: model.layers });
  const checkpoint = {
    layer: Object.fromEntries(
      programs.layerParams.map((p) => [p.name, model.checkpointName(p.name, 0).replace(".0.", ".{l}.")]),
    ),
    outer: Object.fromEntries(programs.outerParams.map((p) => [p.name, model.checkpointName(p.name, null)])),
  };
  const identity = new BaseHash(model);
  const tensors = await packWeights(
    source,
    programs,
    model.layers,
    format,
    checkpoint,
    files,
    identity,
    (done) => progress({ phase: "weights", done, total: model.layers }),
  );
  for (const [name, content] of source.files) files.set(name, text(content));
  files.set("config.json", text(JSON.stringify(config)));
  files.set(
    "graphs.txt",
    text(`${programs.graphs.map((g) => `# ${g.name}\n${print(g.roots)}\n`).join("\n")}`),
  );
  const tokenizer = source.files.has("tokenizer.json");
  const chatTemplate = source.files.has("chat_template.jinja");
  const fieldsOf = (cls: TrainClass) => {
    const offsets = layoutOf(model, programs, capacities, targets[wanted[0]!], format, train).fieldOffsets;
    return programs.saved[cls]!.fields.map((f) => ({ ...f, offset: offsets.get(f.name)! }));
  };
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
      format,
      eps: model.eps,
      eos: source.generation.eos,
      inverseFrequencies: model.inverseFrequencies,
      parameters: model.layers * perLayer + programs.outerParams.reduce((n, p) => n + p.n * p.k, 0),
    },
    generation: source.generation.sampling,
    selection,
    policy,
    train,
    capacities,
    sites: programs.sites,
    methods: Object.fromEntries(methods.map((m) => [m.name, methodEntry(m, model, capacities.rank)])),
    branches: programs.branches.map((b) => ({
      index: b.index,
      method: b.method.name,
      site: b.site.index,
      capacity: b.capacity,
      tensors: b.tensors,
    })),
    saved: Object.fromEntries(
      train.map((cls) => [cls, { fields: fieldsOf(cls), bytes: programs.saved[cls]!.bytes }]),
    ),
    checkpoint,
    tensors,
    tokenizer,
    chatTemplate,
    targets: plans,
    files: Object.fromEntries([...files].map(([n, b]) => [n, { bytes: b.length, sha256: sha256(b) }])),
  };
  files.set("manifest.json", text(JSON.stringify(manifest)));
  return { manifest, files, graphs: programs };
}
/** A selection names distinct channels of every layer, and is there when a method needs it. */
function checkSelection(
  selection: Manifest["selection"],
  model: Model,
  methods: readonly string[],
): Manifest["selection"] {
  const permuted = methods.includes("s2ft_permuted");
  if (permuted !== (selection !== null))
    throw new WeftError({
      code: "WEFT_OPTION",
      where: "selection",
      expected: permuted
        ? "the channels that s2ft_permuted trains"
        : "the method s2ft_permuted, which trains them",
      found: permuted ? "none" : methods.join(", "),
      hint: "weft compile --calibrate DATA chooses them",
    });
  if (!selection) return null;
  if (selection.layers.length !== model.layers)
    throw new WeftError({
      code: "WEFT_OPTION",
      where: "selection",
      expected: `${model.layers} layers`,
      found: String(selection.layers.length),
    });
  selection.layers.forEach((layer, l) => {
    for (const [name, list, all] of [
      ["ffn", layer.ffn, model.ffn],
      ["groups", layer.groups, model.kvHeads],
    ] as const)
      if (new Set(list).size < list.length || list.some((c) => !Number.isInteger(c) || c < 0 || c >= all))
        throw new WeftError({
          code: "WEFT_OPTION",
          where: `selection, layer ${l}: ${name}`,
          expected: `distinct numbers below ${all}`,
          found: JSON.stringify(list),
        });
  });
  return selection;
}
/**
 * What the runtime must know of a method. Its rank, when none is asked for, is one that the bundle has room
 * for.
 */
function methodEntry(m: AdapterMethod, model: Model, most: number): MethodEntry {
  const {
    at: _a,
    capacity: _c,
    tensors: _t,
    input: _i,
    output: _o,
    cache: _k,
    rowNorms: _r,
    calibrates: _s,
    fixed,
    ...entry
  } = m;
  const rank = m.rank === null ? null : Math.min(m.rank, most);
  return { ...entry, rank, fixed: typeof fixed === "function" ? fixed(model) : fixed };
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
  const { manifest, files } = await compile(folder, options);
  await writeFolder(out, "bundle", files);
  return manifest;
}

interface Emitted {
  readonly plan: TargetPlan;
  readonly arenaWords: number;
  readonly kernels: readonly string[];
  readonly sources: readonly { readonly name: string; readonly text: string }[];
}
function emitTarget(
  target: Target,
  layers: number,
  c: Capacities,
  programs: Programs,
  launches: ReadonlyMap<string, readonly Launch[]>,
  layout: Layout,
  train: readonly TrainClass[],
  format: Format,
): Emitted {
  const blocks = blockLayouts(c, train);
  const sources: { name: string; text: string }[] = [];
  const entries: ProgramEntry[] = [];
  let arenaWords = layout.persistent;
  let scratch = 0;
  const params = new Map(
    [
      ...layout.params.layer,
      ...layout.params.outer,
      ...layout.params.factors,
      ...layout.params.statistics,
    ].map((p) => [p.name, p]),
  );
  const envFor = (block: BlockKind, address: KernelEnv["address"]): KernelEnv => ({
    capacities: c,
    layout: blocks[block],
    panel: target.panel,
    branches: programs.branches.length,
    slotWords: layout.slotWords,
    jobWords: layout.jobWords,
    groups: layers + 1,
    address,
    param: (name) => params.get(name)!,
    norms: layout.homes.norms,
  });
  const add = (
    program: { name: string; region: "layer" | "outer"; block: BlockKind },
    list: readonly { name: string; bodies: readonly AnyBody[] }[],
    env: KernelEnv,
  ): void => {
    const out: LaunchEntry[] = list.flatMap(({ name, bodies }) =>
      variantsOf(bodies).map((variant) =>
        launch(variant === "any" ? name : `${name}.${variant}`, bodies, variant),
      ),
    );
    entries.push({ ...program, launches: out });
    function launch(name: string, bodies: readonly AnyBody[], variant: Variant): LaunchEntry {
      for (const b of bodies) scratch = Math.max(scratch, scratchBytes(b, c));
      // Kernel names are file names too.
      const kernel = `${program.name}.${name}`.replace(/[^a-zA-Z0-9]+/g, "_").slice(0, 100);
      const unique = sources.some((s) => s.name === kernel) ? `${kernel}_${sources.length}` : kernel;
      // On a CPU one kernel serves few rows and many.
      const wasm = (): string =>
        variant === "many" ? emitAlias(unique, sources.at(-1)!.name) : emitLaunchAs(unique, bodies, env);
      sources.push({
        name: unique,
        text: target.name === "wasm" ? wasm() : emitLaunchWgsl(unique, bodies, env, variant),
      });
      // The mask bits without which a body has nothing to do; a launch is skipped when none of its bodies
      // has.
      const bits = bodies.flatMap((b): (number | null)[] | number | null => {
        if (isUpdate(b)) return b.norms ? b.norms.map((n) => n.branch) : null;
        const onlySaves =
          program.block === "step" &&
          program.region === "layer" &&
          b.skeleton === "map" &&
          b.stores.every((s) => s.to === "field");
        return onlySaves ? TRAIN_BIT : b.bit;
      });
      return {
        kernel: unique,
        grid: gridOf(bodies, env, variant),
        bits: bits.includes(null) ? [] : [...new Set(bits as number[])].sort((a, b) => a - b),
      };
    }
  };
  for (const g of programs.graphs) {
    const list = launches.get(g.name)!;
    const { places, end } = placeValues(g, list, c, layout);
    arenaWords = Math.max(arenaWords, end);
    add(graphEntry(g), list, envFor(g.block, addresser(places, layout)));
  }
  const updates = envFor("update", () => {
    throw new Error("an update reads no graph value");
  });
  const update = (name: string, region: "layer" | "outer", body: Omit<UpdateBody, "name">): void =>
    add({ name, region, block: "update" }, [{ name: "", bodies: [{ ...body, name }] }], updates);
  for (const cls of train) {
    const sets =
      cls === "full"
        ? ([
            ["layer", layout.params.layer],
            ["outer", layout.params.outer],
          ] as const)
        : ([
            [
              "layer",
              layout.params.factors.filter(
                (p) => p.accum >= 0 && programs.branches[p.branch!]!.method.name === cls,
              ),
            ],
          ] as const);
    for (const [region, list] of sets) {
      update(`sumsq.${cls}.${region}`, region, { skeleton: "sumsq", params: list, optimizer: null });
      for (const optimizer of ["adamw", "sgd"] as const)
        update(`${optimizer}.${cls}.${region}`, region, { skeleton: "optimizer", params: list, optimizer });
    }
  }
  const norms = programs.branches.flatMap((b): RowNorms[] => {
    const { rowNorms } = b.method;
    if (!rowNorms) return [];
    const of = (name: string) => params.get(tensorName(b, name))!;
    return [
      {
        branch: b.index,
        weight: params.get(`${b.site.module}.weight`)!,
        format,
        a: of(rowNorms.a),
        b: of(rowNorms.b),
        out: of(rowNorms.out),
      },
    ];
  });
  if (norms.length)
    update("row_norms", "layer", { skeleton: "row_norms", params: [], optimizer: null, norms });
  if (train.length) update("clip", "outer", { skeleton: "clip", params: [], optimizer: null });
  const plan: TargetPlan = {
    panel: target.panel,
    classes: layout.classes,
    arenaWords: align(arenaWords + 256),
    metaWords: blocks.step.words + c.units * blocks.unit.words + (c.jobs + c.slots) * blocks.update.words,
    scratchWords: target.name === "wasm" ? align(scratch / 4) : 0,
    homes: layout.homes,
    slotWords: layout.slotWords,
    jobWords: layout.jobWords,
    layerParams: layout.params.layer,
    outerParams: layout.params.outer,
    factors: layout.params.factors,
    statistics: layout.params.statistics,
    blocks,
    header: headerWords,
    programs: entries,
    kernels: Object.fromEntries(
      sources.map((s) => [
        s.name,
        { workgroup: 64, file: target.name === "wasm" ? "kernels.wasm" : `kernels/${s.name}.wgsl` },
      ]),
    ),
  };
  return { plan, arenaWords, kernels: sources.map((s) => s.name), sources };
}
const graphEntry = (g: GraphProgram): { name: string; region: "layer" | "outer"; block: BlockKind } => ({
  name: g.name,
  region: g.region,
  block: g.block,
});

/**
 * Weights in checkpoint order, packed in panels once for all targets, in shards of 64 MiB, or of one tensor
 * that is larger.
 */
async function packWeights(
  { where, weights }: ModelSource,
  programs: Programs,
  layers: number,
  format: Format,
  names: Manifest["checkpoint"],
  files: Map<string, Uint8Array>,
  identity: BaseHash,
  onLayer: (done: number) => void,
): Promise<TensorEntry[]> {
  const tensors: TensorEntry[] = [];
  let shard: { name: string; shape: number[]; format: Format; bytes: Uint8Array }[] = [];
  let bytes = 0;
  let index = 0;
  const flush = (): void => {
    if (!shard.length) return;
    const file = `weights/model-${String(index++).padStart(5, "0")}.safetensors`;
    const encoded = encode(
      shard.flatMap(({ name, shape, format, bytes }): TensorData[] => {
        if (shape.length === 1) return [{ name, shape, dtype: "F32", data: bytes }];
        const [n, k] = shape as [number, number];
        const panels = (k: number): number[] => [Math.ceil(n / STORED_PANEL), k, STORED_PANEL];
        if (format !== "int8")
          return [{ name, shape: panels(k), dtype: format === "f16" ? "F16" : "F32", data: bytes }];
        const values = Math.ceil(n / STORED_PANEL) * k * STORED_PANEL;
        return [
          { name, shape: panels(k), dtype: "I8", data: bytes.subarray(0, values) },
          {
            name: `${name}.scales`,
            shape: panels(Math.ceil(k / INT8_BLOCK)),
            dtype: "F16",
            data: bytes.subarray(values),
          },
        ];
      }),
    );
    files.set(file, encoded);
    let at = encoded.length - bytes;
    for (const t of shard) {
      tensors.push({
        name: t.name,
        shape: t.shape,
        format: t.format,
        shard: file,
        start: at,
        bytes: t.bytes.length,
      });
      at += t.bytes.length;
    }
    shard = [];
    bytes = 0;
  };
  const put = async (name: string, kind: "weight" | "vector", n: number, k: number): Promise<void> => {
    const shape = kind === "weight" ? [n, k] : [n];
    const own = kind === "weight" ? format : "f32";
    const values = weights.read(name, shape);
    await identity.add(name, shape, values);
    const data =
      kind === "weight"
        ? store(own, values, n, k, `${where}: ${name}`)
        : new Uint8Array(values.buffer, values.byteOffset, values.byteLength);
    if (bytes + data.length > SHARD_BYTES) flush();
    shard.push({ name, shape, format: own, bytes: data });
    bytes += data.length;
  };
  for (const p of programs.outerParams) await put(names.outer[p.name]!, p.kind, p.n, p.k);
  for (let l = 0; l < layers; l++) {
    for (const p of programs.layerParams)
      await put(names.layer[p.name]!.replace("{l}", String(l)), p.kind, p.n, p.k);
    onLayer(l + 1);
  }
  flush();
  return tensors;
}
