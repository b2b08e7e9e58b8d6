/**
 * Hugging Face PEFT folders: adapter_config.json + adapter_model.safetensors. Each method of the bundle says
 * how its tensors and config keys are called; what PEFT has not, is kept in the same two files.
 */
import { type Manifest, WeftError } from "../../runtime/bundle.ts";
import { absent, type BranchState, indexOf, modulePath, wordsIn } from "../../runtime/content.ts";
import { putBack, singleBranch, singleSites } from "../../runtime/experts.ts";
import { kindsInFiles } from "../../runtime/tensors/files.ts";
import type {
  Index,
  IndexInFiles,
  KindInFiles,
  NumbersInFiles,
  Order,
  Placed,
} from "../../runtime/tensors/tensor.ts";

export type Json = Readonly<Record<string, unknown>>;
/** What PEFT puts before a name of the base. */
export const PREFIX = "base_model.model.";
export const fail = (
  where: string,
  expected: string,
  found: string,
  code: "WEFT_ADAPTER" | "WEFT_ADAPTER_MISMATCH" = "WEFT_ADAPTER",
  hint?: string,
): never => {
  throw new WeftError({ code, where, expected, found, ...(hint && { hint }) });
};
/** What a LoRA folder says beside ranks, scales and modules, of a plain LoRA. */
export const plainLora = (m: Manifest): Json => ({
  lora_dropout: 0,
  use_rslora: false,
  bias: "none",
  fan_in_fan_out: m.checkpoint.transposed.length > 0,
  init_lora_weights: true,
  modules_to_save: null,
});
/** Words of a layer with all that the branches of a method have room for: of the largest method. */
const mostWords = (manifest: Manifest): number => {
  const of = (method: string): BranchState[] =>
    manifest.branches.map((b) => (b.method === method ? { ...absent, rank: b.capacity } : absent));
  return Math.max(0, ...Object.keys(manifest.methods).map((method) => wordsIn(manifest, of(method))));
};
/**
 * Most numbers of an adapter's files on this base: all that its branches have room for in every layer, and
 * the modules it replaces.
 */
export const numbersAtMost = (manifest: Manifest): number =>
  manifest.model.layers * mostWords(manifest) +
  manifest.tensors.reduce((n, t) => n + t.shape.reduce((a, b) => a * b, 1), 0);

/** One tensor of a file: what it holds of which layers, and in which order of their rows. */
export interface InFile<K extends KindInFiles> {
  readonly name: string;
  readonly kind: K;
  readonly placed: Placed[];
  readonly orders: Order[];
}
/** How files have the index that `p` is. */
export const indexInFiles = ({ t }: Placed): IndexInFiles => kindsInFiles[t.kind] as IndexInFiles;
/** The tensors of an adapter's file, in its order; those that follow from others have none. */
export class InFiles {
  private readonly byName = new Map<string, InFile<KindInFiles>>();
  constructor(private readonly manifest: Manifest) {}
  /**
   * A branch of one layer; `orderOf` says the order in the file of the rows that its index is of. Of experts,
   * a file has those of single matrices: what was read is there once it is `done`.
   */
  add(branch: readonly Placed[], orderOf: (p: Placed, kind: Index, name: string) => Order): void {
    for (const [one, site] of singleSites(branch[0]!.site).entries()) {
      const single = singleBranch(branch, one, site);
      this.addSingle(single, orderOf);
      this.read.push(() => putBack(branch, one, single));
    }
  }
  private readonly read: (() => void)[] = [];
  done(): void {
    for (const put of this.read) put();
  }
  private addSingle(
    branch: readonly Placed[],
    orderOf: (p: Placed, kind: Index, name: string) => Order,
  ): void {
    const path = `${PREFIX}${modulePath(this.manifest, branch[0]!.layer, branch[0]!.site)}`;
    const indexName = (p: Placed): string => `${path}.${p.t.key}`;
    const index = indexOf(branch);
    const order = index && orderOf(index.p, index.kind, indexName(index.p));
    for (const p of branch) {
      const kind = kindsInFiles[p.t.kind];
      if (p.t.key === null) continue;
      const name = kind.index ? indexName(p) : kind.fileName(path, p.t.key);
      const known = this.byName.get(name) ?? { name, kind, placed: [], orders: [] };
      known.placed.push(p);
      known.orders.push(order);
      this.byName.set(name, known);
    }
  }
  /** What becomes of each, by what it is. */
  map<T>(index: (t: InFile<IndexInFiles>) => T, numbers: (t: InFile<NumbersInFiles>) => T): T[] {
    return [...this.byName.values()].map((t) =>
      t.kind.index ? index(t as InFile<IndexInFiles>) : numbers(t as InFile<NumbersInFiles>),
    );
  }
}
