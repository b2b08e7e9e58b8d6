/**
 * Ids and texts as `tokenizers` has them: a thousand awkward texts by each kind of tokenizer, from
 * tokenizer.json and from what a GGUF file holds of it.
 */
import { readFileSync } from "node:fs";
import { gunzipSync } from "node:zlib";
import * as assert from "uvu/assert";
import { tokenizerFiles } from "../compiler/gguf/tokenizer.ts";
import { Text } from "../sdk/text.ts";
import { fixtures } from "./support/engines.ts";
import { suite } from "./support/suite.ts";

const test = suite("tokenizers");
interface Kind {
  readonly tokenizer: object;
  readonly ids: readonly (readonly number[])[];
  readonly decoded: readonly string[];
  readonly gguf: Parameters<typeof tokenizerFiles>[0];
}
const { texts, kinds } = JSON.parse(
  gunzipSync(readFileSync(`${fixtures}tokenizers.json.gz`)).toString("utf8"),
) as { texts: readonly string[]; kinds: Readonly<Record<string, Kind>> };

function check(text: Text, { ids, decoded }: Kind, what: string): void {
  const wrong: string[] = [];
  texts.forEach((t, i) => {
    const got = text.encode(t, false);
    if (`${got}` !== `${ids[i]}`) wrong.push(`${JSON.stringify(t)}: [${got}], and not [${ids[i]}]`);
    const back = text.decode(ids[i]!);
    if (back !== decoded[i])
      wrong.push(`${ids[i]}: ${JSON.stringify(back)}, and not ${JSON.stringify(decoded[i])}`);
  });
  assert.is(wrong.length, 0, `${what}: ${wrong.length} of ${texts.length}\n${wrong.slice(0, 12).join("\n")}`);
}
for (const [name, kind] of Object.entries(kinds)) {
  test(`${name}: ids and texts from tokenizer.json`, () => {
    check(new Text(kind.tokenizer, {}, null), kind, name);
  });
  test(`${name}: ids and texts from a GGUF file's vocabulary`, () => {
    const files = tokenizerFiles(kind.gguf, "file.gguf");
    check(new Text(JSON.parse(files.get("tokenizer.json")!) as object, {}, null), kind, name);
  });
}
test.run();
