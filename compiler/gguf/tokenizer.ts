/** tokenizer.json, its config and the chat template from what a GGUF file holds of them. */
import { WeftError } from "../../runtime/bundle.ts";
import type { Metadata } from "./file.ts";

const bytes = (regex: boolean): object => ({
  type: "ByteLevel",
  add_prefix_space: false,
  trim_offsets: true,
  use_regex: regex,
});
/** Texts cut by a pattern before their bytes are spelled. */
const split = (regex: string): object => ({
  type: "Sequence",
  pretokenizers: [
    { type: "Split", pattern: { Regex: regex }, behavior: "Isolated", invert: false },
    bytes(false),
  ],
});
/** GPT-4's words, with digits in groups as a pattern says. */
const words = (digits: string): object =>
  split(
    [
      "(?i:'s|'t|'re|'ve|'m|'ll|'d)",
      "[^\\r\\n\\p{L}\\p{N}]?\\p{L}+",
      digits,
      " ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*",
      "\\s*[\\r\\n]+",
      "\\s+(?!\\S)",
      "\\s+",
    ].join("|"),
  );
/** Words in which capitals come first, as GPT-4o and Mistral's Tekken cut them. */
const cased = (end: string, digits: string): object => {
  const [upper, lower] = ["[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]", "[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]"];
  const before = "[^\\r\\n\\p{L}\\p{N}]?";
  return split(
    [
      `${before}${upper}*${lower}+${end}`,
      `${before}${upper}+${lower}*${end}`,
      digits,
      " ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*",
      "\\s*[\\r\\n]+",
      "\\s+(?!\\S)",
      "\\s+",
    ].join("|"),
  );
};
interface Pre {
  readonly pre: object;
  readonly normalizer: object | null;
}
const plain = (pre: object): Pre => ({ pre, normalizer: null });
const digitwise = plain({
  type: "Sequence",
  pretokenizers: [{ type: "Digits", individual_digits: true }, bytes(true)],
});
const gpt4 = plain(words("\\p{N}{1,3}"));
const qwen: Pre = { pre: words("\\p{N}"), normalizer: { type: "NFC" } };
const gpt4o = plain(cased("(?i:'s|'t|'re|'ve|'m|'ll|'d)?", "\\p{N}{1,3}"));
/**
 * Pre-tokenizers of byte-level BPE vocabularies, by llama.cpp's name (llama-vocab.cpp); some spell text in
 * one way first.
 */
const preTokenizers: Readonly<Record<string, Pre>> = {
  "gpt-2": plain(bytes(true)),
  smollm: digitwise,
  starcoder: digitwise,
  "llama-bpe": gpt4,
  llama3: gpt4,
  "llama-v3": gpt4,
  dbrx: gpt4,
  "smaug-bpe": gpt4,
  falcon3: gpt4,
  qwen2: qwen,
  "deepseek-r1-qwen": qwen,
  tekken: plain(cased("", "\\p{N}")),
  "gpt-4o": gpt4o,
  llama4: gpt4o,
};

/** What makes a tokenizer begin every text with a token. */
const startsWith = (token: string, id: number): object => ({
  type: "TemplateProcessing",
  single: [{ SpecialToken: { id: token, type_id: 0 } }, { Sequence: { id: "A", type_id: 0 } }],
  pair: [{ Sequence: { id: "A", type_id: 0 } }, { Sequence: { id: "B", type_id: 1 } }],
  special_tokens: { [token]: { id: token, ids: [id], tokens: [token] } },
});

/** Kinds of tokens (llama.h, llama_token_type). */
const [NORMAL, UNKNOWN, CONTROL, USER] = [1, 2, 3, 4] as const;
/** What a file says of its vocabulary, and how it is refused. */
interface Vocabulary {
  readonly tokens: readonly string[];
  readonly types: readonly number[];
  readonly scores: readonly number[];
  readonly merges: readonly string[] | undefined;
  readonly pre: string | undefined;
  /** Does a text begin with a space that it does not have? */
  readonly spaced: boolean;
  readonly refuse: (key: string, expected: string, found: unknown) => never;
}
type Spelled = Readonly<Record<"normalizer" | "pre_tokenizer" | "decoder", object | null>> & {
  readonly merges: readonly (string | readonly [string, string])[];
  readonly unknown: string | null;
  readonly fallback: boolean;
};

/** Bytes spelled as letters, merged by a list. */
function byteLevel({ pre: said = "gpt-2", merges, refuse }: Vocabulary): Spelled {
  if (!Object.hasOwn(preTokenizers, said)) refuse("pre", Object.keys(preTokenizers).join(", "), said);
  const { pre, normalizer } = preTokenizers[said]!;
  return {
    normalizer,
    pre_tokenizer: pre,
    decoder: { type: "ByteLevel", add_prefix_space: true, trim_offsets: true, use_regex: true },
    merges: merges ?? refuse("merges", "the merges of its vocabulary", "none"),
    unknown: null,
    fallback: false,
  };
}
/**
 * SentencePiece's BPE: spaces are letters (U+2581), what no token spells is bytes. The file has scores
 * instead of merges: any two tokens that make a third are one, and the best third comes first.
 */
function sentencePiece({ tokens, types, scores, spaced, refuse }: Vocabulary): Spelled {
  if (scores.length !== tokens.length) refuse("scores", `${tokens.length} scores`, scores.length);
  const unknown = tokens[types.indexOf(UNKNOWN)] ?? null;
  return {
    normalizer: spaced ? null : { type: "Replace", pattern: { String: " " }, content: "\u2581" },
    pre_tokenizer: spaced
      ? { type: "Metaspace", replacement: "\u2581", prepend_scheme: "first", split: false }
      : null,
    decoder: {
      type: "Sequence",
      decoders: [
        { type: "Replace", pattern: { String: "\u2581" }, content: " " },
        { type: "ByteFallback" },
        { type: "Fuse" },
        ...(spaced ? [{ type: "Strip", content: " ", start: 1, stop: 0 }] : []),
      ],
    },
    // Gemma's, which have no such space: the order of tokens is that of merges, and scores are not.
    merges: mergesOf(tokens, types, spaced ? scores : tokens.map((_, id) => -id)),
    unknown,
    fallback: true,
  };
}
function mergesOf(
  tokens: readonly string[],
  types: readonly number[],
  scores: readonly number[],
): readonly (readonly [string, string])[] {
  const ids = new Map(tokens.flatMap((t, id) => (types[id] === NORMAL ? [[t, id] as const] : [])));
  const found: { readonly left: string; readonly right: string; readonly score: number }[] = [];
  for (const [token, id] of ids) {
    const here: (typeof found)[number][] = [];
    // Between letters, and not inside of one.
    for (let at = 0; at < token.length; at += token.codePointAt(at)! > 0xffff ? 2 : 1) {
      const [left, right] = [token.slice(0, at), token.slice(at)];
      if (ids.has(left) && ids.has(right)) here.push({ left, right, score: scores[id]! });
    }
    here.sort((a, b) => ids.get(a.left)! - ids.get(b.left)! || ids.get(a.right)! - ids.get(b.right)!);
    found.push(...here);
  }
  // Equal ones stay as they are.
  found.sort((a, b) => b.score - a.score);
  return found.map(({ left, right }) => [left, right] as const);
}
/** Kinds of vocabularies, by llama.cpp's name. */
const vocabularies: Readonly<Record<string, (v: Vocabulary) => Spelled>> = {
  gpt2: byteLevel,
  llama: sentencePiece,
};

/**
 * What keys may say of how text is cut, of vocabularies with bytes as tokens (SentencePiece's) or as letters.
 */
export const kindsOf = (inBytes: boolean): readonly Readonly<Record<string, string | boolean>>[] =>
  inBytes
    ? [true, false].map((spaced) => ({
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.add_space_prefix": spaced,
      }))
    : Object.keys(preTokenizers).map((pre) => ({
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
      }));

/**
 * tokenizer.json and its config from the vocabulary inside the file; none where it has none. Throws
 * WEFT_TOKENIZER for a kind that is not known.
 */
export function tokenizerFiles(meta: Metadata, path: string): ReadonlyMap<string, string> {
  const model = meta["tokenizer.ggml.model"];
  if (model === undefined || model === "none") return new Map();
  const refuse = (key: string, expected: string, found: unknown): never => {
    throw new WeftError({
      code: "WEFT_TOKENIZER",
      where: `${path}: tokenizer.ggml.${key}`,
      expected,
      found: String(found),
      hint: "put a tokenizer.json beside the file",
    });
  };
  if (!Object.hasOwn(vocabularies, model)) refuse("model", Object.keys(vocabularies).join(", "), model);
  const listed = meta["tokenizer.ggml.tokens"] ?? [];
  // Some files spell runs of spaces as they are.
  const tokens =
    model === "llama" ? listed.map((t) => (/^ +$/.test(t) ? "\u2581".repeat(t.length) : t)) : listed;
  if (!tokens.length) refuse("tokens", "the tokens of its vocabulary", "none");
  const types = meta["tokenizer.ggml.token_type"] ?? [];
  const spaced = meta["tokenizer.ggml.add_space_prefix"] ?? true;
  const spelled = vocabularies[model]!({
    tokens,
    types,
    scores: meta["tokenizer.ggml.scores"] ?? [],
    merges: meta["tokenizer.ggml.merges"],
    pre: meta["tokenizer.ggml.pre"],
    spaced,
    refuse,
  });
  const added = tokens.flatMap((content, id) =>
    [UNKNOWN, CONTROL, USER].some((kind) => kind === types[id])
      ? [
          {
            id,
            content,
            single_word: false,
            lstrip: false,
            rstrip: false,
            normalized: false,
            special: types[id] !== USER,
          },
        ]
      : [],
  );
  const token = (key: "bos" | "eos"): string | null => {
    const id = meta[`tokenizer.ggml.${key}_token_id`];
    if (id !== undefined && tokens[id] === undefined)
      refuse(`${key}_token_id`, `an id below ${tokens.length}`, id);
    return id === undefined ? null : tokens[id]!;
  };
  // As llama.cpp, where the file does not say: SentencePiece's and Llama 3's vocabularies begin a text with
  // their start token.
  const starts =
    meta["tokenizer.ggml.add_bos_token"] ?? (model === "llama" || meta["tokenizer.ggml.pre"] === "llama-bpe");
  const bos = starts ? token("bos") : null;
  const json = {
    version: "1.0",
    truncation: null,
    padding: null,
    added_tokens: added,
    normalizer: spelled.normalizer,
    pre_tokenizer: spelled.pre_tokenizer,
    post_processor: bos === null ? null : startsWith(bos, tokens.indexOf(bos)),
    decoder: spelled.decoder,
    model: {
      type: "BPE",
      dropout: null,
      unk_token: spelled.unknown,
      continuing_subword_prefix: null,
      end_of_word_suffix: null,
      fuse_unk: spelled.fallback,
      byte_fallback: spelled.fallback,
      vocab: Object.fromEntries(tokens.map((t, i) => [t, i])),
      merges: spelled.merges,
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
