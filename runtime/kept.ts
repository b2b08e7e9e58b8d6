/**
 * Contents of adapters as the host keeps them: each tensor in 16 bits where that loses nothing, as it does
 * for adapters that were published so; and, past a budget, the least recently used in a folder, from which
 * they are read when they are needed. What is read has the bits that were kept.
 */
import { floatToHalf, halvesToFloats, type Manifest, showBytes, WeftError } from "./bundle.ts";
import { type AdapterContent, type AdapterShape, placedOf } from "./content.ts";

/** Bytes by number, outside of memory. Its calls return when they are done; what fails throws WEFT_IO. */
export interface Spill {
  write(id: number, bytes: Uint8Array): void;
  read(id: number): Uint8Array;
  remove(id: number): void;
  /** All of it is gone. */
  close(): void;
}

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

/** One content. Reading it says that it is in use. */
export interface KeptContent {
  read(): AdapterContent;
  /** The words of each layer in turn, in the same memory: one layer's are gone when the next is asked for. */
  layers(): Iterable<Float32Array>;
  /** Nobody needs it any more. */
  drop(): void;
}
interface Entry {
  readonly id: number;
  readonly kinds: Uint8Array;
  readonly size: number;
  /** Null where it is in the spill alone. */
  bytes: Uint8Array | null;
  spilled: boolean;
}
export class Contents {
  /** Those in memory, the least recently used first. */
  private readonly resident = new Set<Entry>();
  private held = 0;
  private made = 0;
  constructor(
    private readonly manifest: Manifest,
    /** Bytes that may be held in memory; null: as many as there are. */
    private readonly most: number | null,
    /** Where the rest goes; null: nowhere. */
    private readonly spill: Spill | null,
  ) {}

  /** Bytes held in memory. */
  get bytes(): number {
    return this.held;
  }
  /** Throws WEFT_CAPACITY where there is no room, WEFT_IO where none can be made. */
  keep({ tensors, ...shape }: AdapterContent): KeptContent {
    const { kinds, bytes } = pack(tensors.flatMap((words, l) => this.pieces(shape, words, l)));
    const e: Entry = { id: ++this.made, kinds, size: bytes.length, bytes: null, spilled: false };
    this.hold(e, bytes);
    const counts = tensors.map((t) => t.length);
    return {
      read: () => ({
        ...shape,
        tensors: Array.from(this.layers(e, shape, counts), (words) => words.slice()),
      }),
      layers: () => this.layers(e, shape, counts),
      drop: () => this.drop(e),
    };
  }
  close(): void {
    this.spill?.close();
  }
  /** Every tensor of a layer: views of its words. */
  private pieces({ branches }: AdapterShape, words: Float32Array, layer: number): Float32Array[] {
    return placedOf(this.manifest, branches[layer]!, words, layer).flatMap((placed) =>
      placed.map((p) => p.values),
    );
  }
  private *layers(e: Entry, shape: AdapterShape, counts: readonly number[]): Generator<Float32Array> {
    if (!e.bytes) this.hold(e, this.fetch(e));
    // The most recently used is the last.
    this.resident.delete(e);
    this.resident.add(e);
    const bytes = e.bytes!;
    const memory = new Float32Array(Math.max(0, ...counts));
    let [at, tensor] = [0, 0];
    for (const [l, count] of counts.entries()) {
      const words = memory.subarray(0, count);
      const pieces = this.pieces(shape, words, l);
      at = unpack(e.kinds.subarray(tensor), bytes, at, pieces);
      tensor += pieces.length;
      yield words;
    }
  }
  private fetch(e: Entry): Uint8Array {
    const bytes = this.spill!.read(e.id);
    if (bytes.length !== e.size)
      throw new WeftError({
        code: "WEFT_IO",
        where: "adapters spilled to disk",
        expected: `${e.size} bytes of an adapter`,
        found: String(bytes.length),
        hint: "something else changed the files: load the adapter again",
      });
    return bytes;
  }
  /** Bytes of an entry are in memory from now on; others make room for them. */
  private hold(e: Entry, bytes: Uint8Array): void {
    const { most } = this;
    const refuse = (found: string, hint: string): never => {
      throw new WeftError({
        code: "WEFT_CAPACITY",
        where: "adapters.memory",
        expected: `at most ${showBytes(most!, Math.floor)} of adapters in memory`,
        found,
        hint,
      });
    };
    if (most !== null) {
      if (e.size > most)
        refuse(`one of ${showBytes(e.size, Math.ceil)}`, "allow more: load({ adapters: { memory } })");
      for (const old of this.resident) {
        if (this.held + e.size <= most) break;
        if (!this.spill)
          refuse(
            showBytes(this.held + e.size, Math.ceil),
            "remove adapters that are not needed, or allow more",
          );
        if (!old.spilled) this.spill!.write(old.id, old.bytes!);
        old.spilled = true;
        this.free(old);
      }
    }
    e.bytes = bytes;
    this.resident.add(e);
    this.held += e.size;
  }
  private free(e: Entry): void {
    if (!e.bytes) return;
    e.bytes = null;
    this.resident.delete(e);
    this.held -= e.size;
  }
  private drop(e: Entry): void {
    this.free(e);
    if (e.spilled) this.spill!.remove(e.id);
    e.spilled = false;
  }
}
