/**
 * Exported files read back by others: llama.cpp (a model in each format and family, a LoRA, a merged model, a
 * vocabulary) and transformers' own reader of GGUF. Greedy ids beside weft's; where they differ, how far
 * apart the two best tokens are.
 *
 *   npm run -s bench -- export [--model FOLDER] [--python python3]
 */
import { mkdtempSync, readFileSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { type CompileOptions, compile, type Engine, load } from "../sdk/index.ts";
import { type Config, even, families, odd, writeModel } from "../tests/support/tiny.ts";
import { type Contender, contender, peerFolder, peerScript } from "./contender.ts";
import { table } from "./measure.ts";

const COUNT = 16;
/** Of both: some models turn otherwise in a longer one. */
const CONTEXT = 256;
const texts = [
  "Question: Where does Mia live?\nAnswer:",
  "Once upon a time",
  "It's 3:45pm -- we'll see… déjà vu  two  spaces\n\n日本語 😀 {x}",
];
interface Row {
  readonly what: string;
  readonly by: string;
  readonly prompts: number;
  same: number;
  /** Where ids differ first: the gap of the two best logits there. */
  readonly gaps: number[];
}
/** Greedy ids of each prompt by weft and by another, compared. */
async function beside(
  what: string,
  engine: Engine,
  prompts: readonly (readonly number[])[],
  by: Contender,
  adapter?: string,
  told: object = {},
): Promise<Row> {
  const row: Row = { what, by: by.name, prompts: prompts.length, same: 0, gaps: [] };
  const o = adapter === undefined ? {} : { adapter };
  for (const prompt of prompts) {
    const { ids } = await engine.complete({ prompt: [...prompt], maxTokens: COUNT, ...o });
    const its = (
      await by.ask<{ ids: number[] }>("greedy", { ids: prompt, count: COUNT, context: CONTEXT, ...told })
    ).ids;
    const at = ids.findIndex((id, i) => its[i] !== id);
    if (at < 0) {
      row.same++;
      continue;
    }
    const { logits } = await engine.score([...prompt, ...ids.slice(0, at)], { logits: true, ...o });
    const last = logits!.at(-1)!;
    row.gaps.push(last[ids[at]!]! - last[its[at]!]!);
  }
  return row;
}

/** A tiny model with random weights, and a vocabulary of letters, since readers want one. */
function withLetters(config: Config): string {
  const folder = writeModel(config);
  const tokens = ["<pad>", "<s>", "</s>", ..."abcdefghijklmnopqrstuvwxyzĠĊ"];
  const vocab = Array.from({ length: config.vocab_size }, (_, id) => tokens[id] ?? `<token ${id}>`);
  const byteLevel = { type: "ByteLevel", add_prefix_space: false, trim_offsets: true, use_regex: true };
  const special = (id: number): object => ({ id, content: vocab[id], special: true, normalized: false });
  const tokenizer = {
    added_tokens: [0, 1, 2].map(special),
    ...{ normalizer: null, pre_tokenizer: byteLevel, post_processor: null, decoder: byteLevel },
    model: { type: "BPE", vocab: Object.fromEntries(vocab.map((t, id) => [t, id])), merges: [] },
  };
  writeFileSync(join(folder, "tokenizer.json"), JSON.stringify(tokenizer));
  writeFileSync(
    join(folder, "tokenizer_config.json"),
    JSON.stringify({ tokenizer_class: "PreTrainedTokenizerFast", bos_token: "<s>", eos_token: "</s>" }),
  );
  return folder;
}

export async function main(args: string[]): Promise<void> {
  const { values } = parseArgs({
    args,
    options: {
      model: { type: "string", default: "examples/model/story" },
      python: { type: "string", default: "python3" },
    },
  });
  const peers = peerFolder();
  const dir = mkdtempSync(join(tmpdir(), "weft-bench-export-"));
  const rows: Row[] = [];
  const vocabularies: string[][] = [];
  const small: CompileOptions = {
    targets: ["wasm"],
    train: ["lora"],
    quick: true,
    capacities: { context: CONTEXT, tokens: 64, savedRows: 512 },
  };
  const opened = async (folder: string, name: string, o: CompileOptions = {}): Promise<Engine> => {
    await compile(folder, join(dir, `${name}.weft`), { ...small, ...o });
    return load(join(dir, `${name}.weft`), { device: "wasm" });
  };
  const llama = async (file: string): Promise<Contender | null> =>
    peers ? contender("llama.cpp", process.execPath, ["llama.mjs", file], peers) : null;
  const torch = (file: string): Promise<Contender | null> =>
    contender("transformers", values.python, [peerScript("gguf_reader.py"), file], process.cwd());
  const each = async (
    readers: readonly ((file: string) => Promise<Contender | null>)[],
    file: string,
    f: (by: Contender) => Promise<void>,
  ): Promise<void> => {
    for (const reader of readers) {
      const by = await reader(file);
      if (!by) continue;
      await f(by).catch((e: Error) => console.log(`  ${by.name} on ${file}: ${e.message}`));
      by.end();
    }
  };

  for (const format of ["f32", "f16", "bf16", "int8", "q4"] as const) {
    await using engine = await opened(values.model, `model-${format}`, { format });
    const prompts = texts.map((t) => engine.encode(t));
    const file = join(dir, `model-${format}.gguf`);
    await engine.saveModel(file);
    const readers = format === "f32" ? [llama, torch] : [llama];
    await each(readers, file, async (by) => {
      rows.push(await beside(`model, ${format}`, engine, prompts, by));
      if (format !== "f32") return;
      const its = (await by.ask<{ ids: number[][] }>("tokenize", { texts })).ids;
      const same = texts.filter((t, i) => `${engine.text!.encode(t, false)}` === `${its[i]}`).length;
      vocabularies.push([by.name, `${same} of ${texts.length}`]);
    });
    if (format !== "f32") continue;
    const data = readFileSync("examples/facts.jsonl", "utf8").trim().split("\n");
    const job = await engine.finetune({
      name: "notes",
      data: data.map((l) => JSON.parse(l) as never),
      epochs: 20,
    });
    await job.done;
    const lora = join(dir, "notes.gguf");
    await engine.adapters.get("notes").save(lora);
    await each([llama], file, async (by) => {
      rows.push(await beside("LoRA", engine, prompts, by, "notes", { lora }));
    });
    await engine.merge("notes");
    const merged = join(dir, "merged.gguf");
    await engine.saveModel(merged);
    await each([llama, torch], merged, async (by) => {
      rows.push(await beside("merged", engine, prompts, by));
    });
  }
  // As files can say them (tests/export.test.ts).
  const sayable: Readonly<Record<string, Config>> = {
    llama: even,
    "llama, biases and llama3": odd,
    ...families,
    mistral: { ...families.mistral, sliding_window: null },
    gemma2: { ...families.gemma2, query_pre_attn_scalar: families.gemma2.head_dim },
    smollm3: { ...families.smollm3, no_rope_layers: undefined, no_rope_layer_interval: 4 },
    // llama.cpp leaves its window out.
    phi3: { ...families.phi3, sliding_window: null },
  };
  for (const [name, config] of Object.entries(sayable)) {
    await using engine = await opened(withLetters(config), name);
    const vocab = engine.manifest.model.vocab;
    const prompts = [0, 1, 2, 3].map((p) =>
      Array.from({ length: 20 + 9 * p }, (_, i) => (i * 7919 + p * 104729 + 13) % vocab),
    );
    // transformers guesses families by names of files.
    const file = join(dir, `tiny-${rows.length}.gguf`);
    await engine.saveModel(file);
    // Its reader leaves out scaled positions, bounds and windows, and knows not all families.
    const readers = ["llama", "mistral"].includes(name) ? [llama, torch] : [llama];
    await each(readers, file, async (by) => {
      rows.push(await beside(`family ${name}, random`, engine, prompts, by));
    });
  }
  table([
    ["exported", "read by", "greedy ids equal", "gap where not"],
    ...rows.map((r) => [
      r.what,
      r.by,
      `${r.same} of ${r.prompts}`,
      r.gaps.map((g) => g.toExponential(1)).join(" "),
    ]),
  ]);
  table([["texts as ids", "equal"], ...vocabularies]);
  console.log(JSON.stringify({ bench: "export", rows, vocabularies }));
}
