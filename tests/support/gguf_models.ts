/**
 * Tiny models as GGUF files, written from the format's own description, and as folders of the same numbers.
 */
import { mkdirSync, writeFileSync } from "node:fs";
import { encode, floatToHalf, halfToFloat } from "../../runtime/bundle.ts";
import { transpose } from "../../runtime/tensors/dense.ts";
import { configs } from "./engines.ts";
import { ggufName, interleaved, type Meta, writeGguf } from "./gguf.ts";
import { type Config, scratch, tensorsOf, writeModel } from "./tiny.ts";

export type Format = "F32" | "F16" | "BF16" | "Q8_0" | "Q4_0" | "Q4_1";
export const types: Readonly<Record<Format, number>> = {
  F32: 0,
  F16: 1,
  Q4_0: 2,
  Q4_1: 3,
  Q8_0: 8,
  BF16: 30,
};
const halfBytes = (x: number): [number, number] => {
  const h = floatToHalf(x);
  return [h & 255, h >> 8];
};
/**
 * Values in a format, and what they are after it: blocks of 32 with a scale, written and read from the
 * format's description.
 */
function encodeAs(values: Float32Array, format: Format): { data: Uint8Array; exact: Float32Array } {
  if (format === "F32") return { data: new Uint8Array(values.slice().buffer), exact: values };
  if (format === "F16") {
    const halves = Uint16Array.from(values, floatToHalf);
    return { data: new Uint8Array(halves.buffer), exact: Float32Array.from(halves, halfToFloat) };
  }
  if (format === "BF16") {
    const words = Uint16Array.from(new Uint32Array(values.slice().buffer), (w) => w >>> 16);
    return {
      data: new Uint8Array(words.buffer),
      exact: new Float32Array(Uint32Array.from(words, (w) => w << 16).buffer),
    };
  }
  const data: number[] = [];
  const exact = new Float32Array(values.length);
  for (let b = 0; b < values.length; b += 32) {
    const block = values.subarray(b, b + 32);
    const max = Math.max(...block.map(Math.abs));
    if (format === "Q8_0") {
      const d = halfToFloat(floatToHalf(max / 127 || 1));
      data.push(...halfBytes(d));
      block.forEach((x, i) => {
        const q = Math.max(-127, Math.min(127, Math.round(x / d)));
        data.push(q & 255);
        exact[b + i] = d * q;
      });
      continue;
    }
    const low = Math.min(...block);
    const d = halfToFloat(floatToHalf((format === "Q4_0" ? max / 7 : (Math.max(...block) - low) / 15) || 1));
    const m = format === "Q4_0" ? -8 * d : halfToFloat(floatToHalf(low));
    const q = Array.from(block, (x) => Math.max(0, Math.min(15, Math.round((x - m) / d))));
    data.push(...halfBytes(d), ...(format === "Q4_1" ? halfBytes(m) : []));
    for (let i = 0; i < 16; i++) data.push(q[i]! | (q[i + 16]! << 4));
    q.forEach((x, i) => {
      exact[b + i] = format === "Q4_0" ? d * (x - 8) : Math.fround(d * x) + m;
    });
  }
  return { data: Uint8Array.from(data), exact };
}
const { even } = configs;
/** Where a family's file is not as Qwen3's: its architecture, more keys, what the converter does. */
interface Kind {
  readonly architecture?: string;
  readonly more?: (c: Config) => Meta;
  /** Gains of norms have 1 added. */
  readonly whole?: true;
  /** Heads of queries and keys are turned, as Llama's. */
  readonly turned?: true;
  /** Matrices that checkpoints have as [in, out]. */
  readonly flipped?: RegExp;
  readonly extra?: (c: Config) => Parameters<typeof writeGguf>[1];
}
/** Numbers of a config under GGUF's keys. */
const numbers =
  (keys: Readonly<Record<string, string>>) =>
  (c: Config): Meta =>
    Object.fromEntries(Object.entries(keys).map(([key, from]) => [key, c[from] as number]));
const factor = (c: Config): number => (c.rope_scaling as { factor: number }).factor;
const kinds: Readonly<Record<string, Kind>> = {
  llama: { turned: true },
  qwen2: {
    more: (c) => ({
      "rope.scaling.type": "yarn",
      "rope.scaling.factor": factor(c),
      "rope.scaling.original_context_length": 64,
    }),
  },
  smollm3: { turned: true },
  granite: {
    turned: true,
    more: (c) => ({
      ...numbers({
        embedding_scale: "embedding_multiplier",
        "attention.scale": "attention_multiplier",
        residual_scale: "residual_multiplier",
        logit_scale: "logits_scaling",
      })(c),
      "rope.scaling.type": "linear",
      "rope.scaling.factor": factor(c),
    }),
  },
  mixtral: {
    architecture: "llama",
    turned: true,
    more: numbers({ expert_count: "num_local_experts", expert_used_count: "num_experts_per_tok" }),
  },
  qwen3_moe: {
    architecture: "qwen3moe",
    more: numbers({
      expert_count: "num_experts",
      expert_used_count: "num_experts_per_tok",
      expert_feed_forward_length: "moe_intermediate_size",
    }),
  },
  olmoe: { more: numbers({ expert_count: "num_experts", expert_used_count: "num_experts_per_tok" }) },
  phi3: {
    more: (c) => ({
      "rope.dimension_count": headDimOf(c) * (c.partial_rotary_factor as number),
      "rope.scaling.original_context_length": 128,
      "rope.scaling.attn_factor": Math.sqrt(1 + Math.log(256 / 128) / Math.log(128)),
      "attention.sliding_window": c.sliding_window as number,
    }),
    extra: ({ rope_scaling: said }) => {
      const { short_factor: short, long_factor: long } = said as Record<string, number[]>;
      return [vector("rope_factors_short", short!), vector("rope_factors_long", long!)];
    },
  },
  gpt2: {
    flipped: /(attn|mlp)\.c_\w+\.weight/,
    more: numbers({
      block_count: "n_layer",
      context_length: "n_positions",
      embedding_length: "n_embd",
      feed_forward_length: "n_inner",
      "attention.head_count": "n_head",
      "attention.layer_norm_epsilon": "layer_norm_epsilon",
    }),
  },
  starcoder2: { more: numbers({ "attention.layer_norm_epsilon": "norm_epsilon" }) },
  gemma2: {
    whole: true,
    more: numbers({
      attn_logit_softcapping: "attn_logit_softcapping",
      final_logit_softcapping: "final_logit_softcapping",
      "attention.sliding_window": "sliding_window",
    }),
  },
  gemma3_text: {
    architecture: "gemma3",
    whole: true,
    more: (c) => ({
      "rope.scaling.type": "linear",
      "rope.scaling.factor": factor(c),
      "attention.sliding_window": c.sliding_window as number,
    }),
  },
};
export const vector = (name: string, values: readonly number[]): Parameters<typeof writeGguf>[1][number] => ({
  name: `${name}.weight`,
  shape: [values.length],
  type: types.F32,
  data: new Uint8Array(Float32Array.from(values).buffer),
});
const headDimOf = (c: Config): number =>
  (c.head_dim as number | undefined) ?? c.hidden_size / c.num_attention_heads;
function metaOf(c: Config): Meta {
  const kind = kinds[String(c.model_type)] ?? {};
  const architecture = kind.architecture ?? String(c.model_type);
  const own: Meta = {
    block_count: c.num_hidden_layers,
    context_length: c.max_position_embeddings as number,
    embedding_length: c.hidden_size,
    feed_forward_length: c.intermediate_size,
    "attention.head_count": c.num_attention_heads,
    "attention.head_count_kv": c.num_key_value_heads,
    "attention.key_length": headDimOf(c),
    "attention.layer_norm_rms_epsilon": c.rms_norm_eps as number,
    "rope.freq_base": c.rope_theta as number,
    "rope.dimension_count": headDimOf(c),
    ...kind.more?.(c),
  };
  return {
    "general.architecture": architecture,
    ...Object.fromEntries(
      Object.entries(own)
        .filter(([, value]) => value !== undefined && !Number.isNaN(value))
        .map(([key, value]) => [`${architecture}.${key}`, value]),
    ),
  };
}
/**
 * A model, the even one unless told, with its matrices in a format: as GGUF, and as the folder of what that
 * format leaves of them.
 */
export function model(
  format: Format,
  more: Meta = {},
  c: Config = even,
  extra: Parameters<typeof writeGguf>[1] = [],
): { gguf: string; folder: string } {
  const kind = kinds[String(c.model_type)] ?? {};
  const exact: ReturnType<typeof tensorsOf> = [];
  const tensors = tensorsOf(c).map((t) => {
    const matrix = t.shape.length === 2;
    let values = t.data as Float32Array;
    let { shape } = t;
    if (kind.flipped?.test(t.name)) {
      values = transpose(values, shape[0]!, shape[1]!);
      shape = [shape[1]!, shape[0]!];
    }
    const whole = kind.whole && !matrix;
    if (whole) values = values.map((w) => w + 1);
    const turned = kind.turned ? /([qk])_proj/.exec(t.name)?.[1] : undefined;
    const heads = turned ? (turned === "q" ? c.num_attention_heads : c.num_key_value_heads) : 0;
    // Blocks run along a row, so they are the same whatever the order of rows.
    const coded = encodeAs(values, matrix ? format : "F32");
    exact.push({
      ...t,
      data: kind.flipped ? t.data : whole ? coded.exact.map((gain) => gain - 1) : coded.exact,
    });
    const rowBytes = coded.data.length / shape[0]!;
    const order = heads
      ? interleaved(
          Float32Array.from({ length: shape[0]! }, (_, r) => r),
          shape[0]!,
          heads,
        )
      : null;
    const data = new Uint8Array(coded.data.length);
    for (let r = 0; r < shape[0]!; r++)
      data.set(
        coded.data.subarray((order ? order[r]! : r) * rowBytes, ((order ? order[r]! : r) + 1) * rowBytes),
        r * rowBytes,
      );
    return { name: ggufName(t.name, c), shape, type: types[matrix ? format : "F32"], data };
  });
  // Matrices of one name are one tensor.
  const stacked = [...new Set(tensors.map((t) => t.name))].map((name) => {
    const parts = tensors.filter((t) => t.name === name);
    const [first] = parts as [(typeof parts)[number]];
    if (parts.length === 1) return first;
    return { ...first, shape: [parts.length, ...first.shape], data: Buffer.concat(parts.map((t) => t.data)) };
  });
  const dir = scratch();
  mkdirSync(dir, { recursive: true });
  const folder = writeModel(c);
  writeFileSync(`${folder}/model.safetensors`, encode(exact));
  writeFileSync(
    `${dir}/model.gguf`,
    writeGguf({ ...metaOf(c), ...more }, [...stacked, ...(kind.extra?.(c) ?? []), ...extra]),
  );
  return { gguf: `${dir}/model.gguf`, folder };
}
