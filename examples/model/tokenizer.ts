/** Trains a byte-level BPE tokenizer and writes it as Hugging Face's tokenizer.json. */

/** GPT-2's printable stand-ins for the 256 bytes. */
function byteAlphabet(): string[] {
  const printable = [...Array(256).keys()].filter(
    (b) => (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || (b >= 174 && b <= 255),
  );
  let next = 256;
  return Array.from({ length: 256 }, (_, b) => String.fromCodePoint(printable.includes(b) ? b : next++));
}
const pattern = /'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+/gu;

/**
 * Merge the most frequent pair until `vocab` ids are used (ties: the pair that sorts first). Returns the file
 * and its config.
 */
export function trainTokenizer(
  texts: readonly string[],
  vocab: number,
  special: readonly string[],
  chatTemplate: string,
): { tokenizer: object; config: object } {
  const alphabet = byteAlphabet();
  const words = new Map<string, number>();
  for (const t of texts) for (const [w] of t.matchAll(pattern)) words.set(w, (words.get(w) ?? 0) + 1);
  const pieces = [...words].map(([w, count]) => ({
    parts: [...new TextEncoder().encode(w)].map((b) => alphabet[b]!),
    count,
  }));
  const merges: [string, string][] = [];
  const tokens = [...special, ...alphabet];
  while (tokens.length < vocab) {
    const pairs = new Map<string, number>();
    for (const { parts, count } of pieces)
      for (let i = 0; i + 1 < parts.length; i++)
        pairs.set(`${parts[i]} ${parts[i + 1]}`, (pairs.get(`${parts[i]} ${parts[i + 1]}`) ?? 0) + count);
    let best: string | null = null;
    for (const [p, n] of pairs)
      if (best === null || n > pairs.get(best)! || (n === pairs.get(best)! && p < best)) best = p;
    if (best === null) break;
    const [a, b] = best.split(" ") as [string, string];
    merges.push([a, b]);
    if (!tokens.includes(a + b)) tokens.push(a + b);
    for (const piece of pieces) {
      const out: string[] = [];
      for (let i = 0; i < piece.parts.length; i++) {
        if (piece.parts[i] === a && piece.parts[i + 1] === b) {
          out.push(a + b);
          i++;
        } else out.push(piece.parts[i]!);
      }
      piece.parts = out;
    }
  }
  const added = special.map((content, id) => ({
    id,
    content,
    single_word: false,
    lstrip: false,
    rstrip: false,
    normalized: false,
    special: true,
  }));
  return {
    tokenizer: {
      version: "1.0",
      truncation: null,
      padding: null,
      added_tokens: added,
      normalizer: null,
      pre_tokenizer: { type: "ByteLevel", add_prefix_space: false, trim_offsets: true, use_regex: true },
      // Every text begins with the first special token.
      post_processor: {
        type: "TemplateProcessing",
        single: [{ SpecialToken: { id: special[0], type_id: 0 } }, { Sequence: { id: "A", type_id: 0 } }],
        pair: [{ Sequence: { id: "A", type_id: 0 } }, { Sequence: { id: "B", type_id: 1 } }],
        special_tokens: { [special[0]!]: { id: special[0], ids: [0], tokens: [special[0]] } },
      },
      decoder: { type: "ByteLevel", add_prefix_space: true, trim_offsets: true, use_regex: true },
      model: {
        type: "BPE",
        dropout: null,
        unk_token: null,
        continuing_subword_prefix: null,
        end_of_word_suffix: null,
        fuse_unk: false,
        byte_fallback: false,
        ignore_merges: false,
        vocab: Object.fromEntries(tokens.map((t, i) => [t, i])),
        merges,
      },
    },
    config: {
      tokenizer_class: "PreTrainedTokenizerFast",
      bos_token: special[0],
      eos_token: special[1],
      model_max_length: 320,
      clean_up_tokenization_spaces: false,
      chat_template: chatTemplate,
    },
  };
}
