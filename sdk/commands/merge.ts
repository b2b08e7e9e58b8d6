/** weft merge: a model with an adapter in its weights, as a Hugging Face folder. */
import { loadNamed } from "./adapters.ts";
import { loadFlags, openBundle } from "./bundle.ts";
import { type Command, needed, string, text } from "./command.ts";
import { claimOutput, replaceFlag } from "./output.ts";
import { say } from "./progress.ts";

export const merge: Command = {
  summary: "a model with an adapter in its weights, as transformers or llama.cpp load it",
  synopsis: "BUNDLE --adapter DIR -o OUT",
  details:
    "OUT is a folder of float32 safetensors, or a file that ends in .gguf, in the bundle's own " +
    "formats; with what the bundle keeps of the tokenizer.",
  flags: {
    adapter: text("DIR", "the adapter folder"),
    output: text("OUT", "the folder or file to write", { short: "o" }),
    ...replaceFlag,
    ...loadFlags,
  },
  run: async (positional, f, json) => {
    const bundle = needed(positional, "merge", "a bundle");
    const [adapter, out] = [string(f, "adapter"), string(f, "output")];
    await claimOutput(out, "model", f);
    await using engine = await openBundle("merge", bundle, f);
    const [name] = await loadNamed(engine, [adapter]);
    await engine.merge(name!);
    const { notes } = await engine.saveModel(out);
    for (const note of notes) say(note);
    const result = { out, adapter, parameters: engine.manifest.model.parameters };
    console.log(
      json ? JSON.stringify(result) : `${out}: ${result.parameters} parameters, with ${adapter} in them`,
    );
  },
};
