/** tokenizer.json, its config and the chat template from what a GGUF file holds of them. */
import { WeftError } from "../../runtime/bundle.ts";
import type { Metadata } from "./file.ts";

const bytes = (regex: boolean): object => ({
  type: "ByteLevel",
  add_prefix_space: false,
  trim_offsets: true,
  use_regex: regex,
});
/** GPT-4's words, with digits in groups as a pattern says. */
const words = (digits: string): object => ({
  type: "Sequence",
  pretokenizers: [
    {
      type: "Split",
      pattern: {
        Regex: [
          "(?i:'s|'t|'re|'ve|'m|'ll|'d)",
          "[^\\r\\n\\p{L}\\p{N}]?\\p{L}+",
          digits,
          " ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*",
          "\\s*[\\r\\n]+",
          "\\s+(?!\\S)",
          "\\s+",
        ].join("|"),
      },
      behavior: "Isolated",
      invert: false,
    },
    bytes(false),
  ],
});
/** Pre-tokenizers of byte-level BPE vocabularies, by llama.cpp's name; some spell text in one way first. */
const preTokenizers: Readonly<Record<string, { readonly pre: object; readonly normalizer: object | null }>> =
  {
    "gpt-2": { pre: bytes(true), normalizer: null },
    smollm: {
      pre: { type: "Sequence", pretokenizers: [{ type: "Digits", individual_digits: true }, bytes(true)] },
      normalizer: null,
    },
    "llama-bpe": { pre: words("\\p{N}{1,3}"), normalizer: null },
    qwen2: { pre: words("\\p{N}"), normalizer: { type: "NFC" } },
  };

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
export function tokenizerFiles(meta: Metadata, path: string): ReadonlyMap<string, string> {
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
    normalizer: pre.normalizer,
    pre_tokenizer: pre.pre,
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
