/**
 * Bodies → launches: independent bodies of one kernel, or of those that go together, over rows of one domain,
 * run side by side.
 */
import { inputName, isInput, valueKey } from "../../ops/index.ts";
import type { Body, Launch } from "../kernels/body.ts";
import { graphKernels } from "../kernels/index.ts";
import type { Group } from "./groups.ts";

/** Bodies that one launch takes, at most. */
const MAX_BODIES = 16;

/** Named storage a body reads or writes: what may not be reordered. */
interface Touches {
  readonly reads: ReadonlySet<string>;
  readonly writes: ReadonlySet<string>;
}
function touchesOf(b: Body, homes: ReadonlyMap<string, string>): Touches {
  const reads = new Set(b.reads.filter(isInput).map(inputName));
  const writes = new Set<string>();
  for (const s of b.stores) {
    if (s.to === "field") writes.add(inputName(s.field));
    if (s.to === "kv") writes.add(inputName(s.kv));
    const home = s.to === "rows" ? homes.get(valueKey(s.value)) : undefined;
    if (home) writes.add(home);
  }
  const { state } = graphKernels[b.skeleton];
  if (state) writes.add(state);
  return { reads, writes };
}

/** `homes`: named storage of values that have some. Without `on`, every body has a launch of its own. */
export function mergeLaunches(
  bodies: ReadonlyMap<Group, Body>,
  on: boolean,
  homes: ReadonlyMap<string, string>,
): Launch[] {
  const touches = new Map([...bodies].map(([g, b]) => [g, touchesOf(b, homes)]));
  const clash = (g: Group, o: Group): boolean => {
    const [t, u] = [touches.get(g)!, touches.get(o)!];
    return (
      [...t.writes].some((w) => u.reads.has(w) || u.writes.has(w)) ||
      [...t.reads].some((r) => u.writes.has(r))
    );
  };
  /** Each writes its own rows of the cache: writers of it do not mind one another. */
  const writersOfCache = (g: Group, here: readonly Group[]): boolean =>
    touches.get(g)!.writes.has("kv") && here.every((o) => !touches.get(o)!.reads.has("kv"));
  const kindOf = ({ skeleton }: Group): string => graphKernels[skeleton].together ?? skeleton;
  const restOf = (g: Group): string => JSON.stringify(bodies.get(g)!.rest);
  const alike = (g: Group, [first]: readonly Group[]): boolean =>
    kindOf(first!) === kindOf(g) &&
    first!.condition === g.condition &&
    first!.domain === g.domain &&
    restOf(first!) === restOf(g);
  const launches: Group[][] = [];
  const at = new Map<Group, number>();
  for (const g of bodies.keys()) {
    let earliest = 0;
    for (const d of g.after) earliest = Math.max(earliest, (at.get(d) ?? -1) + 1);
    let target = -1;
    if (on) {
      for (let i = launches.length - 1; i >= earliest; i--) {
        const here = launches[i]!;
        if (here.some((o) => clash(g, o)) && !writersOfCache(g, here)) break;
        if (alike(g, here) && here.length < MAX_BODIES) target = i;
      }
    }
    if (target < 0) {
      launches.push([g]);
      target = launches.length - 1;
    } else launches[target]!.push(g);
    at.set(g, target);
  }
  // By now each is as early as can be. One that nothing needs before a later launch of its kind runs there.
  const blocks = (here: readonly Group[], g: Group): boolean =>
    here.some((o) => o.after.has(g) || clash(g, o));
  if (on)
    for (let i = launches.length - 1; i >= 0; i--) {
      const own = launches[i]!;
      for (const g of [...own].reverse()) {
        let target = own;
        for (const here of launches.slice(i + 1)) {
          if (blocks(here, g)) break;
          if (alike(g, here) && here.length < MAX_BODIES) target = here;
        }
        if (target === own) continue;
        own.splice(own.indexOf(g), 1);
        target.unshift(g);
      }
      // One that most steps skip waits until it is needed, and so may what it alone needs.
      const later = launches.slice(i + 1);
      const needed = later.findIndex((here) => own.some((g) => blocks(here, g)));
      launches.splice(i, 1);
      if (!own.length) continue;
      launches.splice(own[0]!.condition === null || needed < 0 ? i : i + needed, 0, own);
    }
  // A home is written only after everything that reads what it held.
  const named = new Set(homes.values());
  launches.forEach((gs, i) => {
    for (const g of gs)
      for (const w of touches.get(g)!.writes)
        for (const o of launches.slice(i).flat())
          if (o !== g && named.has(w) && touches.get(o)!.reads.has(w))
            throw new Error(`${bodies.get(g)!.name} overwrites ${w} before ${bodies.get(o)!.name} reads it`);
  });
  return launches.map((gs) => {
    const bs = gs.map((g) => bodies.get(g)!);
    return { name: bs.map((b) => b.name).join("__"), bodies: bs };
  });
}
