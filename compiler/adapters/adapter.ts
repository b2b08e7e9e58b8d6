/**
 * An adapter method in one file: what it computes at a site, which tensors it has there, how they start and
 * how files call them. Batching, gradients, slots, checkpoints and PEFT folders follow from that. What the
 * runtime must know of it is described in runtime/manifest.ts: MethodEntry, and BranchTensor for its tensors.
 */
import type { Value } from "../../ops/index.ts";
import type { BranchTensor, MethodEntry } from "../../runtime/bundle.ts";
import type { SiteKind, SiteSpec } from "../layers.ts";
import type { Model } from "../models/model.ts";
import type { Capacities } from "../target.ts";

/** What a method sees at a site. `tensor` names one of its slot tensors there. */
export interface BranchContext {
  /** Index of the branch: this method at this site. */
  readonly branch: number;
  readonly site: SiteSpec;
  readonly tensor: (name: string) => Value;
  /** The site's bias, which y holds already. */
  readonly bias: Value | null;
  /**
   * The experts that each row chose, where the site is their matrices; a row of x or y has a part for each.
   */
  readonly chosen: Value | null;
}
/** Linear sites by what they are for; one that is for several has each of these roles. */
export const roles = {
  queries: ({ axes }: SiteSpec) => axes.out === "heads" || axes.out === "qkv",
  keys: ({ axes, coupling }: SiteSpec) => (axes.out === "kvHeads" && !coupling) || axes.out === "qkv",
  values: ({ axes, coupling }: SiteSpec) =>
    (axes.out === "kvHeads" && coupling !== null) || axes.out === "qkv",
  /** The last matrix of attention, and of a feed-forward. */
  attention: ({ axes }: SiteSpec) => axes.in === "heads",
  feedForward: ({ axes }: SiteSpec) => axes.in === "ffn",
} as const;
export type Role = keyof typeof roles;
/** Names that a model's modules of some roles, and no others, end in. */
export function namesOf(sites: readonly SiteSpec[], wanted: readonly Role[]): string[] {
  const linear = sites.filter((s) => s.kind === "linear");
  const last = (s: SiteSpec): string => s.module.split(".").at(-1)!;
  const are = linear.filter((s) => wanted.some((role) => roles[role](s)));
  const others = new Set(linear.filter((s) => !are.includes(s)).map(last));
  return [...new Set(are.map((s) => (others.has(last(s)) ? s.module : last(s))))];
}
export interface AdapterMethod extends Omit<MethodEntry, "peft" | "targets"> {
  /** Modules that a job adapts when it names none. */
  readonly targets: "all-linear" | readonly Role[];
  /** How files call it. What they always say may follow from the model, and from what it calls modules. */
  readonly peft: Omit<MethodEntry["peft"], "fixed" | "meaning"> & {
    readonly fixed:
      | Readonly<Record<string, unknown>>
      | ((m: Model, named: (...wanted: Role[]) => string[]) => Readonly<Record<string, unknown>>);
    readonly meaning?: readonly string[];
  };
  /** The kind of sites that it can have branches at; `linear` when it does not say. */
  readonly at?: SiteKind;
  /**
   * May it have branches at the matrices of experts too? Tensors there have the columns of all, side by side.
   */
  readonly experts: boolean;
  /**
   * Most rows its tensors can have at a site of that kind; 0 where it has no branch. `sites` are all of them
   * in a layer.
   */
  readonly capacity: (site: SiteSpec, sites: readonly SiteSpec[], c: Capacities) => number;
  readonly tensors: (site: SiteSpec, capacity: number) => readonly BranchTensor[];
  /** Do its jobs look at activations before they start? */
  readonly calibrates?: true;
  /**
   * Tensors of this branch from which a kernel makes `out` = 1 / ‖row of (W + s·Bᵀ·A)‖₂ whenever they change.
   */
  readonly rowNorms?: { readonly a: string; readonly b: string; readonly out: string };
  /** The site's new input, for methods that change it. */
  readonly input?: (x: Value, c: BranchContext) => Value;
  /** The keys (after rotation) or values that enter the cache. */
  readonly cache?: (part: "k" | "v", x: Value, c: BranchContext) => Value;
  /** The site's new output from its input x and output so far y. */
  readonly output?: (x: Value, y: Value, c: BranchContext) => Value;
}
