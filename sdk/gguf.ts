/**
 * Models and adapters as GGUF files, in and out. Node alone: the compiler is imported when it is asked for.
 */
import type { GgufValue } from "../compiler/export.ts";
import { asLowRank, isScaledRows } from "../runtime/branch.ts";
import { isIn, type Manifest, WeftError } from "../runtime/bundle.ts";
import { type AdapterContent, siteOf } from "../runtime/content.ts";
import { claimFile, type Ours, writeOwnFile } from "../runtime/disk.ts";
import { readVerified } from "../runtime/load.ts";
import { encode, type TensorData } from "../runtime/safetensors.ts";
import { targetsOf } from "../runtime/targets.ts";
import { transpose } from "../runtime/tensors/dense.ts";
import type { Engine } from "./engine.ts";
import { decodeText } from "./files.ts";
import { PREFIX, plainLora } from "./peft/folder.ts";
import { readAdapter } from "./peft/read.ts";
import { Text } from "./text.ts";

type Json = Readonly<Record<string, unknown>>;
const compiler = () => import("../compiler/export.ts");

type Kind = "model" | "adapter";
/** What weft wrote may be replaced by what is of its kind. */
const oursOf =
  (kind: Kind): Ours =>
  async (file) =>
    (await (await compiler()).kindWritten(file)) === kind;
/**
 * Is there a file to replace? Throws WEFT_IO where there is anything but one of that kind that weft wrote.
 */
export const claimGguf = (file: string, kind: Kind): Promise<boolean> => claimFile(file, oursOf(kind));

/** What a GGUF file is told of an engine's text. */
interface TextFiles {
  readonly tokenizer: Json;
  readonly config: Json;
  readonly template: string | null;
}
/** Pieces of text that kinds of tokenizers cut, and spell, otherwise. */
const PROBE = [
  "It's 3:45pm, I'd pay $1,234.56 -- we'LL see… don't YOU'RE HTTPServer camelCase x2y34",
  "  two  spaces\n\n\tand\r\n lines \n  ends   ",
  "déjà vu e\u0301 Straße ÆØÅ ǅ İstanbul Ελλάδα Привет мир שלום مرحبا नमस्ते ไทย 日本語 한국어 中文，好！",
  "١٢٣ Ⅷ ½ ² 😀👍🏽 a\u00a0b\u3000c\ufeffd {}[]<>/\\|`~^_=+*&%#@!?;:'\"()",
];

/** The start token, where the tokenizer names one that it does not put there. */
function idOf({ tokenizer, config }: TextFiles): number | undefined {
  const said = config.bos_token as string | { readonly content: string } | null | undefined;
  const token = typeof said === "object" ? said?.content : said;
  const added = (tokenizer.added_tokens ?? []) as readonly { id: number; content: string }[];
  const vocab = (tokenizer.model as { vocab: Readonly<Record<string, number>> }).vocab;
  if (token === undefined) return undefined;
  return added.find((t) => t.content === token)?.id ?? vocab[token];
}

/** What a file says of a tokenizer. Throws WEFT_TOKENIZER where files cannot. */
async function vocabulary(text: Text, files: TextFiles, m: Manifest): Promise<Record<string, GgufValue>> {
  const { vocabularyOf } = await compiler();
  const want = JSON.stringify(PROBE.map((p) => text.encode(p, false)));
  const same = (other: Json): boolean => {
    const its = new Text(other, {}, null);
    return JSON.stringify(PROBE.map((p) => its.encode(p, false))) === want;
  };
  const said = Object.entries(vocabularyOf(files.tokenizer, m.model.vocab, same)).map(([key, v]) => [
    key,
    Array.isArray(v) && typeof v[0] === "number"
      ? (key.endsWith("scores") ? Float32Array : Int32Array).from(v as number[])
      : v,
  ]);
  const starts = text.encode("a").length > text.encode("a", false).length;
  const bos = starts ? text.encode("a")[0] : idOf(files);
  const [eos, eot] = m.model.eos;
  const id = (key: string, x: number | undefined) => x !== undefined && { [`${key}_token_id`]: { u32: x } };
  const ids = { ...id("bos", bos), ...id("eos", eos), ...id("eot", eot), add_bos_token: starts };
  return {
    ...(Object.fromEntries(said) as Record<string, GgufValue>),
    ...Object.fromEntries(Object.entries(ids).map(([key, v]) => [`tokenizer.ggml.${key}`, v as GgufValue])),
    ...(files.template !== null && { "tokenizer.chat_template": files.template }),
  };
}

/**
 * The base as it is now, as a file that llama.cpp loads, and `compile`. Resolves with what is not quite as it
 * was, in words.
 */
export async function saveModelAsGguf(
  file: string,
  { core, manifest, modelConfig, reader, text }: Engine,
): Promise<string[]> {
  await claimGguf(file, "model");
  const { modelAsGguf } = await compiler();
  const read = async (name: string): Promise<string | null> =>
    manifest.files[name] ? decodeText(await readVerified(reader, manifest, name)) : null;
  const json = async (name: string): Promise<Json> => JSON.parse((await read(name))!) as Json;
  const said = text
    ? await vocabulary(
        text,
        {
          tokenizer: await json("tokenizer.json"),
          config: await json("tokenizer_config.json"),
          template: await read("chat_template.jinja"),
        },
        manifest,
      )
    : { "tokenizer.ggml.model": "none" };
  const name = file.replace(/^.*[\\/]/, "").replace(/\.gguf$/, "");
  const { notes, bytes } = await modelAsGguf(modelConfig, name, () => core.storedTensors(), said);
  await writeOwnFile(file, bytes, oursOf("model"));
  const ends = manifest.model.eos.slice(2);
  if (text && ends.length) notes.push(`ids ${ends} no longer end an answer: files name two that do`);
  return notes;
}

/**
 * An adapter as llama.cpp's LoRA: as it is where one alpha scales its rows, else with its scale in B. Throws
 * WEFT_ADAPTER for what is no LoRA exactly.
 */
export async function saveAdapterAsGguf(
  file: string,
  { core, manifest, modelConfig }: Engine,
  name: string,
): Promise<void> {
  await claimGguf(file, "adapter");
  const { content, base } = core.adapters.find(name);
  if (content.replaces)
    throw new WeftError({
      code: "WEFT_ADAPTER",
      where: `adapter ${name}`,
      expected: "one that shares the base",
      found: "one with modules of its own",
    });
  if (
    manifest.branches.some((b, i) => siteOf(manifest, b).experts && content.branches.some((l) => l[i]!.rank))
  )
    throw new WeftError({
      code: "WEFT_ADAPTER",
      where: `adapter ${name}`,
      expected: "one that leaves experts alone",
      found: "one of experts' matrices",
      hint: "save it as a folder",
    });
  const used = content.branches.flatMap((layer, l) =>
    layer.flatMap((s, i) => (s.rank ? [{ ...s, l, i }] : [])),
  );
  const { alpha } = used[0]!;
  const apart =
    isScaledRows(manifest, content.config.method) &&
    used.every((s) => s.alpha === alpha && s.scale === alpha / s.rank);
  const parts = used.map(({ l, i }) => {
    const { module, inFeatures: ins, outFeatures: outs } = siteOf(manifest, manifest.branches[i]!);
    const { rank, a, b } = asLowRank(manifest, content, l, i, apart ? 1 : undefined);
    return { name: pathOf(manifest, l, module), rank, ins, outs, a, b: transpose(b, rank, outs) };
  });
  const { adapterAsGguf } = await compiler();
  const about = { name, base, alpha: apart ? alpha : null };
  await writeOwnFile(file, adapterAsGguf(modelConfig, about, parts), oursOf("adapter"));
}
const pathOf = (m: Manifest, layer: number, module: string): string =>
  `${m.checkpoint.modules.replace("{l}", String(layer))}${module}.weight`;

/** llama.cpp's LoRA as an adapter. Throws WEFT_ADAPTER, or WEFT_ADAPTER_MISMATCH for another base. */
export async function readAdapterGguf(
  file: string,
  manifest: Manifest,
  config: Json,
): Promise<{ content: AdapterContent; warnings: string[] }> {
  const { adapterFromGguf } = await compiler();
  const sites = manifest.sites.filter((s) => s.kind === "linear");
  const matrices = Array.from({ length: manifest.model.layers }, (_, l) =>
    sites
      .filter((s) => isIn(manifest.model, l, s))
      .map((s) => ({ name: pathOf(manifest, l, s.module), ins: s.inFeatures, outs: s.outFeatures })),
  ).flat();
  const { alpha, base, parts } = await adapterFromGguf(file, config, matrices);
  const tensors = parts.flatMap(({ name, rank, ins, outs, a, b }): TensorData[] => {
    const path = `${PREFIX}${name.replace(/\.weight$/, "")}`;
    return [
      { name: `${path}.lora_A.weight`, shape: [rank, ins], dtype: "F32", data: a },
      { name: `${path}.lora_B.weight`, shape: [outs, rank], dtype: "F32", data: b },
    ];
  });
  const ranks = parts.map(({ name, rank }) => [name.replace(/\.weight$/, "").replaceAll(".", "\\."), rank]);
  const r = Math.max(0, ...parts.map((p) => p.rank));
  const others = Object.fromEntries(ranks.filter(([, rank]) => rank !== r));
  const json = {
    peft_type: "LORA",
    ...plainLora(manifest),
    r,
    // Without an alpha nothing is scaled: it is each rank.
    lora_alpha: alpha ?? r,
    rank_pattern: others,
    alpha_pattern: alpha === null ? others : {},
    target_modules: targetsOf(manifest, new Set(parts.map(({ name }) => name.replace(/\.weight$/, "")))),
    ...(base !== null && { weft_base: base }),
  };
  return { content: await readAdapter(json, encode(tensors), manifest, file), warnings: [] };
}
