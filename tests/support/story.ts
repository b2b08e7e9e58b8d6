/** The example model with a chat template: a tiny model that has words, and turns. */
import { cpSync, readFileSync, writeFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { compile } from "../../sdk/index.ts";
import { scratch } from "./tiny.ts";

const root = fileURLToPath(new URL("../..", import.meta.url));
/** A question is a user's turn, an answer the assistant's, in the words that the model knows. */
export const template =
  "{% for m in messages %}{% if m.role == 'user' %}Question: {{ m.content }}\nAnswer:{% else %} {{ " +
  "m.content }}{{ eos_token if m.role == 'assistant' else '\n' }}{% endif %}{% endfor %}";
/** Its folder; `turns`: with the template. */
export function storyModel(turns = true): string {
  const dir = scratch();
  cpSync(`${root}examples/model/story`, dir, { recursive: true });
  if (turns) writeFileSync(`${dir}/chat_template.jinja`, template);
  return dir;
}
const bundles = new Map<boolean, Promise<string>>();
/** Its bundle, compiled once a test process. */
export function storyBundle(turns = true): Promise<string> {
  let made = bundles.get(turns);
  if (!made) {
    const out = `${scratch()}/story.weft`;
    made = compile(storyModel(turns), out, {
      targets: ["wasm"],
      quick: true,
      capacities: {
        ...{ context: 192, tokens: 64, blocks: 32, savedRows: 256, keptRows: 256, quantum: 32 },
        ...{ unitRows: 64, slots: 4, jobs: 1, rank: 8, sequences: 16, headRows: 12 },
      },
    }).then(() => out);
    bundles.set(turns, made);
  }
  return made;
}
/** Facts of the example, as rows of conversations. */
export const facts = (): { prompt: string; completion: string }[] =>
  readFileSync(`${root}examples/facts.jsonl`, "utf8")
    .trim()
    .split("\n")
    .map((line) => JSON.parse(line) as never);
