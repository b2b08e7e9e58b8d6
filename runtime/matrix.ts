/**
 * Matrix units: of a bundle whose products are of them, what its kernels come with on a device. Modules that
 * use units lack a head, which is one of two files: of the device's units, in a shape that it has, or of
 * none.
 */

/** Kernels of a bundle that are heads, by their form. */
export const unitHeads = { native: "units", plain: "units_plain" } as const;

/** What a device's units take: M rows, N columns and K terms of f16, by so many lanes. */
export interface Unit {
  readonly m: number;
  readonly n: number;
  readonly k: number;
  readonly lanes: number;
  /** Are lanes asked for? Else subgroups have so many anyway. */
  readonly asks: boolean;
}
/** Of an adapter, what is looked at; types of WebGPU do not have all of it. */
interface Adapter {
  readonly features: { has(name: string): boolean };
  readonly info: {
    readonly subgroupMinSize?: number;
    readonly subgroupMaxSize?: number;
    readonly subgroupMatrixConfigs?: Iterable<{
      readonly componentType: string;
      readonly resultComponentType: string;
      readonly M: number;
      readonly N: number;
      readonly K: number;
    }>;
  };
}
const NEEDED = ["shader-f16", "subgroups", "chromium-experimental-subgroup-matrix"];
const ASKS = "subgroup-size-control";
/** The largest unit of f16, summed in f32, that tiles are made of; null where there is none. */
export function unitOf({ features, info }: Adapter): Unit | null {
  if (!NEEDED.every((name) => features.has(name))) return null;
  const { subgroupMinSize: least = 0, subgroupMaxSize: most = 0 } = info;
  const asks = features.has(ASKS);
  const sizes = [32, 16].filter((lanes) =>
    asks ? least <= lanes && lanes <= most : least === lanes && most === lanes,
  );
  const units = [...(info.subgroupMatrixConfigs ?? [])].flatMap(
    ({ componentType, resultComponentType, M, N, K }) => {
      if (componentType !== "f16" || resultComponentType !== "f32") return [];
      const whole = [8, 16].includes(M) && [8, 16].includes(N) && [8, 16, 32].includes(K);
      // Units that are wider than high are of 16 lanes.
      const lanes = (M < N ? sizes.toReversed() : sizes).find((s) => 2 * M <= s);
      return whole && lanes ? [{ m: M, n: N, k: K, lanes, asks: asks && least !== most }] : [];
    },
  );
  return units.sort((a, b) => b.m * b.n * b.k - a.m * a.n * a.k)[0] ?? null;
}
/** Features that a device with such a unit is asked for: not all of them are names in the types of WebGPU. */
export const unitFeatures = ({ asks }: Unit): readonly string[] => [...NEEDED, ...(asks ? [ASKS] : [])];

/** Does a module use units? */
export const lacksHead = (text: string): boolean => text.includes("tile_out[");
/** A module as it is compiled: with the head, if it lacks one. */
export function withHead(text: string, head: string, unit: Unit | null): string {
  if (!lacksHead(text)) return text;
  if (!unit) return `${head}${text}`;
  const { m, n, k, lanes, asks } = unit;
  const own = `const M = ${m};\nconst N = ${n};\nconst K = ${k};\nconst SUBGROUP = ${lanes};\n`;
  const asked = asks ? text.replace("@compute ", `@compute @subgroup_size(${lanes}) `) : text;
  return `${asks ? "enable subgroup_size_control;\n" : ""}${head}${own}${asked}`;
}
/** Of a bundle's files, kernels with what this adapter has; what is asked of a device, and its class. */
export function unitsOn(
  adapter: Adapter,
  file: (name: string) => Promise<Uint8Array>,
): {
  readonly features: readonly string[];
  readonly numerics: " matrix" | " matrix plain";
  readonly file: (name: string) => Promise<Uint8Array>;
} {
  const unit = unitOf(adapter);
  const named = `kernels/${unitHeads[unit ? "native" : "plain"]}.wgsl`;
  let head: Promise<string> | null = null;
  const text = async (name: string): Promise<string> => new TextDecoder().decode(await file(name));
  return {
    features: unit ? unitFeatures(unit) : [],
    numerics: unit ? " matrix" : " matrix plain",
    file: async (name) => {
      head ??= text(named);
      return new TextEncoder().encode(withHead(await text(name), await head, unit));
    },
  };
}
