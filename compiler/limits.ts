/** Do the chambers of what a bundle is meant for fit the bindings of its targets? */
import { planOf, type Sized, showBytes, WeftError } from "../runtime/bundle.ts";
import type { Target } from "./target.ts";

/** Throws WEFT_CAPACITY that names the knob. */
export function checkLimits(m: Sized, target: Target): void {
  const { spaces, arenaWords } = planOf(m, target.name, m.capacities);
  const knobs = {
    weights: "the model (use --format f16)",
    kv: "capacities.blocks",
    saved: "capacities.savedRows",
    adapters: "capacities.pages, slots or rank",
    accum: "capacities.jobs or rank",
    tables: "capacities.slots",
  };
  const check = (what: string, words: number, knob: string): void => {
    if (words * 4 > target.bindingBytes)
      throw new WeftError({
        code: "WEFT_CAPACITY",
        where: `target ${target.name}: ${what}`,
        expected: `at most ${showBytes(target.bindingBytes, Math.floor)} in one binding`,
        found: showBytes(words * 4, Math.ceil),
        hint: `lower ${knob}`,
      });
  };
  for (const [space, w] of Object.entries(spaces))
    check(space, Math.max(w.layer, w.outer), knobs[space as keyof typeof knobs]);
  check("arena", arenaWords, "capacities.tokens, headRows or savedRows");
}
