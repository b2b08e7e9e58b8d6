/**
 * A GGUF file as a model folder: config, weights and tokenizer under Hugging Face's names. The container is
 * read by @huggingface/gguf; block formats are decoded here (llama.cpp, ggml-common.h). GGUF keeps the rows
 * of q and k in the order of interleaved rotation; they are put back.
 */
import { gguf } from "@huggingface/gguf";
import * as v from "valibot";
import { decode, WeftError } from "../runtime/bundle.ts";
import { boolean, check, count, foreign, numbers, type Of, text } from "../runtime/schema.ts";
import { checkConfig } from "./config.ts";
import { checkContainer } from "./container.ts";
import { readRange, sizeOf } from "./files.ts";
import { generationOf } from "./generation.ts";
import type { ModelSource } from "./source.ts";

interface BlockFormat {
  readonly name: string;
  readonly values: number;
  readonly bytes: number;
  readonly read: (raw: Uint8Array, at: number, out: Float32Array, to: number) => void;
}
const half = (raw: Uint8Array, at: number): number => decode(raw.subarray(at, at + 2), "F16", "scale")[0]!;
const nibbles = (raw: Uint8Array, at: number, each: (i: number, q: number) => void): void => {
  for (let i = 0; i < 16; i++) {
    each(i, raw[at + i]! & 15);
    each(i + 16, raw[at + i]! >> 4);
  }
};
/** By GGML type number. Values of a block of 32: scale · q, scale · (q - 8), scale · q + minimum. */
const blocks: Readonly<Record<number, BlockFormat>> = {
  2: {
    name: "Q4_0",
    values: 32,
    bytes: 18,
    read: (raw, at, out, to) => {
      const d = half(raw, at);
      nibbles(raw, at + 2, (i, q) => {
        out[to + i] = d * (q - 8);
      });
    },
  },
  3: {
    name: "Q4_1",
    values: 32,
    bytes: 20,
    read: (raw, at, out, to) => {
      const [d, m] = [half(raw, at), half(raw, at + 2)];
      nibbles(raw, at + 4, (i, q) => {
        out[to + i] = Math.fround(d * q) + m;
      });
    },
  },
  8: {
    name: "Q8_0",
    values: 32,
    bytes: 34,
    read: (raw, at, out, to) => {
      const d = half(raw, at);
      for (let i = 0; i < 32; i++) out[to + i] = d * ((raw[at + 2 + i]! << 24) >> 24);
    },
  },
};
const plain: Readonly<Record<number, "F32" | "F16" | "BF16">> = { 0: "F32", 1: "F16", 30: "BF16" };

/** GGUF's name of a tensor of the Llama family. */
function ggufName(name: string): string {
  const outer: Readonly<Record<string, string>> = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
  };
  if (outer[name]) return outer[name];
  const [, layer, module, kind] = /^model\.layers\.(\d+)\.(.*)\.(weight|bias)$/.exec(name)!;
  const names: Readonly<Record<string, string>> = {
    input_layernorm: "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    post_attention_layernorm: "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
  };
  return `blk.${layer}.${names[module!]}.${kind}`;
}
/** Pre-tokenizers of byte-level BPE vocabularies, by llama.cpp's name. */
const preTokenizers: Readonly<Record<string, object>> = {
  "gpt-2": { type: "ByteLevel", add_prefix_space: false, trim_offsets: true, use_regex: true },
  smollm: {
    type: "Sequence",
    pretokenizers: [
      { type: "Digits", individual_digits: true },
      { type: "ByteLevel", add_prefix_space: false, trim_offsets: true, use_regex: true },
    ],
  },
  "llama-bpe": {
    type: "Sequence",
    pretokenizers: [
      {
        type: "Split",
        pattern: {
          Regex:
            "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+",
        },
        behavior: "Isolated",
        invert: false,
      },
      { type: "ByteLevel", add_prefix_space: false, trim_offsets: true, use_regex: false },
    ],
  },
};

const strings = v.custom<readonly string[]>(
  (x) => Array.isArray(x) && x.every((s) => typeof s === "string"),
  "a list of strings",
);
const Metadata = foreign({
  "tokenizer.ggml.model": v.optional(text),
  "tokenizer.ggml.pre": v.optional(text),
  "tokenizer.ggml.tokens": v.optional(strings),
  "tokenizer.ggml.merges": v.optional(strings),
  "tokenizer.ggml.token_type": v.optional(numbers("a type of token", Number.isInteger)),
  "tokenizer.ggml.bos_token_id": v.optional(count),
  "tokenizer.ggml.eos_token_id": v.optional(count),
  "tokenizer.ggml.add_bos_token": v.optional(boolean),
  "tokenizer.chat_template": v.optional(text),
});
type Metadata = Of<typeof Metadata> & Readonly<Record<string, unknown>>;

/**
 * Open a GGUF file of the Llama family; `tokenizer`: files to take in place of the vocabulary inside. Throws
 * WEFT_WEIGHTS or WEFT_CONFIG naming what is not supported.
 */
export async function openGguf(
  path: string,
  tokenizer: ReadonlyMap<string, string> | null = null,
): Promise<ModelSource> {
  const size = sizeOf(path);
  checkContainer((from, to) => readRange(path, from, to), size, path);
  const parsed = await gguf(path, { allowLocalFile: true }).catch((cause: Error) => {
    throw new WeftError({
      code: "WEFT_WEIGHTS",
      where: path,
      expected: "a GGUF file",
      found: cause.message,
      cause,
    });
  });
  const meta = check(Metadata, parsed.metadata, { code: "WEFT_WEIGHTS", where: path }) as Metadata;
  const named = new Set(parsed.tensorInfos.map((t) => t.name)).size;
  const listed = Number(meta.tensor_count);
  if (!listed || named !== listed)
    throw new WeftError({
      code: "WEFT_WEIGHTS",
      where: path,
      expected: "a GGUF header with tensors",
      found: `names of ${named} of ${listed || "no"} tensors`,
      hint: "the file is truncated",
    });
  const refuse = (key: string, expected: string, found: unknown): never => {
    throw new WeftError({ code: "WEFT_CONFIG", where: `${path}: ${key}`, expected, found: String(found) });
  };
  if (meta["general.architecture"] !== "llama")
    refuse("general.architecture", "llama", meta["general.architecture"]);
  const number = (key: string, fallback?: number): number => {
    const v = meta[`llama.${key}`] ?? fallback;
    return typeof v === "number"
      ? v
      : typeof v === "bigint"
        ? Number(v)
        : refuse(`llama.${key}`, "a number", v);
  };
  const scaling = meta["llama.rope.scaling.type"];
  if (scaling !== undefined && scaling !== "none") refuse("llama.rope.scaling.type", "none", scaling);
  const table = new Map(
    parsed.tensorInfos.map((t) => [
      t.name,
      {
        shape: t.shape.map(Number).reverse(),
        type: Number(t.dtype),
        start: Number(parsed.tensorDataOffset + t.offset),
      },
    ]),
  );
  if (table.has("rope_freqs.weight"))
    refuse(
      "rope_freqs.weight",
      "rotary frequencies that follow from rope.freq_base",
      "frequencies of its own",
    );
  const [heads, hidden] = [number("attention.head_count"), number("embedding_length")];
  const kvHeads = number("attention.head_count_kv", heads);
  const headDim = number("attention.key_length", hidden / heads);
  if (number("rope.dimension_count", headDim) !== headDim)
    refuse("llama.rope.dimension_count", String(headDim), number("rope.dimension_count"));
  const has = (name: string): boolean => table.has(ggufName(name));
  const said = {
    model_type: "llama",
    hidden_size: hidden,
    num_hidden_layers: number("block_count"),
    num_attention_heads: heads,
    num_key_value_heads: kvHeads,
    head_dim: headDim,
    intermediate_size: number("feed_forward_length"),
    vocab_size: table.get("token_embd.weight")?.shape[0] ?? number("vocab_size"),
    max_position_embeddings: number("context_length"),
    rms_norm_eps: number("attention.layer_norm_rms_epsilon"),
    rope_theta: number("rope.freq_base", 10000),
    tie_word_embeddings: !has("lm_head.weight"),
    attention_bias: has("model.layers.0.self_attn.q_proj.bias"),
    mlp_bias: has("model.layers.0.mlp.down_proj.bias"),
    hidden_act: "silu",
    bos_token_id: meta["tokenizer.ggml.bos_token_id"] ?? null,
    eos_token_id: meta["tokenizer.ggml.eos_token_id"] ?? null,
  };
  const config = checkConfig(said, path);
  const read = (name: string, shape: readonly number[], first = 0, end = shape[0]!): Float32Array => {
    const where = `${path}: ${ggufName(name)}`;
    const t = table.get(ggufName(name));
    if (!t)
      throw new WeftError({
        code: "WEFT_WEIGHTS",
        where,
        expected: `a tensor ${JSON.stringify(shape)}`,
        found: "no such tensor",
      });
    if (JSON.stringify(t.shape) !== JSON.stringify(shape))
      throw new WeftError({
        code: "WEFT_WEIGHTS",
        where,
        expected: JSON.stringify(shape),
        found: JSON.stringify(t.shape),
      });
    const row = shape.slice(1).reduce((a, b) => a * b, 1);
    const format = blocks[t.type];
    const dtype = plain[t.type];
    if (!format && !dtype)
      throw new WeftError({
        code: "WEFT_WEIGHTS",
        where,
        expected: `F32, F16, BF16, ${Object.values(blocks)
          .map((b) => b.name)
          .join(", ")}`,
        found: `GGML type ${t.type}`,
      });
    if (format && row % format.values)
      throw new WeftError({
        code: "WEFT_WEIGHTS",
        where,
        expected: `rows of whole blocks of ${format.values} values`,
        found: `rows of ${row} values`,
      });
    const bytes = format ? (row / format.values) * format.bytes : row * (dtype === "F32" ? 4 : 2);
    if (t.start + shape[0]! * bytes > size)
      throw new WeftError({
        code: "WEFT_WEIGHTS",
        where,
        expected: `bytes up to ${t.start + shape[0]! * bytes}`,
        found: `a file of ${size}`,
        hint: "the file is truncated",
      });
    const rows = (from: number, to: number): Float32Array => {
      const raw = readRange(path, t.start + from * bytes, t.start + to * bytes);
      if (dtype) return decode(raw, dtype, where, from * row);
      const out = new Float32Array((to - from) * row);
      for (let i = 0; i * format!.values < out.length; i++)
        format!.read(raw, i * format!.bytes, out, i * format!.values);
      if (out.some((x) => !Number.isFinite(x)))
        throw new WeftError({
          code: "WEFT_WEIGHTS",
          where,
          expected: "finite values",
          found: "NaN or infinity",
        });
      return out;
    };
    const rotated = /\.(q|k)_proj\./.exec(name)?.[1];
    if (!rotated) return rows(first, end);
    // Rows move inside their head.
    const perHead = shape[0]! / (rotated === "q" ? heads : kvHeads);
    const start = Math.floor(first / perHead) * perHead;
    const source = rows(start, Math.ceil(end / perHead) * perHead);
    const out = new Float32Array((end - first) * row);
    for (let r = first; r < end; r++) {
      const [h, i] = [Math.floor(r / perHead) * perHead, r % perHead];
      const from = h + (i % (perHead / 2)) * 2 + Math.floor(i / (perHead / 2)) - start;
      out.set(source.subarray(from * row, (from + 1) * row), (r - first) * row);
    }
    return out;
  };
  return {
    where: path,
    config,
    generation: generationOf(config, null, path),
    weights: { has, read },
    files: tokenizer ?? tokenizerFiles(meta, path),
  };
}

/** What makes a tokenizer begin every text with a token. */
const startsWith = (token: string, id: number): object => ({
  type: "TemplateProcessing",
  single: [{ SpecialToken: { id: token, type_id: 0 } }, { Sequence: { id: "A", type_id: 0 } }],
  pair: [{ Sequence: { id: "A", type_id: 0 } }, { Sequence: { id: "B", type_id: 1 } }],
  special_tokens: { [token]: { id: token, ids: [id], tokens: [token] } },
});

/**
 * tokenizer.json and its config from the vocabulary inside the file; none for kinds that are not byte-level
 * BPE.
 */
function tokenizerFiles(meta: Metadata, path: string): ReadonlyMap<string, string> {
  if (meta["tokenizer.ggml.model"] === undefined) return new Map();
  const hint = "put a tokenizer.json beside the file";
  const kind = meta["tokenizer.ggml.pre"] ?? "gpt-2";
  const pre = Object.hasOwn(preTokenizers, kind) ? preTokenizers[kind] : undefined;
  if (meta["tokenizer.ggml.model"] !== "gpt2")
    throw new WeftError({
      code: "WEFT_TOKENIZER",
      where: `${path}: tokenizer.ggml.model`,
      expected: "gpt2 (byte-level BPE)",
      found: String(meta["tokenizer.ggml.model"]),
      hint,
    });
  if (!pre)
    throw new WeftError({
      code: "WEFT_TOKENIZER",
      where: `${path}: tokenizer.ggml.pre`,
      expected: Object.keys(preTokenizers).join(", "),
      found: String(meta["tokenizer.ggml.pre"]),
      hint,
    });
  const tokens = meta["tokenizer.ggml.tokens"];
  const types = meta["tokenizer.ggml.token_type"] ?? [];
  if (!tokens?.length)
    throw new WeftError({
      code: "WEFT_TOKENIZER",
      where: `${path}: tokenizer.ggml.tokens`,
      expected: "the tokens of its vocabulary",
      found: "none",
      hint,
    });
  const added = tokens.flatMap((content, id) =>
    types[id] === 3 || types[id] === 4
      ? [
          {
            id,
            content,
            single_word: false,
            lstrip: false,
            rstrip: false,
            normalized: false,
            special: types[id] === 3,
          },
        ]
      : [],
  );
  const refuseToken = (key: string, expected: string, found: string): never => {
    throw new WeftError({ code: "WEFT_TOKENIZER", where: `${path}: ${key}`, expected, found, hint });
  };
  const token = (key: "bos" | "eos"): string | null => {
    const id = meta[`tokenizer.ggml.${key}_token_id`];
    if (id !== undefined && tokens[id] === undefined)
      refuseToken(`tokenizer.ggml.${key}_token_id`, `an id below ${tokens.length}`, String(id));
    return id === undefined ? null : tokens[id]!;
  };
  // As llama.cpp: where the file does not say, Llama 3's vocabularies begin a text with their start token.
  const starts = meta["tokenizer.ggml.add_bos_token"] ?? meta["tokenizer.ggml.pre"] === "llama-bpe";
  const bos = starts === true ? token("bos") : null;
  const json = {
    version: "1.0",
    truncation: null,
    padding: null,
    added_tokens: added,
    normalizer: null,
    pre_tokenizer: pre,
    post_processor: bos === null ? null : startsWith(bos, tokens.indexOf(bos)),
    decoder: { type: "ByteLevel", add_prefix_space: true, trim_offsets: true, use_regex: true },
    model: {
      type: "BPE",
      dropout: null,
      unk_token: null,
      continuing_subword_prefix: null,
      end_of_word_suffix: null,
      fuse_unk: false,
      vocab: Object.fromEntries(tokens.map((t, i) => [t, i])),
      merges: meta["tokenizer.ggml.merges"],
    },
  };
  const files = new Map([
    ["tokenizer.json", JSON.stringify(json)],
    [
      "tokenizer_config.json",
      JSON.stringify({
        tokenizer_class: "PreTrainedTokenizerFast",
        bos_token: token("bos"),
        eos_token: token("eos"),
        clean_up_tokenization_spaces: false,
      }),
    ],
  ]);
  const template = meta["tokenizer.chat_template"];
  if (typeof template === "string") files.set("chat_template.jinja", template);
  return files;
}
