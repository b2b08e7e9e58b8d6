/** The S2FT fixtures as adapters of the class `permuted`. */
import { cpSync, readFileSync, writeFileSync } from "node:fs";
import { type Manifest, parseHeader } from "../../runtime/bundle.ts";
import { configs, fixtures } from "./engines.ts";
import { scratch } from "./tiny.ts";

/**
 * A folder of S2FT's fixture as one of the class `permuted`, and the selection that a bundle of that class
 * was compiled with: smaller sites first.
 */
export function permuted(name: "odd" | "even" | "mha"): {
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
    const t = tensors.find((x) => x.name.endsWith(`layers.${layer}.${module}.s2ft_index`));
    return t ? [...new Int32Array(new Uint8Array(file.subarray(t.start, t.end)).buffer)] : [];
  };
  const hd = (configs[name].head_dim as number | undefined) ?? 16;
  const layers = [0, 1].map((l) => ({
    ffn: [
      ...new Set(
        ["mlp.up_proj", "mlp.gate_proj", "mlp.down_proj"]
          .map((m) => index(l, m))
          .sort((a, b) => a.length - b.length)
          .flat(),
      ),
    ],
    groups: [
      ...new Set(
        [...index(l, "self_attn.v_proj"), ...(name === "mha" ? index(l, "self_attn.o_proj") : [])].map((c) =>
          Math.floor(c / hd),
        ),
      ),
    ],
  }));
  return { folder, selection: { layers, selector: "random" } };
}
