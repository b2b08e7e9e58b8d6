/**
 * Threads that play a command list together. Each walks the whole list over one shared memory and does its share of every kernel; between two kernels
 * they meet at a barrier: spin, then wait. Nothing is posted but the end of a list.
 */
import { WeftError } from "./bundle.ts";

/** Words of the control block: lists begun, arrivals at barriers, barriers passed, commands of this list (negative: go home). */
const CONTROL_WORDS = 16;
const MAX_COMMANDS = 4096;
/** Bytes of shared memory that a crew needs: the control block, and a command table that longer lists pass through in pieces. */
export const CREW_BYTES = CONTROL_WORDS * 4 + MAX_COMMANDS * 24;

export interface Post {
  readonly module: WebAssembly.Module;
  readonly memory: WebAssembly.Memory;
  readonly kernels: readonly string[];
  /** Byte addresses: control block, metadata, scratch of the first thread, and bytes of scratch a thread. */
  readonly control: number;
  readonly meta: number;
  readonly scratch: number;
  readonly scratchBytes: number;
  readonly parts: number;
}
export interface Crew {
  /** Play a list of commands, six words each. */
  play(commands: Int32Array): Promise<void>;
  dispose(): void;
}

/**
 * A worker's program, as text: so it starts from sources, from a package and from a bundled page alike. The last to arrive at a barrier opens it; the
 * first thread tells when a list is done, and everybody who fails says why.
 */
const program = `
const node = typeof require === "function";
const port = node ? require("node:worker_threads").parentPort : self;
const begin = async ({ module, memory, kernels, control: at, meta, scratch, scratchBytes, parts, part, spins }) => {
  try {
    const { exports } = await WebAssembly.instantiate(module, { env: { memory } });
    const launch = kernels.map((name) => exports[name]);
    const control = new Int32Array(memory.buffer, at, ${CONTROL_WORDS});
    const commands = new Int32Array(memory.buffer, at + ${CONTROL_WORDS * 4}, ${MAX_COMMANDS * 6});
    const own = scratch + part * scratchBytes;
    let barrier = 0;
    const meet = () => {
      barrier = (barrier + 1) | 0;
      if (Atomics.add(control, 1, 1) + 1 === parts) {
        Atomics.store(control, 1, 0);
        Atomics.store(control, 2, barrier);
        Atomics.notify(control, 2);
        return;
      }
      for (let i = 0; i < spins; i++) if (Atomics.load(control, 2) === barrier) return;
      for (let seen = Atomics.load(control, 2); seen !== barrier; seen = Atomics.load(control, 2)) Atomics.wait(control, 2, seen);
    };
    port.postMessage("ready");
    for (let list = 0; ; ) {
      Atomics.wait(control, 0, list);
      list = Atomics.load(control, 0);
      const words = control[3];
      if (words < 0) break;
      for (let i = 0; i < words; i += 6) {
        launch[commands[i]](commands[i + 1] * 32, meta + commands[i + 2], own, part, parts);
        meet();
      }
      if (part === 0) port.postMessage("done");
    }
  } catch (e) {
    port.postMessage("thread " + part + ": " + (e && e.message || e));
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
  readonly end: () => void;
}
const isNode = typeof process !== "undefined" && Boolean(process.versions?.node);

async function thread(hear: (message: string) => void): Promise<Thread> {
  if (isNode) {
    const { Worker: NodeWorker } = await import("node:worker_threads");
    const w = new NodeWorker(program, { eval: true });
    w.on("message", hear);
    w.on("error", (e) => hear(e.message));
    // An engine that nobody disposes of does not keep the process alive, a list that is being played does.
    w.unref();
    return { post: (m) => w.postMessage(m), hold: (busy) => (busy ? w.ref() : w.unref()), end: () => void w.terminate() };
  }
  const url = URL.createObjectURL(new Blob([program], { type: "text/javascript" }));
  const w = new Worker(url);
  URL.revokeObjectURL(url);
  w.onmessage = (e: MessageEvent<string>) => hear(e.data);
  w.onerror = (e) => hear(e.message || "a worker that does not start (does a content security policy forbid blob: workers?)");
  return { post: (m) => w.postMessage(m), hold: () => {}, end: () => w.terminate() };
}

/** How many threads this machine and page give: 1 where memory cannot be shared; in Node, WEFT_THREADS says otherwise. */
export async function threadsHere(): Promise<number> {
  if (typeof SharedArrayBuffer !== "function") return 1;
  const asked = isNode ? Number(process.env.WEFT_THREADS) : 0;
  return asked || cores();
}
async function cores(): Promise<number> {
  if (isNode) return (await import("node:os")).availableParallelism();
  return (globalThis as { crossOriginIsolated?: boolean }).crossOriginIsolated && typeof Worker === "function" ? navigator.hardwareConcurrency : 1;
}

/** Start `post.parts` threads. Throws WEFT_DEVICE when one does not start. */
export async function openCrew(post: Post): Promise<Crew> {
  const control = new Int32Array(post.memory.buffer, post.control, CONTROL_WORDS);
  const table = new Int32Array(post.memory.buffer, post.control + CONTROL_WORDS * 4, MAX_COMMANDS * 6);
  // A barrier's partner may share this thread's core: then spinning only keeps it from arriving.
  const spins = post.parts <= (await cores()) ? 20_000 : 0;
  let waiting: { resolve: () => void; reject: (e: WeftError) => void } | null = null;
  let failed: WeftError | null = null;
  let ready = 0;
  const threads: Thread[] = [];
  const end = (): void => {
    for (const t of threads) t.end();
  };
  const settle = (error: WeftError | null): void => {
    const w = waiting;
    waiting = null;
    threads[0]?.hold(false);
    if (error) w?.reject(error);
    else w?.resolve();
  };
  const hear = (message: string): void => {
    if (message === "ready") {
      if (++ready === post.parts) settle(null);
    } else if (message === "done") settle(null);
    else if (!failed) {
      failed = new WeftError({ code: "WEFT_DEVICE", where: "wasm", expected: "kernels that run on every thread", found: message });
      // The others wait at a barrier for one who never comes.
      end();
      settle(failed);
    }
  };
  const answer = (start: () => void): Promise<void> =>
    new Promise((resolve, reject) => {
      waiting = { resolve, reject };
      threads[0]!.hold(true);
      start();
    });
  for (let part = 0; part < post.parts; part++) threads.push(await thread(hear));
  await answer(() => threads.forEach((t, part) => t.post({ ...post, part, spins })));
  return {
    play: async (commands) => {
      for (let at = 0; at < commands.length; at += MAX_COMMANDS * 6) {
        if (failed) throw failed;
        const piece = commands.subarray(at, at + MAX_COMMANDS * 6);
        table.set(piece);
        control[3] = piece.length;
        await answer(() => {
          Atomics.add(control, 0, 1);
          Atomics.notify(control, 0);
        });
      }
    },
    dispose: () => {
      control[3] = -1;
      Atomics.add(control, 0, 1);
      Atomics.notify(control, 0);
      end();
    },
  };
}
