/**
 * What a branch may do to its site's map x ↦ W·x + b, as terms that a method lists in order: of each, which
 * tensors it is of. What it does to numbers is changes.ts.
 */
interface Term {
  readonly roles: readonly string[];
  /** Roles that a branch need not have. */
  readonly optional?: readonly string[];
  /**
   * Are its roles rows that the branch's scale scales, one by one, where there are no others? Then rows of
   * several adapters, one below the other, are their sum.
   */
  readonly stacks?: true;
}
const all = {
  /** W += s·(Bᵀ·A), with gains where there are some: of the rows of A (`inner`), of what leaves (`outer`). */
  product: { roles: ["a", "b"], optional: ["inner", "outer"], stacks: true },
  /** Rows, or columns, of W that `index` names, += rows of `delta`. */
  channels: { roles: ["index", "delta"] },
  /** Entries of W that `index` names += `values`. */
  entries: { roles: ["index", "values"] },
  /** W, b += s·Bᵀ·A·(W, b): a branch of what leaves the site. */
  after: { roles: ["a", "b"] },
  /** Each row of W, scaled to the norm that `m` has for it. */
  magnitudes: { roles: ["m"] },
  /** What enters, or what leaves, times `gain`: of the axis that its columns run over. */
  gains: { roles: ["gain"] },
  /** Another b; sites without one have no such tensor. */
  bias: { roles: [], optional: ["bias"] },
} as const satisfies Readonly<Record<string, Term>>;
export type TermName = keyof typeof all;
export const terms: Readonly<Record<TermName, Term>> = all;
export const termNames = Object.keys(terms) as TermName[];
