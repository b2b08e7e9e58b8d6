/** Programs → the kernels of a target, and its plan: where everything lies and what is launched. */
import {
  hasCandidates,
  headerWords,
  isOf,
  kindsOf,
  type LaunchEntry,
  optimizerNames,
  type ParamEntry,
  type ProgramEntry,
  type TargetEntry,
} from "../../runtime/bundle.ts";
import type { KernelEnv, ParamAddress, Variant } from "../kernel.ts";
import type { Launch } from "../kernels/body.ts";
import { type AnyBody, type Bare, kernelOf, onlySaves, writesWeights } from "../kernels/index.ts";
import type { RowNorms } from "../kernels/row_norms.ts";
import { inQuads } from "../kernels/text/quads.ts";
import { heads } from "../kernels/text/wgsl_matrix.ts";
import { PLAIN_ROWS, QUICK_ROWS } from "../kernels/text/wgsl_plain.ts";
import { type BranchSpec, type SiteSpec, tensorName } from "../layers.ts";
import { addresser, type Layout, placeValues } from "../layout.ts";
import { type BlockKind, blockLayouts } from "../metadata.ts";
import type { Model } from "../models/model.ts";
import { type GraphProgram, type Programs, savesOf } from "../programs/index.ts";
import type { Settings } from "../settings.ts";
import { align, type Target } from "../target.ts";
import { emitAlias, emitLaunchAs, scratchBytes } from "./assemblyscript.ts";
import { modulesOf } from "./join.ts";
import { gridOf, type LaunchText, lanesOf, launchedOf, launchText, variantsOf } from "./wgsl.ts";

export interface Emitted {
  readonly plan: TargetEntry;
  readonly kernels: readonly string[];
  /** What the kernels are compiled from: on WebGPU a module each, which several may share. */
  readonly sources: readonly { readonly name: string; readonly text: string }[];
}
type Entry = TargetEntry["kernels"][string];
interface Bodies {
  readonly name: string;
  readonly bodies: readonly AnyBody[];
}
/** The matrix that is a group of its own, if any, of which a launch of a body has a shard. */
function ownOf(b: AnyBody, env: KernelEnv): number | null {
  if ("params" in b) return b.params[0]?.own ?? null;
  if (!("reads" in b)) return null;
  const weights = b.reads.filter((v) => v.type.kind === "weight");
  const of = b.node?.attrs.of;
  const all = weights.map((v) => env.address(v).own ?? null);
  if (of !== undefined) all.push(env.param(String(of)).own);
  const own = all.find((o) => o !== null) ?? null;
  if (own !== null && (all.some((o) => o !== own) || b.reads.some((v) => v.type.kind === "vector")))
    throw new Error(`${b.name}: beside a matrix in shards a kernel reads no other weights`);
  return own;
}
/** A launch over shards has one body. */
function apart({ name, bodies }: Bodies, env: KernelEnv): Bodies[] {
  if (bodies.length === 1) return [{ name, bodies }];
  const others = bodies.filter((b) => ownOf(b, env) === null);
  const own = bodies.filter((b) => ownOf(b, env) !== null).map((b) => ({ name: b.name, bodies: [b] }));
  return others.length ? [{ name, bodies: others }, ...own] : own;
}
function shardsOf(bodies: readonly AnyBody[], env: KernelEnv): Entry["shards"] {
  const of = ownOf(bodies[0]!, env);
  if (of === null) return null;
  const { over } = kernelOf(bodies[0]!);
  if (over === undefined) throw new Error(`${bodies[0]!.name}: ${bodies[0]!.skeleton} has no shards`);
  return { of, over };
}
/** Those that layers of the same kinds have, together. */
function byKinds<T>(
  all: readonly T[],
  siteOf: (x: T) => { readonly kinds?: readonly number[] },
): { readonly kinds: Pick<LaunchEntry, "kinds">; readonly of: readonly T[] }[] {
  const lists = new Map<string, { kinds: Pick<LaunchEntry, "kinds">; of: T[] }>();
  for (const x of all) {
    const { kinds } = siteOf(x);
    const key = String(kinds);
    const known = lists.get(key);
    if (known) known.of.push(x);
    else lists.set(key, { kinds: kinds ? { kinds: [...kinds] } : {}, of: [x] });
  }
  return [...lists.values()];
}
/** What layers of each kind have: a layer's sums of squares are one launch's. */
const ofEachKind = (model: Model, params: readonly ParamEntry[]) => {
  const n = kindsOf(model);
  return Array.from({ length: n }, (_, kind) => ({
    kinds: n > 1 ? { kinds: [kind] } : {},
    of: params.filter((p) => isOf(p, kind)),
  }));
};
/** Matrices of all experts as one parameter, by their name, which has `{e}` for the expert. */
function mixturesOf(
  sites: readonly SiteSpec[],
  params: ReadonlyMap<string, ParamEntry>,
): ReadonlyMap<string, ParamAddress> {
  const out = new Map<string, ParamAddress>();
  for (const { module, experts: count } of sites) {
    if (count === undefined) continue;
    const name = `${module}.weight`;
    const [first, second] = ["0", "1"].map((e) => params.get(name.replace("{e}", e)));
    const { offset, accum } = second ?? first!;
    const several = { count, offset: offset - first!.offset, accum: accum - first!.accum };
    out.set(name, { ...first!, several });
  }
  return out;
}
/** Parameters in turn, those of experts as one. */
function together(
  params: readonly ParamEntry[],
  mixtures: ReadonlyMap<string, ParamAddress>,
): readonly ParamAddress[] {
  const all = [...mixtures.values()];
  const names = new Set(
    [...mixtures].flatMap(([name, { several }]) =>
      Array.from({ length: several!.count }, (_, e) => name.replace("{e}", String(e))),
    ),
  );
  return params.flatMap((p) => all.find(({ name }) => name === p.name) ?? (names.has(p.name) ? [] : p));
}
export function emitTarget(
  target: Target,
  model: Model,
  { capacities: c, train, products, how }: Pick<Settings, "capacities" | "train" | "products" | "how">,
  programs: Programs,
  launches: ReadonlyMap<GraphProgram, readonly Launch[]>,
  layout: Layout,
): Emitted {
  const blocks = blockLayouts(c, train);
  const sources: (Pick<Entry, "weights" | "shards"> & { name: string; lanes: number })[] = [];
  const entries: (Omit<ProgramEntry, "launches"> & { readonly launches: LaunchEntry[] })[] = [];
  /** Of a CPU's kernels, and of WebGPU's launches. */
  const functions: { readonly name: string; readonly text: string }[] = [];
  const texts: LaunchText[] = [];
  let scratch = 0;
  const params = new Map(
    [
      ...layout.params.layer,
      ...layout.params.outer,
      ...layout.params.factors,
      ...layout.params.statistics,
    ].map((p) => [p.name, p]),
  );
  const mixtures = mixturesOf(programs.sites, params);
  const envFor = (block: BlockKind, address: KernelEnv["address"]): KernelEnv => ({
    capacities: c,
    layout: blocks[block],
    panel: target.panel,
    slots: layout.slots,
    jobWords: layout.jobWords,
    groups: model.layers + 1,
    address,
    param: (name) => params.get(name) ?? mixtures.get(name)!,
    norms: layout.homes.norms,
    partials: layout.partials,
    products,
    plainRows: how.quick ? QUICK_ROWS : PLAIN_ROWS,
  });
  const add = (
    { kinds, ...program }: Omit<ProgramEntry, "launches"> & Pick<LaunchEntry, "kinds">,
    list: readonly Bodies[],
    env: KernelEnv,
  ): void => {
    const out: LaunchEntry[] = list
      .flatMap((l) => apart(l, env))
      .flatMap(({ name, bodies }) => {
        const first: string[] = [];
        return variantsOf(bodies, env).flatMap((variant, i) => {
          const each = launchedOf(bodies, variant);
          return each.map((own) => {
            const entry = launch(each.length > 1 ? own[0]!.name : name, own, variant, i ? first : null);
            if (!i) first.push(entry.kernel);
            return entry;
          });
        });
      });
    const known = entries.find((p) => p.name === program.name);
    if (known) known.launches.push(...out);
    else entries.push({ ...program, launches: out });
    function launch(
      name: string,
      bodies: readonly AnyBody[],
      variant: Variant,
      first: readonly string[] | null,
    ): LaunchEntry {
      for (const b of bodies) scratch = Math.max(scratch, scratchBytes(b, env));
      // Kernel names are file names too. They end with the variant.
      const ending = variant === "any" ? "" : `_${variant}`;
      const kernel = `${program.name}.${kinds?.[0] ? `${kinds[0]}.` : ""}${name}`
        .replace(/[^a-zA-Z0-9]+/g, "_")
        .slice(0, 100 - ending.length)
        .concat(ending);
      const unique = sources.some((s) => s.name === kernel) ? `${kernel}_${sources.length}` : kernel;
      // On a CPU one kernel serves few rows and many.
      const wasm = (): string => (first ? emitAlias(unique, first) : emitLaunchAs(unique, bodies, env));
      if (target.name === "wasm") functions.push({ name: unique, text: wasm() });
      else texts.push(launchText(unique, bodies, env, variant));
      sources.push({
        name: unique,
        weights: writesWeights(bodies) ? "written" : "read",
        shards: shardsOf(bodies, env),
        lanes: lanesOf(bodies, variant, env),
      });
      // The mask bits without which a body has nothing to do; a launch is skipped when none of its bodies
      // has.
      const bits = bodies.map((b): readonly number[] => {
        if (variant === "few" && "rest" in b && b.rest) return b.rest;
        const saves = savesOf(program);
        return saves !== null && "stores" in b && onlySaves(b) ? [saves] : b.bits;
      });
      const always = bits.some((list) => !list.length);
      return {
        kernel: unique,
        grid: gridOf(bodies, env, variant),
        bits: always ? [] : [...new Set(bits.flat())].sort((a, b) => a - b),
        ...(kinds && { kinds: [...kinds] }),
      };
    }
  };
  // Rows of gradients begin behind the step values of all programs.
  const placed = programs.graphs.map((g) => placeValues(g, launches.get(g)!, c, layout));
  const arena = align(Math.max(layout.persistent, ...placed.map((p) => p.end)) + 256);
  const work = { dh: arena, dkv: arena + align(model.hiddenSize, 4) };
  programs.graphs.forEach((g, i) =>
    add(
      { name: g.name, region: g.region, block: g.block, ...(g.kinds && { kinds: [...g.kinds] }) },
      [...launches.get(g)!, ...behind(g)],
      envFor(g.block, addresser(placed[i]!.places, layout, work)),
    ),
  );
  /** What runs behind a graph: over logits that are much to read back, what picks candidates. */
  function behind({ homes }: GraphProgram): { name: string; bodies: readonly Bare[] }[] {
    const logits = homes.find((h) => h.name === "logits")?.value;
    if (!logits || !hasCandidates(model.vocab)) return [];
    const name = "candidates";
    const places = { to: layout.homes.candidates, parts: layout.candidateParts };
    return [{ name, bodies: [{ name, skeleton: name, bits: [], logits, vocab: model.vocab, ...places }] }];
  }
  const updates = envFor("update", () => {
    throw new Error("an update reads no graph value");
  });
  const update = (
    region: "layer" | "outer",
    kinds: Pick<LaunchEntry, "kinds">,
    ...bodies: [Bare, ...Bare[]]
  ): void =>
    add(
      { name: bodies[0].name, region, block: "update", ...kinds },
      bodies.map((b) => ({ name: "", bodies: [b] })),
      updates,
    );
  for (const cls of train) {
    const own = (p: ParamEntry): boolean => p.accum >= 0 && programs.branches[p.branch!]!.method.name === cls;
    const sets =
      cls === "full"
        ? ([
            ...ofEachKind(model, layout.params.layer).map(({ kinds, of }) => ["layer", of, kinds] as const),
            ["outer", layout.params.outer, {}],
          ] as const)
        : ([["layer", layout.params.factors.filter(own), {}]] as const);
    for (const [region, list, kinds] of sets) {
      // Those of a matrix's own group on their own, after the others.
      const sets = [
        together(
          list.filter((p) => p.own === null),
          mixtures,
        ),
        ...list.filter((p) => p.own !== null).map((p) => [p]),
      ];
      const each = <B extends Bare>(body: (params: readonly ParamAddress[]) => B) =>
        update(region, kinds, ...(sets.map(body) as [B, ...B[]]));
      each((params) => ({ skeleton: "sumsq", name: `sumsq.${cls}.${region}`, params, bits: [] }));
      for (const optimizer of optimizerNames)
        each((params) => ({
          skeleton: "optimizer",
          name: `${optimizer}.${cls}.${region}`,
          optimizer,
          params,
          bits: [],
        }));
    }
  }
  const normsOf = ({ index, method, site }: BranchSpec): RowNorms[] => {
    const of = (name: string) => params.get(tensorName(programs.branches[index]!, name))!;
    const { rowNorms: r } = method;
    const weight = params.get(`${site.module}.weight`)!;
    return r ? [{ branch: index, weight, a: of(r.a), b: of(r.b), out: of(r.out) }] : [];
  };
  for (const { kinds, of } of byKinds(programs.branches, (b) => b.site)) {
    const norms = of.flatMap(normsOf);
    if (!norms.length) continue;
    const bits = norms.map((n) => n.branch);
    update("layer", kinds, { skeleton: "row_norms", name: "row_norms", norms, bits });
  }
  if (train.length) update("outer", {}, { skeleton: "clip", name: "clip", bits: [] });
  const modules = target.name === "wasm" ? null : modulesOf(texts);
  const quads = new Map(
    modules?.modules.flatMap(({ name, text }) => {
      const turned = inQuads(text);
      return turned === null ? [] : [[name, { name: `${name}_quads`, text: turned }] as const];
    }),
  );
  const plan: TargetEntry = {
    panel: target.panel,
    room: { ...layout.room, arena },
    scratchWords: target.name === "wasm" ? align(scratch / 4) : 0,
    homes: { ...layout.homes, ...work },
    slots: layout.slots,
    jobWords: layout.jobWords,
    own: [...layout.own],
    layerParams: layout.params.layer,
    outerParams: layout.params.outer,
    factors: layout.params.factors,
    statistics: layout.params.statistics,
    blocks,
    header: headerWords,
    programs: entries,
    kernels: Object.fromEntries(
      sources.map(({ name, weights, shards, lanes }) => {
        const { module, launch } = modules?.of.get(name) ?? { module: null, launch: [] };
        const file = module === null ? "kernels.wasm" : `kernels/${module}.wgsl`;
        const turned = module === null ? undefined : quads.get(module);
        const inQuads = turned ? { quads: `kernels/${turned.name}.wgsl` } : {};
        const runs = [...(modules?.runs.get(name) ?? [])];
        return [name, { workgroup: lanes, file, ...inQuads, launch, runs, weights, shards }];
      }),
    ),
  };
  return {
    plan,
    kernels: sources.map((s) => s.name),
    sources: modules
      ? [...modules.modules, ...quads.values(), ...(products === "matrix" ? heads : [])]
      : functions,
  };
}
