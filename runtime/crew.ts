/**
 * Threads that play command lists over one shared memory. A command has a part for each member of its list,
 * and they claim parts one by one: who is free takes the next, and who is kept from running holds nobody up,
 * unless in the middle of a part. The end of a command's last part opens the next; who finds nothing to claim
 * spins, then sleeps, so that its core is free for the one that it waits for. Two lanes may each play a list
 * on members of their own. A list that stops between two commands goes on with other members, so a lane has
 * all threads while the other rests and gives some back within a step. Results are the same bits for any
 * number of threads and of parts, and whoever takes them.
 */
import { disposed, WeftError } from "./bundle.ts";
import { isNode, node } from "./node.ts";
import { onAbort } from "./signals.ts";

/**
 * Words a lane: the turn and the next part to claim in it; parts of it that are over; asked to stop; where
 * the list ends.
 */
const LANE = { claim: 0, over: 1, stop: 2, end: 3, words: 8 } as const;
/**
 * A turn is one playing of one command, numbered on and on, so that a claim tells which command it is of: a
 * thread that slept through lists claims nothing of those that came after.
 */
const PART_BITS = 10;
const TURNS = 2 ** (32 - PART_BITS);
/**
 * Words a thread: lists announced, odd while the others are written; then what the last one is: lane, parts
 * of a command, first word, one past the last, and the turn of the first command.
 */
const POST = { begun: 0, lane: 1, parts: 2, from: 3, to: 4, turn: 5, words: 8 } as const;
const MAX_COMMANDS = 4096;
const TABLE_WORDS = MAX_COMMANDS * 6;
/** Looks at a lane's turn before sleeping: some of a hundred microseconds, as sleeping and waking cost. */
const SPINS = 20_000;
/**
 * Bytes of shared memory that a crew needs: control words, and a command table a lane that longer lists pass
 * through in pieces.
 */
export const crewBytes = (threads: number, lanes: number): number =>
  4 * (lanes * (LANE.words + TABLE_WORDS) + threads * POST.words);

export interface CrewOptions {
  readonly module: WebAssembly.Module;
  readonly memory: WebAssembly.Memory;
  readonly kernels: readonly string[];
  readonly threads: number;
  /**
   * Byte addresses: control words; scratch of the first thread, and its bytes a thread; bind records and
   * metadata of each lane.
   */
  readonly control: number;
  readonly scratch: number;
  readonly scratchBytes: number;
  readonly lanes: readonly { readonly bind: number; readonly meta: number }[];
  /** Gives up threads that have not started when it aborts. */
  readonly signal?: AbortSignal | undefined;
  /** Milliseconds that starting may take; 0 or none: as long as it wants. */
  readonly timeout?: number | undefined;
}
export interface Crew {
  /**
   * Play a list of commands, six words each. A lane plays one at a time. Rejects when a thread died, or the
   * crew was disposed of.
   */
  play(lane: number, commands: Int32Array): Promise<void>;
  /** The lane's members may help the other until it plays again. */
  rest(lane: number): void;
  /** Resolves with why, once a thread died; pending as long as all live. */
  readonly lost: Promise<WeftError>;
  /** End the threads, whatever they do; resolves when they are gone. */
  dispose(): Promise<void>;
}

/**
 * A worker's program, as text: so it starts from sources, from a package and from a bundled page alike. Who
 * ends a command's last part ends the list there if the lane was asked to stop, and tells of a list's end.
 * Everybody who fails says why.
 */
const program = `
const node = typeof require === "function";
const port = node ? require("node:worker_threads").parentPort : self;
const begin = async ({ module, memory, kernels, control, lanes, scratch, thread, spins }) => {
  try {
    const { exports } = await WebAssembly.instantiate(module, { env: { memory } });
    const launch = kernels.map((name) => exports[name]);
    const words = (at, n) => new Int32Array(memory.buffer, at, n);
    const states = lanes.map((_, l) => words(control + l * ${LANE.words * 4}, ${LANE.words}));
    const posts = control + lanes.length * ${LANE.words * 4};
    const post = words(posts + thread * ${POST.words * 4}, ${POST.words});
    const tables = lanes.map((lane) => words(lane.table, ${TABLE_WORDS}));
    const wait = (state, claim) => {
      for (let i = 0; i < spins; i++) if (Atomics.load(state, ${LANE.claim}) !== claim) return;
      Atomics.wait(state, ${LANE.claim}, claim);
    };
    const play = (lane, parts, from, to, turn) => {
      const state = states[lane];
      const commands = tables[lane];
      const { bind, meta } = lanes[lane];
      for (;;) {
        const claim = Atomics.load(state, ${LANE.claim});
        const part = claim & ${2 ** PART_BITS - 1};
        const i = from + (((claim >>> ${PART_BITS}) - turn) & ${TURNS - 1}) * 6;
        if (i >= to || i >= Atomics.load(state, ${LANE.end})) return;
        if (part >= parts) wait(state, claim);
        else if (Atomics.compareExchange(state, ${LANE.claim}, claim, claim + 1) === claim) {
          launch[commands[i]](bind + commands[i + 1] * 32, meta + commands[i + 2], scratch, part, parts);
          if (Atomics.add(state, ${LANE.over}, 1) + 1 < parts) continue;
          const next = i + 6;
          Atomics.store(state, ${LANE.over}, 0);
          if (Atomics.load(state, ${LANE.stop})) Atomics.store(state, ${LANE.end}, next);
          const last = next >= Atomics.load(state, ${LANE.end});
          Atomics.store(state, ${LANE.claim}, ((claim >>> ${PART_BITS}) + 1) << ${PART_BITS});
          Atomics.notify(state, ${LANE.claim});
          if (last) return port.postMessage(lane);
        }
      }
    };
    port.postMessage("ready");
    for (let heard = 0; ; ) {
      const list = Atomics.load(post, ${POST.begun});
      // A call to wake may come after the list that it was for.
      if (list === heard || list & 1) {
        Atomics.wait(post, ${POST.begun}, list);
        continue;
      }
      const [lane, parts, from, to, turn] = [1, 2, 3, 4, 5].map((word) => Atomics.load(post, word));
      // Written anew meanwhile: that list is over.
      if (Atomics.load(post, ${POST.begun}) !== list) continue;
      heard = list;
      play(lane, parts, from, to, turn);
    }
  } catch (e) {
    port.postMessage("thread " + thread + ": " + (e && e.message || e));
  }
  if (node) port.close();
  else close();
};
if (node) port.once("message", begin);
else onmessage = (e) => begin(e.data);
`;

interface Thread {
  readonly post: (message: unknown) => void;
  readonly hold: (busy: boolean) => void;
  readonly end: () => Promise<unknown>;
}

async function thread(hear: (message: string | number) => void): Promise<Thread> {
  if (isNode) {
    const { threads } = await node();
    const w = new threads.Worker(program, { eval: true });
    w.on("message", hear);
    w.on("error", (e) => hear(e.message));
    w.on("messageerror", (e) => hear(e.message));
    // Not only by an error: memory limits and process.exit() end a thread too.
    w.on("exit", (code) => hear(`a thread that ended with code ${code}`));
    // An engine that nobody disposes of does not keep the process alive, a list that is being played does.
    w.unref();
    return {
      post: (m) => w.postMessage(m),
      hold: (busy) => (busy ? w.ref() : w.unref()),
      end: () => w.terminate(),
    };
  }
  const url = URL.createObjectURL(new Blob([program], { type: "text/javascript" }));
  const w = new Worker(url);
  URL.revokeObjectURL(url);
  w.onmessage = (e: MessageEvent<string | number>) => hear(e.data);
  w.onerror = (e) =>
    hear(e.message || "a worker that does not start (does a content security policy forbid blob: workers?)");
  w.onmessageerror = () => hear("a message that cannot be read");
  return { post: (m) => w.postMessage(m), hold: () => {}, end: async () => w.terminate() };
}

/**
 * How many threads this machine and page give: 1 where memory cannot be shared; in Node, WEFT_THREADS says
 * otherwise.
 */
export async function threadsHere(): Promise<number> {
  if (typeof SharedArrayBuffer !== "function") return 1;
  const asked = isNode ? Number(process.env.WEFT_THREADS) : 0;
  return asked || cores();
}
async function cores(): Promise<number> {
  if (isNode) return (await node()).os.availableParallelism();
  return (globalThis as { crossOriginIsolated?: boolean }).crossOriginIsolated && typeof Worker === "function"
    ? navigator.hardwareConcurrency
    : 1;
}

/**
 * A list on its way: its piece in the lane's table, from word `from` on; who plays it now, or null between
 * two starts.
 */
interface Playing {
  readonly words: number;
  from: number;
  members: readonly number[] | null;
  readonly resolve: () => void;
  readonly reject: (e: unknown) => void;
}

/**
 * Start a crew of threads. Throws WEFT_DEVICE when one does not start, in time where there is a limit; the
 * reason of an abort.
 */
export async function openCrew(o: CrewOptions): Promise<Crew> {
  const words = (at: number, n: number): Int32Array => new Int32Array(o.memory.buffer, at, n);
  const states = o.lanes.map((_, l) => words(o.control + l * LANE.words * 4, LANE.words));
  const postsAt = o.control + o.lanes.length * LANE.words * 4;
  const tablesAt = postsAt + o.threads * POST.words * 4;
  const posts = Array.from({ length: o.threads }, (_, t) => words(postsAt + t * POST.words * 4, POST.words));
  const lanes = o.lanes.map((lane, l) => ({ ...lane, table: tablesAt + l * TABLE_WORDS * 4 }));
  const tables = lanes.map((lane) => words(lane.table, TABLE_WORDS));
  // Who is waited for may need this thread's core: then spinning only keeps it from running.
  const spins = o.threads <= (await cores()) ? SPINS : 0;
  const all = Array.from({ length: o.threads }, (_, t) => t);
  const half = Math.max(1, o.threads >> 1);
  const playing: (Playing | null)[] = lanes.map(() => null);
  const active = lanes.map(() => false);
  const turns = lanes.map(() => 0);
  let failed: unknown = null;
  let ready = 0;
  let starting: { resolve: () => void; reject: (e: unknown) => void } | null = null;
  let lose: (e: WeftError) => void = () => {};
  const lost = new Promise<WeftError>((resolve) => {
    lose = resolve;
  });
  const threads: Thread[] = [];

  /** The threads that a lane should have now: all, or its side while both have something to play. */
  const shareOf = (lane: number): readonly number[] =>
    !active.every(Boolean) || lanes.length === 1 ? all : lane === 0 ? all.slice(0, half) : all.slice(half);
  const begin = (p: Playing, lane: number, members: readonly number[]): void => {
    p.members = members;
    const state = states[lane]!;
    const parts = members.length;
    const turn = turns[lane]!;
    // One past what the list can take: none of its turns is another's.
    turns[lane] = (turn + (p.words - p.from) / 6 + 1) % TURNS;
    state[LANE.over] = 0;
    state[LANE.stop] = 0;
    state[LANE.end] = p.words;
    Atomics.store(state, LANE.claim, turn << PART_BITS);
    for (const t of members) {
      const post = posts[t]!;
      Atomics.add(post, POST.begun, 1);
      [lane, parts, p.from, p.words, turn].forEach((x, i) => void Atomics.store(post, POST.lane + i, x));
      Atomics.add(post, POST.begun, 1);
      Atomics.notify(post, POST.begun);
    }
  };
  /**
   * Lists on members that are not their lane's share stop at the end of a command; lists that wait begin once
   * their members are free.
   */
  const balance = (): void => {
    threads[0]?.hold(playing.some(Boolean));
    playing.forEach((p, lane) => {
      if (p?.members && String(p.members) !== String(shareOf(lane)))
        Atomics.store(states[lane]!, LANE.stop, 1);
    });
    playing.forEach((p, lane) => {
      if (!p || p.members) return;
      const share = shareOf(lane);
      if (share.every((t) => !playing.some((q) => q?.members?.includes(t)))) begin(p, lane, share);
    });
  };
  /** Nothing plays any more: threads end, and who waits for them is told. The first reason stays. */
  const end = async (reason: unknown): Promise<void> => {
    failed ??= reason;
    starting?.reject(failed);
    for (const p of playing.splice(0, playing.length, ...lanes.map(() => null))) p?.reject(failed);
    threads[0]?.hold(false);
    await Promise.all(threads.map((t) => t.end()));
  };
  const fail = (found: string): void => {
    const error = new WeftError({
      code: "WEFT_DEVICE",
      where: "wasm",
      expected: "kernels that run on every thread",
      found,
    });
    // The others wait for the end of a part that never comes.
    void end(error);
    lose(error);
  };
  const hear = (message: string | number): void => {
    if (failed) return;
    if (message === "ready") {
      if (++ready === o.threads) starting!.resolve();
    } else if (typeof message === "string") fail(message);
    else {
      const p = playing[message]!;
      p.members = null;
      p.from = states[message]![LANE.end]!;
      if (p.from >= p.words) {
        playing[message] = null;
        p.resolve();
      }
      balance();
    }
  };
  const forget = onAbort(o.signal, (reason) => void end(reason));
  const timer = o.timeout
    ? setTimeout(() => fail(`${ready} of ${o.threads} threads ready after ${o.timeout} ms`), o.timeout)
    : undefined;
  try {
    for (const _ of all) threads.push(await thread(hear));
    await new Promise<void>((resolve, reject) => {
      starting = { resolve, reject };
      if (failed) reject(failed);
      threads.forEach((t, i) => {
        t.hold(true);
        t.post({
          module: o.module,
          memory: o.memory,
          kernels: o.kernels,
          control: o.control,
          lanes,
          scratch: o.scratch + i * o.scratchBytes,
          thread: i,
          spins,
        });
      });
    });
  } catch (e) {
    await end(e);
    throw e;
  } finally {
    clearTimeout(timer);
    forget();
    starting = null;
  }
  for (const t of threads) t.hold(false);
  return {
    play: async (lane, commands) => {
      for (let at = 0; at < commands.length; at += TABLE_WORDS) {
        if (failed) throw failed;
        const piece = commands.subarray(at, at + TABLE_WORDS);
        tables[lane]!.set(piece);
        active[lane] = true;
        await new Promise<void>((resolve, reject) => {
          playing[lane] = { words: piece.length, from: 0, members: null, resolve, reject };
          balance();
        });
      }
    },
    rest: (lane) => {
      active[lane] = false;
      if (!failed) balance();
    },
    lost,
    dispose: () => end(disposed("threads")),
  };
}
