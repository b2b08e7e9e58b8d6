/**
 * What @huggingface/tokenizers does otherwise than `tokenizers`, where ids come from, mended in the
 * tokenizer.json that it is given: JavaScript's \s is not Unicode's White_Space, its \d knows ASCII alone.
 */
type Json = Readonly<Record<string, unknown>>;

const SPACE = "\\t-\\r \\u0085\\u00a0\\u1680\\u2000-\\u200a\\u2028\\u2029\\u202f\\u205f\\u3000";
/** GPT-2's words: what a byte-level pre-tokenizer splits by. */
const WORDS = "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";

/** A pattern with White_Space spelled out, in classes and outside. */
function spelled(regex: string): string {
  let inClass = false;
  return regex.replace(/\\.|[[\]]/g, (part) => {
    if (part === "[") inClass = true;
    else if (part === "]") inClass = false;
    else if (part === "\\s") return inClass ? SPACE : `[${SPACE}]`;
    else if (part === "\\S" && !inClass) return `[^${SPACE}]`;
    return part;
  });
}
const split = (regex: string): Json => ({
  type: "Split",
  pattern: { Regex: spelled(regex) },
  behavior: "Isolated",
  invert: false,
});
function mended(pre: Json): Json {
  if (pre.type === "Sequence")
    return { ...pre, pretokenizers: (pre.pretokenizers as readonly Json[]).map(mended) };
  if (pre.type === "Digits") return split(pre.individual_digits === true ? "\\p{N}" : "\\p{N}+");
  if (pre.type === "ByteLevel" && pre.use_regex !== false && pre.add_prefix_space === false)
    return { type: "Sequence", pretokenizers: [split(WORDS), { ...pre, use_regex: false }] };
  const { Regex } = (pre.pattern ?? {}) as { Regex?: unknown };
  if (pre.type === "Split" && typeof Regex === "string")
    return { ...pre, pattern: { Regex: spelled(Regex) } };
  return pre;
}
/** tokenizer.json as the library is to have it. */
export const mendTokenizer = (json: Json): Json =>
  json.pre_tokenizer ? { ...json, pre_tokenizer: mended(json.pre_tokenizer as Json) } : json;

/** The bytes of U+FEFF as pieces of fallback, and of a private letter: the library drops the first. */
const spelledIn = (bytes: string): string[] => bytes.split(" ").map((b) => `<0x${b}>`);
const [MARK, LETTER] = [spelledIn("EF BB BF"), spelledIn("EF A3 BF")];
/**
 * Decodes ids by the library, U+FEFF included where it is spelled in bytes. `idOf`: of a token, if there is
 * one.
 */
export function decodeMarks(
  ids: readonly number[],
  idOf: (token: string) => number | undefined,
  decode: (ids: number[]) => string,
): string {
  const [mark, letter] = [MARK.map(idOf), LETTER.map(idOf)];
  if ([...mark, ...letter].includes(undefined)) return decode([...ids]);
  const out = [...ids];
  let found = false;
  const at = (i: number, piece: readonly (number | undefined)[]): boolean =>
    piece.every((id, k) => out[i + k] === id);
  for (let i = 0; i + 3 <= out.length; i++) {
    // A text with that letter of its own keeps it.
    if (at(i, letter)) return decode([...ids]);
    if (!at(i, mark)) continue;
    out.splice(i, 3, ...(letter as number[]));
    found = true;
  }
  return found ? decode(out).replaceAll("\uf8ff", "\ufeff") : decode(out);
}
