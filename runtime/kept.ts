/**
 * Contents of adapters as the host keeps them: each tensor in 16 bits where that loses nothing, as it does
 * for adapters that were published so. What is read has the bits that were kept.
 */
import { floatToHalf, halvesToFloats, type Manifest } from "./bundle.ts";
import { type AdapterContent, type AdapterShape, placedOf } from "./content.ts";

/** How a tensor's numbers are kept. */
const F32 = 0;
const F16 = 1;
const BF16 = 2;
type Kind = typeof F32 | typeof F16 | typeof BF16;
const bytesOf = (kind: Kind, words: number): number => (kind === F32 ? 4 * words : 4 * Math.ceil(words / 2));

/** Is a number of these bits a half? Not a NaN, whose bits are to stay. */
function isHalf(bits: number): boolean {
  const abs = bits & 0x7fffffff;
  const exponent = abs >>> 23;
  if (exponent >= 113) return (abs & 0x1fff) === 0 && (exponent <= 142 || abs === 0x7f800000);
  // Below 2⁻¹⁴ halves are multiples of 2⁻²⁴.
  return abs === 0 || (exponent >= 103 && (abs & ((1 << (126 - exponent)) - 1)) === 0);
}
function kindOf(bits: Uint32Array): Kind {
  let [half, upper] = [true, true];
  for (let i = 0; i < bits.length && (half || upper); i++) {
    half &&= isHalf(bits[i]!);
    upper &&= (bits[i]! & 0xffff) === 0;
  }
  return half ? F16 : upper ? BF16 : F32;
}
const bitsOf = (values: Float32Array): Uint32Array =>
  new Uint32Array(values.buffer, values.byteOffset, values.length);

/** `kinds`: of each tensor, in order. */
function pack(tensors: readonly Float32Array[]): { readonly kinds: Uint8Array; readonly bytes: Uint8Array } {
  const kinds = Uint8Array.from(tensors, (t) => kindOf(bitsOf(t)));
  const bytes = new Uint8Array(tensors.reduce((n, t, i) => n + bytesOf(kinds[i] as Kind, t.length), 0));
  let at = 0;
  for (const [i, values] of tensors.entries()) {
    const kind = kinds[i] as Kind;
    if (kind === F32) new Float32Array(bytes.buffer, at, values.length).set(values);
    else {
      const to = new Uint16Array(bytes.buffer, at, values.length);
      const bits = bitsOf(values);
      if (kind === F16) for (let k = 0; k < to.length; k++) to[k] = floatToHalf(values[k]!);
      else for (let k = 0; k < to.length; k++) to[k] = bits[k]! >>> 16;
    }
    at += bytesOf(kind, values.length);
  }
  return { kinds, bytes };
}
/** Tensors of `kinds` from a byte on: the byte after them. */
function unpack(
  kinds: Uint8Array,
  bytes: Uint8Array,
  from: number,
  tensors: readonly Float32Array[],
): number {
  let at = from;
  for (const [i, values] of tensors.entries()) {
    const kind = kinds[i] as Kind;
    if (kind === F32) values.set(new Float32Array(bytes.buffer, bytes.byteOffset + at, values.length));
    else {
      const packed = new Uint16Array(bytes.buffer, bytes.byteOffset + at, values.length);
      const bits = bitsOf(values);
      if (kind === F16) halvesToFloats(packed, values);
      else for (let k = 0; k < packed.length; k++) bits[k] = packed[k]! << 16;
    }
    at += bytesOf(kind, values.length);
  }
  return at;
}

/** What is held of one content. Reading it says that it is in use. */
export interface Held {
  read(): Uint8Array;
  /** Nobody needs it any more. */
  drop(): void;
}
/**
 * Who holds what contents were packed to: in memory all of it (`inMemory`), or within a budget (resident.ts).
 */
export interface Holder {
  /** Bytes held in memory. */
  readonly bytes: number;
  hold(bytes: Uint8Array): Held;
  close(): void;
}
function inMemory(): Holder {
  const all = new Set<Uint8Array>();
  return {
    get bytes() {
      return [...all].reduce((n, b) => n + b.length, 0);
    },
    hold: (bytes) => {
      all.add(bytes);
      return { read: () => bytes, drop: () => all.delete(bytes) };
    },
    close: () => {},
  };
}

/** One content. */
export interface KeptContent {
  read(): AdapterContent;
  /** The words of each layer in turn, in the same memory: one layer's are gone when the next is asked for. */
  layers(): Iterable<Float32Array>;
  /** Nobody needs it any more. */
  drop(): void;
}
export class Contents {
  constructor(
    private readonly manifest: Manifest,
    private readonly holder = inMemory(),
  ) {}

  /** Bytes held in memory. */
  get bytes(): number {
    return this.holder.bytes;
  }
  /** Throws what its holder throws. */
  keep({ tensors, ...shape }: AdapterContent): KeptContent {
    const { kinds, bytes } = pack(tensors.flatMap((words, l) => this.pieces(shape, words, l)));
    const counts = tensors.map((t) => t.length);
    const held = this.holder.hold(bytes);
    const layers = (): Iterable<Float32Array> => this.layers(kinds, held, shape, counts);
    return {
      read: () => ({ ...shape, tensors: Array.from(layers(), (words) => words.slice()) }),
      layers,
      drop: () => held.drop(),
    };
  }
  close(): void {
    this.holder.close();
  }
  /** Every tensor of a layer: views of its words. */
  private pieces({ branches }: AdapterShape, words: Float32Array, layer: number): Float32Array[] {
    return placedOf(this.manifest, branches[layer]!, words, layer).flatMap((placed) =>
      placed.map((p) => p.values),
    );
  }
  private *layers(
    kinds: Uint8Array,
    held: Held,
    shape: AdapterShape,
    counts: readonly number[],
  ): Generator<Float32Array> {
    const bytes = held.read();
    const memory = new Float32Array(Math.max(0, ...counts));
    let [at, tensor] = [0, 0];
    for (const [l, count] of counts.entries()) {
      const words = memory.subarray(0, count);
      const pieces = this.pieces(shape, words, l);
      at = unpack(kinds.subarray(tensor), bytes, at, pieces);
      tensor += pieces.length;
      yield words;
    }
  }
}
