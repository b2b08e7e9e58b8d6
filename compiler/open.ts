/** A path as what a model is compiled from: a Hugging Face folder, or a GGUF file. */
import { dirname, join } from "node:path";
import { WeftError } from "../runtime/bundle.ts";
import { checkConfig, checkTokenizer, checkTokenizerConfig } from "./config.ts";
import { exists, readJson, readText } from "./files.ts";
import { generationOf } from "./generation.ts";
import { openGguf } from "./gguf/open.ts";
import { models } from "./models/index.ts";
import type { ModelSource } from "./source.ts";
import { openWeights } from "./weights.ts";

export async function openModel(path: string): Promise<ModelSource> {
  if (path.endsWith(".gguf")) {
    const beside = tokenizerBeside(dirname(path));
    return openGguf(path, beside.size ? beside : null);
  }
  const file = join(path, "config.json");
  if (!exists(file))
    throw new WeftError({
      code: "WEFT_IO",
      where: path,
      expected: "a Hugging Face model folder, with config.json, or a .gguf file",
      found: exists(`${path}/.`)
        ? "a folder without"
        : exists(path)
          ? "another file"
          : "nothing of that name",
    });
  const config = checkConfig(readJson(file, "WEFT_CONFIG"), file);
  const generation = join(path, "generation_config.json");
  return {
    where: path,
    config,
    generation: generationOf(
      config,
      exists(generation) ? readJson(generation, "WEFT_CONFIG") : null,
      generation,
    ),
    weights: openWeights(path, models[String(config.model_type)]!.read(config).names),
    files: tokenizerBeside(path),
  };
}
function tokenizerBeside(folder: string): ReadonlyMap<string, string> {
  const files = new Map<string, string>();
  if (!exists(join(folder, "tokenizer.json"))) return files;
  const tokenizer = join(folder, "tokenizer.json");
  checkTokenizer(readJson(tokenizer, "WEFT_TOKENIZER"), tokenizer);
  files.set("tokenizer.json", readText(tokenizer));
  const path = join(folder, "tokenizer_config.json");
  const config = exists(path) ? checkTokenizerConfig(readJson(path, "WEFT_TOKENIZER"), path) : {};
  files.set("tokenizer_config.json", JSON.stringify(config));
  const template = exists(join(folder, "chat_template.jinja"))
    ? readText(join(folder, "chat_template.jinja"))
    : plainTemplate(config.chat_template);
  if (typeof template === "string") files.set("chat_template.jinja", template);
  return files;
}
/** Of several, the one for conversations without tools or documents, as in transformers. */
const plainTemplate = (said: unknown): unknown =>
  Array.isArray(said)
    ? (said as { name: string; template: string }[]).find((t) => t.name === "default")?.template
    : said;
