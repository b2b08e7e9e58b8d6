/** The S2FT fixtures as adapters of the class `permuted`. */
import { cpSync, readFileSync, writeFileSync } from "node:fs";
import { type Manifest, parseHeader } from "../../runtime/bundle.ts";
import { configs, fixtures } from "./engines.ts";
import { scratch } from "./tiny.ts";

/** Of matrices that are several: where the first begins that has the channels, and how many each has. */
const slices: Readonly<Record<string, readonly [from: number, channels: number]>> = {
  "self_attn.qkv_proj": [64, 16],
  "mlp.gate_up_proj": [0, 66],
  "attn.c_attn": [80, 40],
};
/**
 * A folder of S2FT's fixture as one of the class `permuted`, and the selection that a bundle of that class
 * was compiled with: smaller sites first.
 */
export function permuted(name: "odd" | "even" | "mha" | "phi3" | "gpt2" | "mixtral" | "qwen3_moe"): {
  folder: string;
  selection: NonNullable<Manifest["selection"]>;
} {
  const folder = `${scratch()}/s2ft`;
  cpSync(`${fixtures}s2ft-${name}`, folder, { recursive: true });
  const config = JSON.parse(readFileSync(`${folder}/adapter_config.json`, "utf8")) as object;
  writeFileSync(`${folder}/adapter_config.json`, JSON.stringify({ ...config, class: "permuted" }));
  const file = readFileSync(`${folder}/adapter_model.safetensors`);
  const { tensors } = parseHeader(file, file.length, folder);
  const index = (layer: number, module: string): number[] => {
    const t = tensors.find((x) => x.name.endsWith(`.${layer}.${module}.s2ft_index`));
    if (!t) return [];
    const places = [...new Int32Array(new Uint8Array(file.subarray(t.start, t.end)).buffer)];
    const [from, channels] = slices[module] ?? [0, Infinity];
    return [...new Set(places.map((p) => (p - from) % channels))];
  };
  const { head_dim, n_embd, n_head } = configs[name] as Readonly<Record<string, number | undefined>>;
  const hd = head_dim ?? (n_embd ? n_embd / n_head! : 16);
  const expert = (l: number, e: number): number[] => [
    ...new Set(
      ["w1", "w2", "w3", "gate_proj", "up_proj", "down_proj"]
        .map((m) => index(l, `${m.startsWith("w") ? "block_sparse_moe" : "mlp"}.experts.${e}.${m}`))
        .sort((a, b) => a.length - b.length)
        .flat(),
    ),
  ];
  const experts = Number(configs[name].num_local_experts ?? configs[name].num_experts ?? 0);
  const layers = [0, 1].map((l) => ({
    ...(experts && { experts: Array.from({ length: experts }, (_, e) => expert(l, e)) }),
    ffn: [
      ...new Set(
        ["up_proj", "gate_proj", "gate_up_proj", "down_proj", "c_fc", "c_proj"]
          .map((m) => `mlp.${m}`)
          .map((m) => index(l, m))
          .sort((a, b) => a.length - b.length)
          .flat(),
      ),
    ],
    groups: [
      ...new Set(
        ["self_attn.v_proj", "self_attn.qkv_proj", "attn.c_attn", "attn.c_proj"]
          .concat(name === "mha" ? ["self_attn.o_proj"] : [])
          .flatMap((m) => index(l, m))
          .map((c) => Math.floor(c / hd)),
      ),
    ],
  }));
  return { folder, selection: { layers, selector: "random" } };
}
