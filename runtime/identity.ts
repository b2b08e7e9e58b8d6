/**
 * Which base model this is: a hash by value, over the weights as f32 numbers and over what else the maths
 * depends on. The same for any file format, storage format, target and capacities; what an adapter records
 * that it was trained on.
 */
import { sha256 } from "./hash.ts";
import type { RopeEntry } from "./manifest.ts";

/** What the maths of a model depends on beside its weights. */
export interface Maths {
  readonly family: string;
  readonly hiddenSize: number;
  readonly layers: number;
  readonly heads: number;
  readonly kvHeads: number;
  readonly headDim: number;
  readonly ffn: number;
  readonly vocab: number;
  readonly tied: boolean;
  readonly eps: number;
  readonly ropes: readonly RopeEntry[];
  readonly constants: Readonly<Record<string, number>>;
  readonly perLayer: { readonly [name: string]: readonly number[] | undefined };
}
/**
 * What is hashed, and how: a change of either is another version, so that old hashes match nothing by
 * accident.
 */
const DOMAIN = "weft base 1";

const inF32 = ({ inverseFrequencies, scale, long }: RopeEntry): unknown => [
  Math.fround(scale),
  inverseFrequencies.map(Math.fround),
  long ? [long.beyond, long.inverseFrequencies.map(Math.fround)] : null,
];

/** Takes a model's tensors one at a time, in any order, under their checkpoint names. */
export class BaseHash {
  private readonly lines: string[] = [];
  constructor(private readonly maths: Maths) {}
  /** `values`: SHA-256 of the tensor's f32 values, row by row, in the model's own order of channels. */
  add(name: string, shape: readonly number[], values: string): void {
    this.lines.push(`${JSON.stringify(name)} ${JSON.stringify(shape)} ${values}`);
  }
  digest(): Promise<string> {
    const m = this.maths;
    const constants = Object.entries(m.constants).map(([name, x]) => [name, Math.fround(x)]);
    // As f32, which is what kernels compute with: GGUF keeps these numbers so, config.json in decimals.
    const maths = {
      family: m.family,
      hiddenSize: m.hiddenSize,
      layers: m.layers,
      heads: m.heads,
      kvHeads: m.kvHeads,
      headDim: m.headDim,
      ffn: m.ffn,
      vocab: m.vocab,
      tied: m.tied,
      eps: Math.fround(m.eps),
      inverseFrequencies: m.ropes[0]?.inverseFrequencies.map(Math.fround) ?? [],
      // Most models have none of these, and are known without them.
      ...(m.ropes.some((r) => r.scale !== 1 || r.long) || m.ropes.length !== 1
        ? { ropes: m.ropes.map(inF32) }
        : {}),
      ...(constants.length && { constants: Object.fromEntries(constants) }),
      ...(Object.keys(m.perLayer).length && { perLayer: m.perLayer }),
    };
    return sha256([DOMAIN, JSON.stringify(maths), ...this.lines.toSorted()].join("\n"));
  }
}
