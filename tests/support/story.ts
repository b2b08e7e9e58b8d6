/** The example model: a tiny model that has words, and turns. */
import { cpSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { compile } from "../../sdk/index.ts";
import { scratch } from "./tiny.ts";

const root = fileURLToPath(new URL("../..", import.meta.url));
/** Its folder; `turns`: with its chat template. */
export function storyModel(turns = true): string {
  const dir = scratch();
  cpSync(`${root}examples/model/story`, dir, { recursive: true });
  if (!turns) {
    const config = `${dir}/tokenizer_config.json`;
    const { chat_template: _, ...rest } = JSON.parse(readFileSync(config, "utf8")) as Record<string, unknown>;
    writeFileSync(config, JSON.stringify(rest));
    rmSync(`${dir}/chat_template.jinja`);
  }
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
