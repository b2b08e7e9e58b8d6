/**
 * What lanes read alike, of which each may bring a part. A CPU behind WebGPU reads a word for one lane after
 * another, also where all of them want the same one: where four lanes exchange what they have, a quad reads
 * four words in the time of one. A module's text is written for lanes that read alone, and turned.
 */
import { kvNames, memorySpaces } from "../../../runtime/bundle.ts";
import { type Lines, lines } from "./lines.ts";
import { fn } from "./wgsl.ts";

/** Function of a module: as lanes read alone, and in quads. */
interface Forms {
  readonly alone: string;
  readonly quads: string;
}
const params = "at: i32, step: i32, last: i32";
const inOrder = [0, 1, 2, 3];
/** What each lane of a quad has in `own`. */
const brought = (type: "f32" | "i32"): Lines => lines`
  return vec4<${type}>(
    ${inOrder.map((i) => `quadBroadcast(own, ${i})`).join(", ")});`;
/**
 * Four words from `at` on, `step` apart, of which those up to `last` are wanted; all lanes of a quad say the
 * same.
 */
const four = (space: string): Forms => ({
  alone: fn(
    `four_${space}`,
    lines`
      return vec4<f32>(
        ${space}[at], ${space}[at + min(1, last) * step],
        ${space}[at + min(2, last) * step], ${space}[at + last * step]);`,
    params,
    "vec4<f32>",
  ),
  quads: fn(
    `four_${space}`,
    lines`
      let own = ${space}[at + min(in_quad, last) * step];
      ${brought("f32")}`,
    params,
    "vec4<f32>",
  ),
});
/** Two words from `a` on, and two from `b` on; of each the second is the first again where `last` is 0. */
const two = (space: string): Forms => {
  const form = (body: Lines): string => fn(`two_${space}`, body, "a: i32, b: i32, last: i32", "vec4<f32>");
  return {
    alone: form([`return vec4<f32>(${space}[a], ${space}[a + last], ${space}[b], ${space}[b + last]);`]),
    quads: form(lines`
      let own = ${space}[select(a, b, in_quad > 1) + min(in_quad & 1, last)];
      ${brought("f32")}`),
  };
};
/** Four numbers of the cache from `at` on, a multiple of four that all lanes of a quad say. */
const cached = (format: string): Forms => {
  const form = (body: Lines): string => fn(`kv_alike_${format}`, body, "at: i32", "vec4<f32>");
  return {
    alone: form([`return vec4<f32>(${inOrder.map((i) => `kv_${format}(at + ${i})`).join(", ")});`]),
    quads: form([`let own = kv_${format}(at + in_quad);`, ...brought("f32")]),
  };
};
/** A number of each lane of a quad, of which each lane then has all; of a lane alone its own. */
const neighbours: Forms = {
  alone: fn("neighbours", ["return vec4<i32>(own);"], "own: i32", "vec4<i32>"),
  quads: fn("neighbours", brought("i32"), "own: i32", "vec4<i32>"),
};
/** May a lane that has nothing to do leave? Not while others need what it reads for them. */
const idle: Forms = {
  alone: fn("idle", ["return nothing;"], "nothing: bool", "bool"),
  quads: fn("idle", ["return subgroupAll(nothing);"], "nothing: bool", "bool"),
};
const forms: Readonly<Record<string, Forms>> = {
  idle,
  neighbours,
  ...Object.fromEntries(kvNames.map((name) => [`kv_alike_${name}`, cached(name)])),
  ...Object.fromEntries(
    memorySpaces.flatMap((space) => [
      [`four_${space}`, four(space)],
      [`two_${space}`, two(space)],
    ]),
  ),
};
/** Functions that kernels call, as lanes read alone. */
export const shared: Readonly<Record<string, string>> = Object.fromEntries(
  Object.entries(forms).map(([name, { alone }]) => [name, alone]),
);

const ENTRY = "@builtin(local_invocation_index) index: u32) {";
const IN_QUADS = `${ENTRY.slice(0, -3)}, @builtin(subgroup_invocation_id) place: u32) {
  in_quad = i32(place & 3u);`;
/** A module for lanes that read in quads; null: its lanes read nothing alike. */
export function inQuads(module: string): string | null {
  const called = Object.values(forms).filter(({ alone }) => module.includes(alone));
  if (!called.length) return null;
  const turned = called.reduce((text, { alone, quads }) => text.replace(alone, quads), module);
  return `enable subgroups;
diagnostic(off, subgroup_uniformity);
var<private> in_quad: i32 = 0;
${turned.replace(ENTRY, IN_QUADS)}`;
}
