/** host.wasm from TypeScript: typed views on its memory, at the addresses it exports. */
import {
  CANDIDATE_WORDS,
  COMMAND_WORDS,
  COUNTER,
  EVENT_WORDS,
  type HostConfig,
  MAX_BIASES,
  MAX_RAISED,
  MAX_STOPS,
  type Manifest,
  MOST_PARTS,
  sizeNames,
  WeftError,
} from "./bundle.ts";
import type { Families } from "./device.ts";
import { type Request, setTokens } from "./requests.ts";

/** Requests that may wait where the load does not say. */
export const MAX_QUEUED = 4096;

export interface HostExports {
  readonly memory: WebAssembly.Memory;
  init(few: number, lanes: number, queued: number, candidates: number): void;
  addrTables(): number;
  addrMeta(lane: number): number;
  addrCommands(lane: number): number;
  addrEvents(lane: number): number;
  addrLogits(): number;
  addrPicked(): number;
  addrWhole(): number;
  addrRaised(): number;
  addrLogSums(): number;
  addrTokens(seq: number): number;
  addrLabels(seq: number): number;
  addrHyper(job: number): number;
  addrStops(seq: number): number;
  addrBiases(seq: number): number;
  addrOffer(job: number): number;
  addrMicro(job: number): number;
  addrRowSeq(lane: number): number;
  counterOf(lane: number, i: number): number;
  /** Blocks that may be had; of these, those that are kept for their prefix until somebody needs room. */
  freeBlocks(): number;
  keptBlocks(): number;
  addrHolders(): number;
  isPrefix(block: number): number;
  prefixBefore(block: number): number;
  addrTable(seq: number): number;
  blocksOfSequence(seq: number): number;
  foundOf(seq: number): number;
  share(): void;
  /** A request takes no rows from now on, or (0) it does again. */
  pause(seq: number, on: number): void;
  addrFreeBlocks(): number;
  blocksTotal(): number;
  slotsInUse(): number;
  kindOf(seq: number): number;
  jobOf(seq: number): number;
  saveBase(seq: number): number;
  setMask(slot: number, word: number, mask: number): void;
  setSampling(
    seq: number,
    temperature: number,
    topK: number,
    topP: number,
    minP: number,
    penalty: number,
    presence: number,
    frequency: number,
    biases: number,
    seed: number,
    stops: number,
    said: number,
    reported: number,
  ): void;
  setRow(seq: number, weight: number, dropKey: number, dropP: number): void;
  addrParts(): number;
  /**
   * A request of a caller for an adapter (0: the base) that takes `pages`, or of `parts` parts, or of a job,
   * where one is given; it shares prefixes with those of its adapter and salt (0: none). NONE: no place.
   */
  submit(
    kind: number,
    length: number,
    limit: number,
    virtual: number,
    adapter: number,
    pages: number,
    parts: number,
    job: number,
    salt: number,
  ): number;
  withdraw(ticket: number): void;
  /** 1: the sequence is closed. 0: it is in a list on its way, whose commit will say that it finished. */
  cancel(seq: number): number;
  forget(adapter: number): void;
  forgetAll(): void;
  slotOf(adapter: number): number;
  pagesOf(slot: number): number;
  addrPages(slot: number): number;
  freePages(): number;
  pagesInUse(): number;
  sumFits(parts: number, pages: number): number;
  jobSlot(job: number, pages: number): void;
  jobOpen(job: number, cls: number, optimizer: number): void;
  jobOffer(job: number, rows: number, most: number, keep: number, last: number): void;
  jobClose(job: number): void;
  decide(lane: number): number;
  want(micros: number): void;
  schedule(lane: number, budget: number, idle: number): number;
  settle(lane: number): number;
  commit(lane: number, micros?: number): number;
}

/** The tokens of a request that waits. */
type PromptOf = (ticket: number) => Pick<Request, "prompt" | "virtual">;

/** The module, the same for every bundle of a version, and what this one tells it. */
export interface HostFiles {
  readonly wasm: BufferSource;
  readonly config: HostConfig;
}
/** A bundle's, by what reads its files. Throws WEFT_BUNDLE. */
export async function readHost(read: (name: string) => Promise<Uint8Array>): Promise<HostFiles> {
  const wasm = (await read("host.wasm")) as BufferSource;
  return { wasm, config: hostConfigOf(await read("host.json")) };
}
function hostConfigOf(bytes: Uint8Array): HostConfig {
  let found: unknown;
  try {
    found = JSON.parse(new TextDecoder().decode(bytes));
  } catch {
    // Told below: what is not JSON has no numbers either.
  }
  const { numbers, tables } = (found ?? {}) as Partial<HostConfig>;
  if (![Object.values(numbers ?? [""]), tables ?? [""]].flat().every(Number.isInteger))
    throw new WeftError({
      code: "WEFT_BUNDLE",
      where: "host.json",
      expected: "numbers by name, and tables of numbers",
      found: "something else",
      hint: "compile the bundle anew",
    });
  return found as HostConfig;
}

export class Host {
  private promptOf: PromptOf | null = null;
  private constructor(
    readonly exports: HostExports,
    private readonly manifest: Manifest,
    private readonly metaWords: number,
  ) {}
  /** `families`, `lanes` and `picks` as the device says; `queued` requests may wait. */
  static async open(
    manifest: Manifest,
    metaWords: number,
    {
      families: { fewRows },
      lanes,
      queued = MAX_QUEUED,
      picks = false,
    }: {
      readonly families: Families;
      readonly lanes: number;
      readonly queued?: number;
      readonly picks?: boolean;
    },
    { wasm, config }: HostFiles,
  ): Promise<Host> {
    // A string of AssemblyScript: UTF-16, its bytes counted in the word before.
    const text = (at: number): string => {
      const { buffer } = exports.memory;
      const bytes = new Uint32Array(buffer, at - 4, 1)[0]!;
      return String.fromCharCode(...new Uint16Array(buffer, at, bytes / 2));
    };
    const bad = (expected: string, found: string, cause?: unknown): WeftError =>
      new WeftError({ code: "WEFT_BUNDLE", where: "host.wasm", expected, found, cause });
    const { capacities } = manifest;
    const imports = {
      sizes: Object.fromEntries(sizeNames.map((name) => [name, capacities[name]])),
      bundle: config.numbers,
      env: {
        prompt: (ticket: number, at: number) => {
          const to = new Int32Array(exports.memory.buffer, at, capacities.context);
          setTokens(to, host.promptOf!(ticket));
        },
        abort: (what: number, _file: number, line: number) => {
          throw new WeftError({
            code: "WEFT_BUNDLE",
            where: "host.wasm",
            expected: "room for every step",
            found: `too many ${what ? text(what) : `of what line ${line} counts`}`,
            hint: "compile the bundle anew",
          });
        },
      },
    };
    let exports: HostExports;
    let host: Host;
    try {
      const made = (await WebAssembly.instantiate(wasm, imports)) as unknown as {
        instance: WebAssembly.Instance;
      };
      exports = made.instance.exports as unknown as HostExports;
      new Int32Array(exports.memory.buffer, exports.addrTables(), config.tables.length).set(config.tables);
      exports.init(fewRows ?? -1, lanes, queued, picks ? 1 : 0);
      host = new Host(exports, manifest, metaWords);
      if (!host.fits(lanes)) throw bad("the capacities of its manifest", "a host of others");
      return host;
    } catch (cause) {
      throw cause instanceof WeftError ? cause : bad("a module that starts", (cause as Error).message, cause);
    }
  }
  /** Was it compiled for this manifest? Its arrays are as long as the capacities say, inside its memory. */
  private fits(lanes: number): boolean {
    const { sequences, context, blocks, jobs } = this.manifest.capacities;
    const { exports } = this;
    const [first, last] = [exports.addrTokens(0), exports.addrTokens(sequences - 1)];
    if (exports.blocksTotal() !== blocks || last - first !== (sequences - 1) * context * 4) return false;
    this.logits();
    this.logSums();
    this.picked();
    for (let lane = 0; lane < lanes; lane++) this.meta(lane);
    for (const seq of [0, sequences - 1]) {
      this.tokens(seq);
      this.labels(seq);
      this.stops(seq);
      this.setBiases(seq, []);
    }
    this.hyper(jobs - 1);
    this.offer(jobs - 1);
    this.micro(jobs - 1);
    return true;
  }
  /** Requests share what they compute of equal prefixes from now on. */
  share(promptOf: PromptOf): void {
    this.promptOf = promptOf;
    this.exports.share();
  }
  private get buffer(): ArrayBuffer {
    return this.exports.memory.buffer;
  }
  meta(lane: number): Uint32Array {
    return new Uint32Array(this.buffer, this.exports.addrMeta(lane), this.metaWords);
  }
  commands(lane: number, count: number): Int32Array {
    return new Int32Array(this.buffer, this.exports.addrCommands(lane), count * COMMAND_WORDS);
  }
  /** [type, a, b, c] of each event. */
  events(lane: number, count: number): Int32Array {
    return new Int32Array(this.buffer, this.exports.addrEvents(lane), count * EVENT_WORDS);
  }
  logits(): Float32Array {
    return new Float32Array(
      this.buffer,
      this.exports.addrLogits(),
      this.manifest.capacities.headRows * this.manifest.model.vocab,
    );
  }
  /** What the device picked out of each logits row, CANDIDATE_WORDS; null where it picks nothing. */
  picked(): Float32Array | null {
    const { exports, manifest } = this;
    if (!exports.counterOf(0, COUNTER.picks)) return null;
    const words = manifest.capacities.headRows * CANDIDATE_WORDS;
    return new Float32Array(this.buffer, exports.addrPicked(), words);
  }
  /** Of each logits row of a step: is it to be read whole? */
  whole(lane: number): Int32Array {
    const { exports } = this;
    return new Int32Array(this.buffer, exports.addrWhole(), exports.counterOf(lane, COUNTER.head));
  }
  /** Ids of each logits row of a step whose logits are read one by one. */
  raised(lane: number): number[][] {
    const { exports } = this;
    const rows = exports.counterOf(lane, COUNTER.head);
    const all = new Int32Array(this.buffer, exports.addrRaised(), rows * (MAX_RAISED + 1));
    return Array.from({ length: rows }, (_, h) => {
      const at = h * (MAX_RAISED + 1);
      return [...all.subarray(at + 1, at + 1 + all[at]!)];
    });
  }
  /** ln Σ exp of each logits row, after a commit. */
  logSums(): Float64Array {
    return new Float64Array(this.buffer, this.exports.addrLogSums(), this.manifest.capacities.headRows);
  }
  tokens(seq: number): Int32Array {
    return new Int32Array(this.buffer, this.exports.addrTokens(seq), this.manifest.capacities.context);
  }
  labels(seq: number): Int32Array {
    return new Int32Array(this.buffer, this.exports.addrLabels(seq), this.manifest.capacities.context);
  }
  hyper(job: number): Float32Array {
    return new Float32Array(this.buffer, this.exports.addrHyper(job), this.manifest.updates.words.length);
  }
  stops(seq: number): Int32Array {
    return new Int32Array(this.buffer, this.exports.addrStops(seq), MAX_STOPS);
  }
  /** What is added to the logits of tokens. */
  setBiases(seq: number, biases: readonly (readonly [id: number, bias: number])[]): void {
    const at = this.exports.addrBiases(seq);
    const ids = new Int32Array(this.buffer, at, 2 * MAX_BIASES);
    const values = new Float32Array(this.buffer, at, 2 * MAX_BIASES);
    biases.forEach(([id, bias], i) => {
      ids[2 * i] = id;
      values[2 * i + 1] = bias;
    });
  }
  /** Lengths of the rows that a job offers: as many as a micro-batch may have. */
  offer(job: number): Int32Array {
    return new Int32Array(this.buffer, this.exports.addrOffer(job), this.manifest.capacities.sequences);
  }
  /** Sequences of a job's micro-batch, in the order of its rows. */
  micro(job: number): Int32Array {
    return new Int32Array(this.buffer, this.exports.addrMicro(job), this.manifest.capacities.sequences);
  }
  /** [adapter, pages] of each part of a sum that is asked for. */
  parts(): Int32Array {
    return new Int32Array(this.buffer, this.exports.addrParts(), MOST_PARTS * 2);
  }
  /** Numbers of a slot's pages. */
  pages(slot: number): Int32Array {
    return new Int32Array(this.buffer, this.exports.addrPages(slot), this.exports.pagesOf(slot));
  }
  /** Ids of the cache blocks with nothing in them. */
  freeBlockIds(): Int32Array {
    const { exports } = this;
    return new Int32Array(this.buffer, exports.addrFreeBlocks(), exports.counterOf(0, COUNTER.free));
  }
  /** How many sequences hold each block. */
  holders(): Int32Array {
    return new Int32Array(this.buffer, this.exports.addrHolders(), this.manifest.capacities.blocks);
  }
  /** Blocks of a sequence, in order. */
  table(seq: number): Int32Array {
    return new Int32Array(this.buffer, this.exports.addrTable(seq), this.exports.blocksOfSequence(seq));
  }
  /** Sequence of each row of a lane's last step. */
  rowSequences(lane: number): Int32Array {
    return new Int32Array(
      this.buffer,
      this.exports.addrRowSeq(lane),
      this.exports.counterOf(lane, COUNTER.rows),
    );
  }
}
