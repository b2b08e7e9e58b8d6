/**
 * What a kind of adapter tensor is: how it starts, lies in files, moves with the bundle's order of channels,
 * and, where it says what the branch's other rows are of, how those of several adapters are united.
 */
import type { BranchEntry, BranchTensor, Manifest, SiteEntry } from "../manifest.ts";
import type { ModelView, Selector } from "../selectors.ts";

/** A tensor of one branch in one layer. */
export interface Placed {
  readonly t: BranchTensor;
  /** [rows in use, cols]. */
  readonly values: Float32Array;
  readonly layer: number;
  readonly branch: BranchEntry;
  readonly site: SiteEntry;
  /** Rows in use of the branch's tensors. */
  readonly rank: number;
}
export const channelsOf = (site: SiteEntry, axis: "in" | "out"): number =>
  (site.experts ?? 1) * (axis === "in" ? site.inFeatures : site.outFeatures);
export const rowsOf = ({ t, rank }: Pick<Placed, "t" | "rank">): number => (t.rows === "rank" ? rank : 1);

/** What a fresh adapter begins from. */
export interface Beginning {
  readonly manifest: Manifest;
  readonly selector: Selector;
  readonly seed: number;
  /** Read where a start needs it. */
  readonly view: () => Promise<ModelView>;
}
export type Start = (to: Placed, from: Beginning) => void | Promise<void>;

/** Says what a file should have had; `at` follows the tensor's name. */
export type Refuse = (expected: string, found: string, more?: { hint?: string; at?: string }) => never;
/** Says what a bundle should have had; `where` follows the tensor's place in the manifest. */
export type Need = (ok: unknown, where: string, expected: string, found: unknown) => void;

interface Common {
  /** By the name that `init` gives it. */
  readonly starts: Readonly<Record<string, Start>>;
  /** What a bundle must keep of it, beside its start being one of these. */
  readonly check: (t: BranchTensor, b: BranchEntry, site: SiteEntry, m: Manifest, need: Need) => void;
}
/** Of each row of an adapter, its row in a file; null: the same. */
export type Order = readonly number[] | null;
/** A tensor of numbers. */
export interface Numbers extends Common {
  readonly index: false;
}
/** What number a channel of an axis has elsewhere; null: its own. */
export type Turns = Readonly<Record<"in" | "out", readonly number[] | null>>;
/** A tensor that says what each row of the branch's others is of, by number: a channel, or an entry. */
export interface Index extends Common {
  readonly index: true;
  /** Rows for what a configuration calls rank. */
  readonly rows: (rank: number, site: SiteEntry) => number;
  readonly get: (p: Placed) => number[];
  readonly set: (p: Placed, chosen: readonly number[]) => void;
  /** Does an adapter have them in ascending order, or in any? */
  readonly ascending: boolean;
  /** The same where channels have other numbers. */
  readonly turned: (p: Placed, chosen: readonly number[], turns: Turns) => number[];
  /** What several adapters choose, as one. */
  readonly united: (t: BranchTensor, lists: readonly (readonly number[])[]) => number[];
}
export type TensorKind = Numbers | Index;

/** How files have a tensor of numbers. Tensors of one name are one tensor of a file: a group. */
export interface NumbersInFiles {
  readonly index: false;
  readonly fileName: (path: string, key: string) => string;
  readonly shape: (group: readonly Placed[]) => number[];
  readonly read: (group: readonly Placed[], values: Float32Array, orders: readonly Order[]) => void;
  readonly write: (group: readonly Placed[], orders: readonly Order[]) => Float32Array;
}
/** How files have an index. */
export interface IndexInFiles {
  readonly index: true;
  /** Its shape in a file, and what such a tensor is called in an error. */
  readonly shape: (rank: number) => number[];
  readonly says: string;
  /** What a file chooses, in its order; and, checked, in that of an adapter. */
  readonly inFile: (p: Placed, file: Int32Array) => number[];
  readonly parse: (p: Placed, m: Manifest, file: Int32Array, refuse: Refuse) => number[];
  readonly print: (p: Placed, chosen: readonly number[]) => Int32Array;
}
export type KindInFiles = NumbersInFiles | IndexInFiles;
