/**
 * Contents of adapters within a budget of memory: past it, the least recently used are put outside, from
 * which they are read when they are needed; or, where there is no outside, refused.
 */
import { showBytes, WeftError } from "./bundle.ts";
import type { Held, Holder } from "./kept.ts";

/** Bytes by number, outside of memory. Its calls return when they are done; what fails throws WEFT_IO. */
export interface Spill {
  write(id: number, bytes: Uint8Array): void;
  read(id: number): Uint8Array;
  remove(id: number): void;
  /** All of it is gone. */
  close(): void;
}
interface Entry {
  readonly id: number;
  readonly size: number;
  /** Null where it is in the spill alone. */
  bytes: Uint8Array | null;
  spilled: boolean;
}
export class Resident implements Holder {
  /** Those in memory, the least recently used first. */
  private readonly entries = new Set<Entry>();
  private held = 0;
  private made = 0;
  constructor(
    /** Bytes that may be held in memory. */
    private readonly most: number,
    /** Where the rest goes; null: nowhere. */
    private readonly spill: Spill | null,
  ) {}

  get bytes(): number {
    return this.held;
  }
  /** Throws WEFT_CAPACITY where there is no room, WEFT_IO where none can be made. */
  hold(bytes: Uint8Array): Held {
    const e: Entry = { id: ++this.made, size: bytes.length, bytes: null, spilled: false };
    this.take(e, bytes);
    return { read: () => this.read(e), drop: () => this.drop(e) };
  }
  close(): void {
    this.spill?.close();
  }
  private read(e: Entry): Uint8Array {
    if (!e.bytes) this.take(e, this.fetch(e));
    // The most recently used is the last.
    this.entries.delete(e);
    this.entries.add(e);
    return e.bytes!;
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
  private take(e: Entry, bytes: Uint8Array): void {
    const { most } = this;
    const refuse = (found: string, hint: string): never => {
      throw new WeftError({
        code: "WEFT_CAPACITY",
        where: "adapters.memory",
        expected: `at most ${showBytes(most, Math.floor)} of adapters in memory`,
        found,
        hint,
      });
    };
    if (e.size > most)
      refuse(`one of ${showBytes(e.size, Math.ceil)}`, "allow more: load({ adapters: { memory } })");
    for (const old of this.entries) {
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
    e.bytes = bytes;
    this.entries.add(e);
    this.held += e.size;
  }
  private free(e: Entry): void {
    if (!e.bytes) return;
    e.bytes = null;
    this.entries.delete(e);
    this.held -= e.size;
  }
  private drop(e: Entry): void {
    this.free(e);
    if (e.spilled) this.spill!.remove(e.id);
    e.spilled = false;
  }
}
