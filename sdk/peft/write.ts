/** An adapter as the two files of a PEFT folder. */

import { asLowRank } from "../../runtime/branch.ts";
import type { Manifest } from "../../runtime/bundle.ts";
import {
  type AdapterConfig,
  type AdapterContent,
  indexOf,
  modulePath,
  placedOf,
  siteOf,
} from "../../runtime/content.ts";
import { singleSites } from "../../runtime/experts.ts";
import { encode, type TensorData } from "../../runtime/safetensors.ts";
import { targetsOf } from "../../runtime/targets.ts";
import { transpose } from "../../runtime/tensors/dense.ts";
import type { Index, Placed } from "../../runtime/tensors/tensor.ts";
import { fail, InFiles, type Json, PREFIX, plainLora } from "./folder.ts";

const files = (
  config: Json,
  tensors: readonly TensorData[],
  manifest: Manifest,
): { config: string; weights: Uint8Array } => ({
  config: `${JSON.stringify(
    {
      ...{ task_type: "CAUSAL_LM", base_model_name_or_path: null, inference_mode: true },
      ...config,
      ...{ weft_base: manifest.base, weft_format: manifest.model.format },
    },
    null,
    2,
  )}\n`,
  weights: encode(tensors),
});

/** Adapter content → the two files of a PEFT folder. */
export function writeAdapter(
  content: AdapterContent,
  manifest: Manifest,
): { config: string; weights: Uint8Array } {
  const method = manifest.methods[content.config.method]!;
  const all = new InFiles(manifest);
  // Files name what is chosen in ascending order, whatever the adapter's order.
  const sorted = (p: Placed, kind: Index): number[] => kind.get(p).sort((x, y) => x - y);
  const orderOf = (p: Placed, kind: Index): number[] => {
    const place = new Map(sorted(p, kind).map((x, r) => [x, r]));
    return kind.get(p).map((x) => place.get(x)!);
  };
  content.branches.forEach((layer, l) => {
    for (const placed of placedOf(manifest, layer, content.tensors[l]!, l))
      if (placed.length) all.add(placed, orderOf);
  });
  const tensors = all.map<TensorData>(
    ({ name, kind, placed: [p] }) => ({
      name,
      shape: kind.shape(p!.rank),
      dtype: "I32",
      data: kind.print(p!, sorted(p!, indexOf([p!])!.kind)),
    }),
    ({ name, kind, placed, orders }) => ({
      name,
      shape: kind.shape(placed),
      dtype: "F32",
      data: kind.write(placed, orders),
    }),
  );
  for (const [path, values] of content.replaces ?? [])
    tensors.push({
      name: `${PREFIX}${path}`,
      shape: manifest.tensors.find((t) => t.name === path)!.shape,
      dtype: "F32",
      data: values,
    });
  const replaced = content.replaces && {
    modules_to_save: [...new Set([...content.replaces.keys()].map((path) => path.split(".").slice(-2)[0]!))],
  };
  const own = Object.fromEntries(
    Object.entries(method.peft.config).map(([key, field]) => [
      key,
      content.config[field as keyof AdapterConfig],
    ]),
  );
  return files(
    {
      peft_type: method.peft.type,
      ...method.peft.fixed,
      ...replaced,
      ...own,
      ...(!method.virtual && { target_modules: content.config.targetModules }),
    },
    tensors,
    manifest,
  );
}

/**
 * The same change of the base as a LoRA that any peft loads: exact for what is low-rank or a selection of
 * channels. Throws WEFT_ADAPTER otherwise.
 */
export function writeAsLora(
  content: AdapterContent,
  manifest: Manifest,
): { config: string; weights: Uint8Array } {
  if (content.replaces)
    fail("save as lora", "an adapter that shares the base", "one with modules of its own");
  const tensors: TensorData[] = [];
  const ranks: Record<string, number> = {};
  const modules = new Set<string>();
  content.branches.forEach((layer, l) => {
    layer.forEach((s, i) => {
      if (!s.rank) return;
      const whole = siteOf(manifest, manifest.branches[i]!);
      for (const [e, site] of singleSites(whole).entries()) {
        const expert = whole.experts ? e : null;
        const { rank, a, b } = asLowRank(manifest, content, l, i, undefined, expert);
        const path = modulePath(manifest, l, site);
        tensors.push({
          name: `${PREFIX}${path}.lora_A.weight`,
          shape: [rank, site.inFeatures],
          dtype: "F32",
          data: a,
        });
        tensors.push({
          name: `${PREFIX}${path}.lora_B.weight`,
          shape: [site.outFeatures, rank],
          dtype: "F32",
          data: transpose(b, rank, site.outFeatures),
        });
        ranks[path.replaceAll(".", "\\.")] = rank;
        modules.add(path);
      }
    });
  });
  // The scale is folded into B: alpha equals the rank everywhere.
  const r = Math.max(...Object.values(ranks));
  const pattern = Object.fromEntries(Object.entries(ranks).filter(([, v]) => v !== r));
  const config = {
    r,
    lora_alpha: r,
    rank_pattern: pattern,
    alpha_pattern: pattern,
    ...plainLora(manifest),
  };
  return files(
    { peft_type: "LORA", ...config, target_modules: targetsOf(manifest, modules) },
    tensors,
    manifest,
  );
}
