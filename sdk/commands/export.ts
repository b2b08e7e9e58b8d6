/** weft export: a model or an adapter as other programs read it. */
import { loadNamed } from "./adapters.ts";
import { loadFlags, openBundle } from "./bundle.ts";
import { type Command, fail, needed, optional, string, text, toggle } from "./command.ts";
import { claimOutput, replaceFlag } from "./output.ts";
import { say } from "./progress.ts";

export const exportCommand: Command = {
  summary: "a model, or an adapter, as llama.cpp, transformers or peft read it",
  synopsis: "BUNDLE [--adapter DIR] -o OUT",
  details:
    "OUT is a file that ends in .gguf, or a folder. Without --adapter the base: as GGUF in the " +
    "bundle's own formats (F32, F16, BF16, Q8_0, Q4_0, Q4_1), or as a Hugging Face folder in " +
    "float32. With it the adapter alone: as llama.cpp's LoRA, or as a folder of peft. `weft merge` " +
    "writes a model with the adapter in it, to either.",
  flags: {
    adapter: text("DIR", "the adapter: a folder of peft, or a LoRA in a .gguf file"),
    lora: toggle("with --adapter: a folder with the LoRA that is exactly the same, as a .gguf always is"),
    "target-parameters": toggle("with --adapter: a folder that has a LoRA's experts as transformers 5 does"),
    output: text("OUT", "the file or folder to write", { short: "o" }),
    ...replaceFlag,
    ...loadFlags,
  },
  run: async (positional, f, json) => {
    const bundle = needed(positional, "export", "a bundle");
    const out = string(f, "output");
    const adapter = optional(f, "adapter");
    const as = (["lora", "target-parameters"] as const).filter((name) => f[name]);
    const [how] = as;
    if (how && adapter === undefined) fail(`--${how}`, "beside --adapter", "without");
    if (as.length > 1) fail("--lora", "one of --lora and --target-parameters", "both");
    if (how === "target-parameters" && out.endsWith(".gguf"))
      fail("--target-parameters", "a folder to write", out);
    await claimOutput(out, adapter === undefined ? "model" : "adapter", f);
    await using engine = await openBundle("export", bundle, f);
    if (adapter !== undefined) {
      const [name] = await loadNamed(engine, [adapter]);
      await engine.adapters
        .get(name!)
        .save(out, how ? { as: how === "lora" ? how : "target_parameters" } : {});
      return console.log(json ? JSON.stringify({ out, adapter }) : `${out}: the adapter ${adapter}`);
    }
    const { notes } = await engine.saveModel(out);
    for (const note of notes) say(note);
    const { parameters, format } = engine.manifest.model;
    const result = { out, parameters, format, notes };
    console.log(json ? JSON.stringify(result) : `${out}: ${parameters} parameters, from ${format}`);
  },
};
