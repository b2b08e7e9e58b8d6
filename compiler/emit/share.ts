/**
 * Kernels whose WGSL is one but for numbers, as one module: the numbers come with the launch. A module is a
 * pipeline, and pipelines take most of the time that a device takes to load.
 */
import { LAUNCH_BINDING, LAUNCH_VECTORS } from "../../runtime/bundle.ts";
import { alike } from "../kernels/text/alike.ts";

/**
 * Numbers that a launch may bring, but where compilers make more of one that they know: in a loop's bounds,
 * as a divisor. An attribute, a case and a float must hold theirs.
 */
export const BROUGHT =
  /for \([^{]*\{|[/%] \d+u?|@\w+\([^)]*\)|case [\d, ]+:|\d[\d.]*e[-+]?\d+|(?<![\w.])(\d+)(u?)(?![\w.>])/g;
export const shapeOf = (text: string): string =>
  text.replace(BROUGHT, (found: string, n: string | undefined, unsigned: string) =>
    n === undefined ? found : `#${unsigned}`,
  );
/** A module with what a launch brings: its numbers, and behind them those of a shard. */
export const bringing = (text: string): string => {
  const type = `array<vec4<i32>, ${LAUNCH_VECTORS + 1}>`;
  const declared = `@group(0) @binding(${LAUNCH_BINDING}) var<uniform> launch: ${type};\n`;
  const [says] = /^(?:\/\/.*\n)*/.exec(text)!;
  return text.includes("launch[") ? `${says}${declared}${text.slice(says.length)}` : text;
};
const place = (i: number): string => `launch[${i >> 2}].${"xyzw"[i & 3]}`;

export interface Shared {
  readonly modules: readonly { readonly name: string; readonly text: string }[];
  /** By kernel: its module, which is named after the first of its kernels, and its numbers there. */
  readonly of: ReadonlyMap<string, { readonly module: string; readonly launch: readonly number[] }>;
}
export function share(kernels: readonly { readonly name: string; readonly text: string }[]): Shared {
  const groups = new Map<string, { name: string; says: string; text: string }[]>();
  for (const { name, text } of kernels) {
    const says = /^(?:\/\/.*\n)*/.exec(text)![0];
    const code = text.slice(says.length);
    const shape = shapeOf(code);
    groups.set(shape, [...(groups.get(shape) ?? []), { name, says, text: code }]);
  }
  const modules: { name: string; text: string }[] = [];
  const of = new Map<string, { module: string; launch: readonly number[] }>();
  const add = (group: readonly { name: string; says: string; text: string }[]): void => {
    const { name } = group[0]!;
    const texts = group.map((k) => k.text);
    const { text, names, values } = alike(texts, place, BROUGHT);
    // More numbers than a launch has room for: each on its own.
    if (names.length > 4 * LAUNCH_VECTORS) {
      for (const one of group) add([one]);
      return;
    }
    const says = group.map((k) => k.says).join("");
    modules.push({ name, text: bringing(`${says}${text}`) });
    group.forEach((k, i) => void of.set(k.name, { module: name, launch: values[i]!.map(Number) }));
  };
  for (const group of groups.values()) add(group);
  return { modules, of };
}
