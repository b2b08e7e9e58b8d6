/** Which branches of which layers an adapter has: its configuration's names against a bundle's sites. */
import { type BranchEntry, isIn, layersWith, type Manifest, type SiteEntry, WeftError } from "./bundle.ts";
import { type AdapterConfig, absent, type BranchState, indexTensor, modulePath, siteOf } from "./content.ts";
import { singleSites } from "./experts.ts";
import { tensorKinds } from "./tensors/index.ts";
import type { TensorKind } from "./tensors/tensor.ts";

/** Rows of a branch's tensors for what a configuration calls rank. */
function rowsAt(b: BranchEntry, rank: number, site: SiteEntry): number {
  const index = indexTensor(b);
  const kind: TensorKind | null = index ? tensorKinds[index.kind] : null;
  return kind?.index ? kind.rows(rank, site) : rank;
}

/**
 * Which branches of which layers a config names, as PEFT matches modules. `rankOf` overrides the rank where a
 * file decides it. Throws WEFT_ADAPTER_MISMATCH for a module or rank that the bundle has no room for.
 */
export async function resolveBranches(
  manifest: Manifest,
  config: AdapterConfig,
  rankOf?: (path: string, b: BranchEntry) => number | null,
): Promise<BranchState[][]> {
  const { targetModules } = config;
  const method = Object.hasOwn(manifest.methods, config.method) ? manifest.methods[config.method] : undefined;
  if (!method)
    throw new WeftError({
      code: "WEFT_ADAPTER_MISMATCH",
      where: "method",
      expected: Object.keys(manifest.methods).join(", ") || "a bundle compiled for adapters",
      found: config.method,
      hint: `compile with --methods ${config.method}`,
    });
  const { rankPattern, alphaPattern } = config;
  const isPattern = typeof targetModules === "string" && targetModules !== "all-linear";
  // Most configurations name modules.
  const patterns =
    isPattern || Object.keys(rankPattern).length || Object.keys(alphaPattern).length
      ? (await import("./pattern.ts")).patternsOf(isPattern ? targetModules : null, rankPattern, alphaPattern)
      : null;
  const matches = (p: string): boolean =>
    targetModules === "all-linear" ||
    (isPattern
      ? patterns!.target!(p)
      : (targetModules as readonly string[]).some((t) => p === t || p.endsWith(`.${t}`)));
  const ours = manifest.branches.filter((b) => b.method === config.method);
  const paths = ours.flatMap((b) => {
    const site = siteOf(manifest, b);
    const layers = layersWith(manifest.model, site);
    return singleSites(site).flatMap((s) => layers.map((l) => modulePath(manifest, l, s)));
  });
  if (Array.isArray(targetModules))
    for (const t of targetModules)
      if (!paths.some((p) => p === t || p.endsWith(`.${t}`)))
        throw new WeftError({
          code: "WEFT_ADAPTER_MISMATCH",
          where: "target_modules",
          expected: ours.map((b) => siteOf(manifest, b).module.split(".").pop()).join(", "),
          found: t,
        });
  const found = Array.from({ length: manifest.model.layers }, (_, l) =>
    manifest.branches.map((b): BranchState => {
      if (b.method !== config.method || (l > 0 && method.layers === "first")) return absent;
      const site = siteOf(manifest, b);
      if (!isIn(manifest.model, l, site)) return absent;
      // Of experts, all or none: they are one branch.
      const singles = singleSites(site).map((s) => modulePath(manifest, l, s));
      const alike = <T>(of: (path: string) => T, where: string): T => {
        const [first, ...others] = singles.map(of);
        if (others.some((x) => x !== first))
          throw new WeftError({
            code: "WEFT_ADAPTER",
            where: `${where}: ${modulePath(manifest, l, site)}`,
            expected: "the same for all experts",
            found: "some that differ",
          });
        return first!;
      };
      const p = singles[0]!;
      if (!alike(matches, "target_modules")) return absent;
      const asked = alike((p) => patterns?.rank(p), "rank_pattern") ?? config.rank;
      const own = asked === null ? b.capacity : rowsAt(b, asked, site);
      const rank = rankOf ? rankOf(p, b) : own;
      if (rank === null) return absent;
      const alpha = alike((p) => patterns?.alpha(p), "alpha_pattern") ?? config.alpha;
      if (!Number.isInteger(rank) || rank < 1 || rank > b.capacity)
        throw new WeftError({
          code: "WEFT_ADAPTER_MISMATCH",
          where: p,
          expected: `a rank from 1 to ${b.capacity}`,
          found: String(rank),
          hint: "compile the bundle with a larger rank",
        });
      const scale = method.scale === "one" ? 1 : alpha / (config.rslora ? Math.sqrt(rank) : rank);
      if (!Number.isFinite(Math.fround(scale)))
        throw new WeftError({
          code: "WEFT_ADAPTER",
          where: p,
          expected: "a scale, alpha over rank, that is finite in f32",
          found: `${alpha} over ${rank}`,
        });
      return { rank, alpha, scale };
    }),
  );
  if (!found.some((layer) => layer.some((s) => s.rank > 0)))
    throw new WeftError({
      code: "WEFT_ADAPTER_MISMATCH",
      where: "target_modules",
      expected: "at least one linear layer",
      found: JSON.stringify(targetModules),
    });
  return found;
}
