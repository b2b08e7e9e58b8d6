/** Names of modules that an adapter's folder says it changes. */
import { modulePath } from "./content.ts";
import { singleSites } from "./experts.ts";
import { layersWith } from "./kinds.ts";
import type { Manifest, SiteEntry } from "./manifest.ts";

/** Modules of a model, and how its checkpoint calls them. */
type Modules = Pick<Manifest, "sites"> & {
  readonly model: Parameters<typeof layersWith>[0];
  readonly checkpoint: Pick<Manifest["checkpoint"], "modules">;
};
/**
 * `target_modules` that name exactly these paths of modules: in short, where all of a name are among them.
 */
export function targetsOf(m: Modules, adapted: ReadonlySet<string>): string[] {
  const sites = m.sites.filter((s) => s.kind === "linear" || s.kind === "experts");
  const paths = (of: readonly SiteEntry[]): string[] =>
    of.flatMap(singleSites).flatMap((s) => layersWith(m.model, s).map((l) => modulePath(m, l, s)));
  const last = (s: SiteEntry): string => s.module.split(".").at(-1)!;
  return [...new Set(sites.map(last))].flatMap((name) => {
    const its = sites.filter((s) => last(s) === name);
    if (paths(its).every((p) => adapted.has(p))) return [name];
    return its.flatMap((s) =>
      !s.experts && paths([s]).every((p) => adapted.has(p))
        ? [s.module]
        : paths([s]).filter((p) => adapted.has(p)),
    );
  });
}
