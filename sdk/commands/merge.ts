/** weft merge: a model with an adapter in its weights, as a Hugging Face folder. */
import { claimFolder } from "../../runtime/folder.ts";
import { loadNamed } from "./adapters.ts";
import { loadFlags, openBundle } from "./bundle.ts";
import { type Command, needed, string, text } from "./command.ts";

export const merge: Command = {
  summary: "a model folder, as transformers loads it, with an adapter in its weights",
  synopsis: "BUNDLE --adapter DIR -o FOLDER",
  details: "Weights are written as float32 safetensors, with what the bundle keeps of the tokenizer.",
  flags: {
    adapter: text("DIR", "the adapter folder"),
    output: text("FOLDER", "the folder to write", { short: "o" }),
    ...loadFlags,
  },
  run: async (positional, f, json) => {
    const bundle = needed(positional, "merge", "a bundle");
    const [adapter, out] = [string(f, "adapter"), string(f, "output")];
    await claimFolder(out, "model");
    await using engine = await openBundle("merge", bundle, f);
    const [name] = await loadNamed(engine, [adapter]);
    await engine.merge(name!);
    await engine.saveModel(out);
    const result = { out, adapter, parameters: engine.manifest.model.parameters };
    console.log(
      json ? JSON.stringify(result) : `${out}: ${result.parameters} parameters, with ${adapter} in them`,
    );
  },
};
