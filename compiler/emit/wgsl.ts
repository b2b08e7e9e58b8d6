/**
 * Launches as WGSL modules: one entry point each, its bodies selected by workgroup_id.z. Eight storage
 * bindings, one a memory space, serve every kernel.
 */
import type { Type } from "../../ops/index.ts";
import { FIRST_BODY, type GridDim, kvFormatOf } from "../../runtime/bundle.ts";
import { type KernelEnv, type MemorySpace, memorySpaces, type Variant } from "../kernel.ts";
import { fixed } from "../kernels/grid.ts";
import { type AnyBody, kernelOf, writesWeights } from "../kernels/index.ts";
import { merged, sorted } from "../kernels/text/alike.ts";
import { called } from "../kernels/text/library.ts";
import { type Lines, lines } from "../kernels/text/lines.ts";
import { WG } from "../kernels/text/wgsl.ts";

type Kv = Type & { kind: "kv" };
/** How a memory space is bound: the identifier, the words, and whether kernels write them. */
interface Binding {
  readonly id: string;
  readonly type: string;
  readonly access: "read" | "read_write";
}
const numbers = (id: string): Binding => ({ id, type: "array<f32>", access: "read_write" });
const integers = (id: string): Binding => ({ id, type: "array<i32>", access: "read" });
const bindings: Readonly<Record<Exclude<MemorySpace, "kv">, Binding>> = {
  weights: { id: "weights", type: "array<vec4<u32>>", access: "read" },
  meta: integers("batch"),
  arena: numbers("arena"),
  saved: numbers("saved"),
  adapters: numbers("adapters"),
  accum: numbers("accum"),
  tables: integers("tables"),
};

/** The cache as bodies have it, which read it or write it; null: they touch none. */
function cacheOf(bodies: readonly AnyBody[]): Binding | null {
  const stored = bodies.flatMap((b) => ("stores" in b ? b.stores : [])).find((s) => s.to === "kv");
  const read = bodies.flatMap((b) => ("reads" in b ? b.reads : [])).find((v) => v.type.kind === "kv");
  const kv = stored?.kv ?? read;
  if (!kv) return null;
  const { wgsl } = kvFormatOf((kv.type as Kv).format);
  return { ...numbers("kv"), type: `array<${stored ? wgsl.written : wgsl.read}>` };
}

/** Versions of a launch: those of the body that has most. */
export function variantsOf(bodies: readonly AnyBody[], env: KernelEnv): readonly Variant[] {
  const each = bodies.map((b) => kernelOf(b).variants?.(b, env) ?? (["any"] as const));
  return each.reduce<readonly Variant[]>((most, of) => (of.length > most.length ? of : most), []);
}
/** What a version launches in turn. */
export const launchedOf = <B extends AnyBody>(
  bodies: readonly B[],
  variant: Variant,
): readonly (readonly B[])[] =>
  variant === "plain" && kernelOf(bodies[0]!).splits ? bodies.map((b) => [b]) : [bodies];
/** Lanes of a workgroup. */
export const lanesOf = (bodies: readonly AnyBody[], variant: Variant, env: KernelEnv): number =>
  kernelOf(bodies[0]!).lanes?.(bodies, variant, env) ?? WG;

/** A launch before it is a module: its functions, those that workgroups enter by z, and what they need. */
export interface LaunchText {
  readonly name: string;
  readonly functions: string;
  readonly entries: readonly string[];
  /** May it share a module with launches of the same sum? */
  readonly joins: boolean;
  /** Is it for CPUs alone, on which a pipeline has one text of bodies? */
  readonly apart: boolean;
  readonly says: string;
  readonly lanes: number;
  readonly shared: Lines;
  readonly cache: Binding | null;
  /** Does it write weights? */
  readonly written: boolean;
}
export function launchText(
  name: string,
  bodies: readonly AnyBody[],
  env: KernelEnv,
  variant: Variant = "any",
): LaunchText {
  const kernel = kernelOf(bodies[0]!);
  const lanes = lanesOf(bodies, variant, env);
  const functions = bodies.map((b, i) => kernelOf(b).wgsl(`body_${i}`, b, env, variant, lanes)).join("\n");
  return {
    name,
    functions,
    entries: sorted(functions, entriesOf(bodies)),
    joins: kernel.joins ?? false,
    apart: variant === "plain",
    says: bodies.map((b) => `${b.skeleton} ${b.name}`).join(", "),
    lanes,
    shared: kernel.shared?.(variant, lanes, bodies, env) ?? [],
    cache: cacheOf(bodies),
    written: writesWeights(bodies),
  };
}
/** WGSL of one launch. */
export function emitLaunchWgsl(...of: Parameters<typeof launchText>): string {
  return moduleOfOne(launchText(...of)).text;
}
export function moduleOfOne(launch: LaunchText): { text: string; runs: readonly number[] } {
  const { functions, select, runs } = merged(launch.functions, launch.entries);
  return { text: moduleOf([launch], functions, select), runs };
}
/** A module for launches that need alike: functions, and statements that call them. */
export function moduleOf(launches: readonly LaunchText[], functions: string, select: Lines): string {
  const { lanes, shared, written } = launches[0]!;
  const caches = launches.flatMap(({ cache }) => cache ?? []);
  if (new Set(caches.map(({ type }) => type)).size > 1)
    throw new Error(`${launches[0]!.name}: one kernel reads the cache, another writes it`);
  const library = called(functions);
  const chooses = `${functions}${select.join()}`.includes(FIRST_BODY);
  const uses = (id: string): boolean => new RegExp(`\\b${id}\\[`).test(`${functions}${library}`);
  const declarations = memorySpaces.flatMap((c, i) => {
    const binding = c === "kv" ? caches[0] : c === "weights" && written ? numbers(c) : bindings[c];
    if (!binding) return [];
    const { id, type, access } = binding;
    return uses(id) ? [`@group(0) @binding(${i}) var<storage, ${access}> ${id}: ${type};`] : [];
  });
  return lines`
    ${launches.flatMap(({ name, says }) => [`// ${name}`, `// ${says}`])}
    ${declarations}
    ${shared}
    ${library ? library.split("\n") : []}
    ${functions.split("\n")}
    ${chooses ? [`override ${FIRST_BODY}: i32 = -1;`] : []}
    @compute @workgroup_size(${lanes})
    fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) index: u32) {
      let wg = vec3<i32>(group)${chooses ? ` + vec3<i32>(0, 0, max(${FIRST_BODY}, 0))` : ""};
      let lane = i32(index);
      ${select}
    }
  `
    .join("\n")
    .concat("\n");
}
/** The functions of a launch that workgroups enter, by z. */
function entriesOf(bodies: readonly AnyBody[]): string[] {
  const { parts } = kernelOf(bodies[0]!);
  return bodies.flatMap((b, i) =>
    parts ? Array.from({ length: parts(b) }, (_, k) => `body_${i}_${k}`) : [`body_${i}`],
  );
}

/** Workgroups of a launch: x and y cover the largest body, z picks the function. */
export const gridOf = (
  bodies: readonly AnyBody[],
  env: KernelEnv,
  variant: Variant = "any",
): readonly [GridDim, GridDim, GridDim] => [
  ...kernelOf(bodies[0]!).grid(bodies, env, variant),
  fixed(entriesOf(bodies).length),
];
