/**
 * Weighted sums of adapters, as requests ask for them. Where adapters are rows that a scale scales, a slot
 * stands for their sum whose rows are theirs, in the slots that they have: nothing is built. Other sums are
 * adapters that are made when they are first asked for.
 */
import type { Generation, Made } from "./adapters.ts";
import { otherBase } from "./base.ts";
import { type Manifest, type MethodEntry, MOST_PARTS, MOST_SUMS, quadsOf, WeftError } from "./bundle.ts";
import { checkParts, combine } from "./combine.ts";
import type { AdapterContent, AdapterShape } from "./content.ts";
import type { Host } from "./host.ts";
import type { KeptContent } from "./kept.ts";
import type { SlotPages } from "./pages.ts";
import { terms } from "./terms.ts";

export interface WeightedPart {
  readonly g: Generation;
  readonly weight: number;
}
/** Do rows of several adapters of a method, one below the other, make their sum? */
const stacks = ({ change, scale }: MethodEntry): boolean => {
  const [only, ...more] = change ?? [];
  if (!only || more.length || scale !== "alpha/rank") return false;
  const term = terms[only.term];
  return term.stacks === true && Object.keys(only.of).every((role) => term.roles.includes(role));
};

export class Sums {
  /** By what they are sums of; the least recently asked for first. */
  private readonly kept = new Map<string, Generation>();
  constructor(
    private readonly manifest: Manifest,
    private readonly pages: SlotPages,
    private readonly host: Host,
    private readonly make: (g: Made) => Generation,
    private readonly drop: (g: Generation) => void,
  ) {}

  /** Throws WEFT_ADAPTER for what does not add up, WEFT_CAPACITY where too many are in use. */
  find(weighted: readonly WeightedPart[]): Generation {
    const parts = [...weighted].sort((a, b) => (a.g.ref < b.g.ref ? -1 : 1));
    const ref = parts.map(({ g, weight }) => `${weight}*${g.ref}`).join("+");
    const sum = this.kept.get(ref) ?? this.made(ref, parts);
    this.kept.delete(ref);
    this.kept.set(ref, sum);
    for (const [key, old] of this.kept) {
      if (this.kept.size <= MOST_SUMS) break;
      if (old.pins || old === sum) continue;
      this.drop(old);
      this.kept.delete(key);
    }
    return sum;
  }
  has(g: Generation): boolean {
    return this.kept.get(g.ref) === g;
  }
  private made(ref: string, parts: readonly WeightedPart[]): Generation {
    checkParts(parts.map(({ g, weight }) => ({ content: g.shape, weight })));
    const { base } = parts[0]!.g;
    const other = parts.find(({ g }) => g.base !== base);
    if (other) throw otherBase(other.g.ref, other.g.base, base);
    if ([...this.kept.values()].filter((s) => s.pins).length >= MOST_SUMS)
      throw new WeftError({
        code: "WEFT_CAPACITY",
        where: "adapter",
        expected: `at most ${MOST_SUMS} weighted sums in use at once`,
        found: "one more",
        hint: "adapters.combine makes a sum an adapter of its own",
        retryable: true,
      });
    const built = (): AdapterContent =>
      combine(
        this.manifest,
        parts.map(({ g, weight }) => ({ content: g.content, weight })),
      );
    const keptAs = (read: () => AdapterContent): KeptContent => ({
      read,
      layers: () => read().tensors,
      drop: () => {},
    });
    const common = { name: ref, number: 1, ref, base, warnings: [] };
    if (!this.stand(parts)) {
      const content = built();
      return this.make({
        ...common,
        shape: content,
        parts: [],
        kept: keptAs(() => content),
      });
    }
    const { replaces: _, ...shape }: AdapterShape = parts[0]!.g.shape;
    return this.make({ ...common, shape, parts, kept: keptAs(built) });
  }
  /** May a slot stand for the sum, with rows of its parts? */
  private stand(parts: readonly WeightedPart[]): boolean {
    const shapes = parts.map(({ g }) => g.shape);
    const { method } = shapes[0]!.config;
    const numbers = parts.every(({ g, weight }) =>
      g.shape.branches.every((layer) => layer.every((s) => Number.isFinite(Math.fround(weight * s.scale)))),
    );
    const fits = shapes[0]!.branches.every((layer, l) =>
      layer.every(
        (_, i) =>
          shapes.reduce((n, s) => n + quadsOf(s.branches[l]![i]!.rank), 0) <=
          quadsOf(this.manifest.branches[i]!.capacity),
      ),
    );
    const pages = shapes.reduce((n, s) => n + this.pages.count(s), 0);
    return (
      stacks(this.manifest.methods[method]!) &&
      shapes.every((s) => s.config.method === method) &&
      numbers &&
      fits &&
      parts.length <= MOST_PARTS &&
      this.host.exports.sumFits(parts.length, pages) !== 0
    );
  }
}
