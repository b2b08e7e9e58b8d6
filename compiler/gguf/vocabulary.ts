/** What a GGUF file holds of a tokenizer: tokenizer.ts the other way. */
import { WeftError } from "../../runtime/bundle.ts";
import type { Json } from "../models/model.ts";
import type { Metadata } from "./file.ts";
import { kindsOf, tokenizerFiles } from "./tokenizer.ts";

/** Kinds of tokens (llama.h, llama_token_type). */
const [NORMAL, UNKNOWN, CONTROL, USER, UNUSED, BYTE] = [1, 2, 3, 4, 5, 6] as const;
interface Added {
  readonly id: number;
  readonly content: string;
  readonly special?: boolean;
}
type Merges = readonly (string | readonly [string, string])[];
type Said = Readonly<Record<string, string | boolean | number | readonly string[] | readonly number[]>>;

/**
 * The keys of a vocabulary of `size` tokens. `tokenizer` is tokenizer.json; `same` tells whether another one
 * makes the same ids of texts: the keys say how text is cut by a name, and that name is taken whose way is
 * the tokenizer's. Throws WEFT_TOKENIZER where no file can say it.
 */
export function vocabularyOf(tokenizer: Json, size: number, same: (other: Json) => boolean): Said {
  const refuse = (where: string, expected: string, found: unknown): never => {
    throw new WeftError({
      code: "WEFT_TOKENIZER",
      where: `tokenizer.json: ${where}`,
      expected,
      found: String(found),
      hint: "GGUF files cannot say it",
    });
  };
  const model = tokenizer.model as Json;
  if (model.type !== "BPE") refuse("model.type", "BPE", model.type);
  const vocab = Object.entries(model.vocab as Readonly<Record<string, number>>);
  const added = (tokenizer.added_tokens ?? []) as readonly Added[];
  const inBytes = model.byte_fallback === true;
  const tokens = Array.from({ length: size }, (_, id) => `[PAD${id}]`);
  const types = Array<number>(size).fill(UNUSED);
  const put = (id: number, token: string, type: number): void => {
    if (id >= size) refuse("model.vocab", `ids below ${size}, as the model has`, `${token}: ${id}`);
    tokens[id] = token;
    types[id] = type;
  };
  for (const [token, id] of vocab) put(id, token, inBytes && /^<0x[0-9A-F]{2}>$/.test(token) ? BYTE : NORMAL);
  for (const { id, content, special } of added) {
    const unknown = inBytes && content === model.unk_token;
    put(id, content, unknown ? UNKNOWN : special ? CONTROL : USER);
  }
  const merges = (model.merges as Merges).map((m) => (typeof m === "string" ? m : m.join(" ")));
  const shared = { "tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": types };
  for (const kind of kindsOf(inBytes)) {
    const said: Said = {
      ...shared,
      ...kind,
      ...(inBytes
        ? { "tokenizer.ggml.scores": scoresOf(tokens, model.merges as Merges) }
        : { "tokenizer.ggml.merges": merges }),
    };
    const files = tokenizerFiles(
      { ...said, "tokenizer.ggml.add_bos_token": false } as Metadata,
      "a GGUF file",
    );
    if (same(JSON.parse(files.get("tokenizer.json")!) as Json)) return said;
  }
  return refuse("pre_tokenizer", "one that llama.cpp has a name for", "another");
}
/** Scores that are higher the earlier a token is made by a merge; those that none makes come last. */
function scoresOf(tokens: readonly string[], merges: Merges): number[] {
  const first = new Map<string, number>();
  merges.forEach((m, i) => {
    const token = typeof m === "string" ? m.replace(" ", "") : m.join("");
    if (!first.has(token)) first.set(token, -i);
  });
  return tokens.map((t) => first.get(t) ?? -merges.length);
}
