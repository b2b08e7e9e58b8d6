/** Adapters as they begin. */
import { type BranchTensor, type Manifest, WeftError } from "./bundle.ts";
import { type AdapterConfig, type AdapterContent, placedIn, wordsIn } from "./content.ts";
import { resolveBranches } from "./match.ts";
import { type ModelView, selectors } from "./selectors.ts";
import { tensorKinds } from "./tensors/index.ts";
import type { Start, TensorKind } from "./tensors/tensor.ts";

/** A fresh adapter, which starts as the base: tensors as their method says, from the seed. */
export async function initialContent(
  manifest: Manifest,
  config: AdapterConfig,
  seed: number,
  view: () => Promise<ModelView>,
): Promise<AdapterContent> {
  if (!selectors.includes(config.selector))
    throw new WeftError({
      code: "WEFT_OPTION",
      where: "selector",
      expected: selectors.join(", "),
      found: String(config.selector),
    });
  const branches = await resolveBranches(manifest, config);
  const from = { manifest, selector: config.selector, seed, view };
  const tensors: Float32Array[] = [];
  for (const [l, layer] of branches.entries()) {
    const words = new Float32Array(wordsIn(manifest, layer));
    for (const i of layer.keys())
      for (const p of placedIn(manifest, layer, words, l, i)) await startOf(p.t)(p, from);
    tensors.push(words);
  }
  return { config, branches, tensors };
}
const startOf = ({ kind, init }: BranchTensor): Start => (tensorKinds[kind] as TensorKind).starts[init]!;
