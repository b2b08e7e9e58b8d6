/**
 * Rotary positions as config.json describes them: each kind of scaling makes a table. Facts: transformers'
 * modeling_rope_utils.py, whose keys these are; llama3 and LongRoPE (Ding et al. 2024), YaRN (Peng et al.
 * 2023).
 */
import type { RopeEntry } from "../../runtime/bundle.ts";
import { fail } from "./keys.ts";
import type { Json } from "./model.ts";

/** What a kind reads: its own keys, and what all tables are made of. */
interface Said {
  /** A number that must be there; that may be. Throws WEFT_CONFIG. */
  readonly number: (key: string) => number;
  readonly optional: (key: string) => number | undefined;
  /** A number a pair, as f32, which GGUF keeps them in. */
  readonly factors: (key: string) => readonly number[];
  readonly truncate: boolean;
  readonly theta: number;
  /** Dims of a head that turn. */
  readonly turned: number;
  /** Positions of the model, and those that it was trained on first. */
  readonly context: number;
  readonly original: number;
  /** Inverse frequencies before any scaling: theta^(-2i / turned). */
  readonly plain: readonly number[];
}
interface Kind {
  readonly keys: readonly string[];
  readonly make: (said: Said) => RopeEntry;
}
const unscaled = (inverseFrequencies: readonly number[]): RopeEntry => ({
  inverseFrequencies: [...inverseFrequencies],
  scale: 1,
});
const original = "original_max_position_embeddings";

const kinds: Readonly<Record<string, Kind>> = {
  default: { keys: [], make: ({ plain }) => unscaled(plain) },
  linear: {
    keys: ["factor"],
    make: ({ plain, number }) => {
      const factor = number("factor");
      return unscaled(plain.map((f) => f / factor));
    },
  },
  // It grows theta with a length beyond the model's own positions, and no bundle has room for more than
  // those.
  dynamic: { keys: ["factor", original], make: ({ plain }) => unscaled(plain) },
  llama3: {
    keys: ["factor", "low_freq_factor", "high_freq_factor", original],
    make: ({ plain, number, original }) => {
      const [factor, low, high] = [number("factor"), number("low_freq_factor"), number("high_freq_factor")];
      const divisorOf = (f: number): number => {
        const wavelength = (2 * Math.PI) / f;
        if (wavelength < original / high) return 1;
        if (wavelength > original / low) return factor;
        const smooth = (original / wavelength - low) / (high - low);
        return 1 / ((1 - smooth) / factor + smooth);
      };
      // As f32, which GGUF keeps them in.
      return unscaled(plain.map((f) => f / Math.fround(divisorOf(f))));
    },
  },
  yarn: {
    keys: [
      "factor",
      "attention_factor",
      "beta_fast",
      "beta_slow",
      "mscale",
      "mscale_all_dim",
      "truncate",
      original,
    ],
    make: ({ plain, optional, context, original, theta, turned, truncate }) => {
      const factor = optional("factor") ?? context / original;
      const grown = (by: number): number => (factor <= 1 ? 1 : 0.1 * by * Math.log(factor) + 1);
      const [one, all] = [optional("mscale"), optional("mscale_all_dim")];
      const scale = optional("attention_factor") ?? (one && all ? grown(one) / grown(all) : grown(1));
      /** The pair that turns so often over the original positions. */
      const pairOf = (turns: number): number =>
        (turned * Math.log(original / (turns * 2 * Math.PI))) / (2 * Math.log(theta));
      const [fast, slow] = [pairOf(optional("beta_fast") || 32), pairOf(optional("beta_slow") || 1)];
      const low = Math.max(truncate ? Math.floor(fast) : fast, 0);
      const high = Math.min(truncate ? Math.ceil(slow) : slow, turned - 1);
      const inverseFrequencies = plain.map((f, i) => {
        const ramp = Math.min(1, Math.max(0, (i - low) / (high - low || 0.001)));
        return (f / factor) * ramp + f * (1 - ramp);
      });
      return { inverseFrequencies, scale: Math.fround(scale) };
    },
  },
  longrope: {
    keys: ["factor", "attention_factor", "short_factor", "long_factor", original],
    make: ({ plain, factors, optional, context, original }) => {
      const factor = optional("factor") ?? context / original;
      const scale =
        optional("attention_factor") ??
        (factor <= 1 ? 1 : Math.sqrt(1 + Math.log(factor) / Math.log(original)));
      const [short, long] = (["short_factor", "long_factor"] as const).map((key) => {
        const by = factors(key);
        return plain.map((f, i) => f / by[i]!);
      });
      const same = short!.every((f, i) => f === long![i]);
      return {
        inverseFrequencies: short!,
        scale: Math.fround(scale),
        ...(!same && { long: { beyond: original, inverseFrequencies: long! } }),
      };
    },
  },
};
/** What Phi-3 has called it. */
const older: Readonly<Record<string, string>> = { su: "longrope" };

/**
 * The table of a config, whose `rope_parameters` (or `rope_scaling`, as older ones have it) may be `said`
 * instead; `partial`: heads may turn in part. Throws WEFT_CONFIG for a kind, or a key of one, that there is
 * not.
 */
export function ropeOf(
  config: Json,
  headDim: number,
  { said, partial = false }: { readonly said?: Json; readonly partial?: boolean } = {},
): RopeEntry {
  const under = said || config.rope_parameters ? "rope_parameters" : "rope_scaling";
  const parameters = (said ?? config.rope_parameters ?? {}) as Json;
  const scaling = (said ?? config.rope_scaling ?? parameters) as Json;
  const theta = parameters.rope_theta ?? scaling.rope_theta ?? config.rope_theta ?? 10000;
  if (typeof theta !== "number" || !(theta > 0)) fail("rope_theta", "a positive number", theta);
  const part =
    scaling.partial_rotary_factor ?? parameters.partial_rotary_factor ?? config.partial_rotary_factor;
  // A quotient of dims, as GGUF's are, may lie a little below.
  const turned = Math.floor(headDim * Number(part ?? 1) + 1e-9);
  if (!(turned > 0 && turned <= headDim && turned % 2 === 0 && (partial || turned === headDim)))
    fail("partial_rotary_factor", partial ? `an even part of ${headDim} dims` : "1, or nothing", part);
  const type = String(scaling.rope_type ?? scaling.type ?? "default");
  const name = older[type] ?? type;
  if (!Object.hasOwn(kinds, name)) fail(`${under}.rope_type`, Object.keys(kinds).join(", "), type);
  const kind = kinds[name]!;
  const known = ["rope_type", "type", "rope_theta", "partial_rotary_factor", ...kind.keys];
  for (const [key, v] of Object.entries(scaling))
    if (!known.includes(key) && v !== null) fail(`${under}.${key}`, `a key of the kind ${name}`, v);
  const optional = (key: string): number | undefined => {
    const v = scaling[key] ?? undefined;
    if (v !== undefined && !(typeof v === "number" && Number.isFinite(v)))
      fail(`${under}.${key}`, "a number", v);
    return v as number | undefined;
  };
  const number = (key: string): number => optional(key) ?? fail(`${under}.${key}`, "a number", undefined);
  const context = (config.max_position_embeddings as number | undefined) ?? 2048;
  return kind.make({
    number,
    optional,
    factors: (key) => {
      const list = scaling[key];
      const fits = Array.isArray(list) && list.length === turned / 2 && list.every((x) => x > 0);
      if (!fits) fail(`${under}.${key}`, `${turned / 2} numbers above 0`, list);
      return (list as number[]).map(Math.fround);
    },
    truncate: scaling.truncate !== false,
    theta,
    turned,
    context,
    // Of all kinds but Phi-3's it lies among the others.
    original: (config[original] as number | undefined) ?? optional(original) ?? context,
    plain: Array.from({ length: turned / 2 }, (_, i) => theta ** ((-2 * i) / turned)),
  });
}
/** A table of no turn, as long as others: what layers without rotary positions have. */
export const still = ({ inverseFrequencies }: RopeEntry): RopeEntry =>
  unscaled(inverseFrequencies.map(() => 0));
