/** The thread's side: an engine that is asked by messages. */
import { jobEnded } from "../../runtime/rest.ts";
import { load, type Piece } from "../engine.ts";
import type { Backend, BackendJob } from "../replay/backend.ts";
import { Local } from "../replay/local.ts";
import { type Asks, dispatch, type Ears, type Message, mapsIn, type Port, type Says } from "./protocol.ts";
import { setHere } from "./transport.ts";
import { fromWire, handedOver, toWire } from "./wire.ts";

/** Something that runs, and how it is told more. */
interface Running {
  readonly abort?: (reason: unknown) => void;
  readonly leave?: () => void;
  readonly credit?: (n: number) => void;
  readonly job?: BackendJob;
}

export function serve(port: Port): void {
  let backend: Backend | null = null;
  let toldEnd = false;
  const running = new Map<number, Running>();
  const say = <K extends keyof Says>(id: number, kind: K, given: Says[K]): void => {
    const { value, memory } = handedOver(given);
    port.post([id, kind, value], memory);
  };
  /** Before anything is rejected for it. */
  const sayEnd = (): void => {
    if (toldEnd || !backend?.ended) return;
    toldEnd = true;
    say(0, "ended", toWire(backend.ended));
  };
  const fail = (id: number, e: unknown): void => {
    sayEnd();
    say(id, "error", toWire(e));
  };
  /** What `work` gives is the answer. */
  const answer = async (id: number, work: () => unknown, args: readonly unknown[] = []): Promise<void> => {
    try {
      say(id, "answer", { value: await work(), maps: mapsIn(args) });
    } catch (e) {
      fail(id, e);
    }
  };

  async function open(id: number, { location, here, options, hears }: Asks["open"]): Promise<void> {
    setHere(here);
    const engine = await load(location, {
      ...options,
      ...(hears.progress && { onProgress: (p) => say(id, "progress", p) }),
      ...(hears.step && { onStep: (t) => say(id, "step", t) }),
    });
    backend = new Local(engine);
    void backend.closed.then(sayEnd);
    say(id, "opened", backend.facts);
  }
  /** Pieces go out as far as they are wanted: who reads slowly has few of them on the way. */
  async function generate(id: number, { options, credit }: Asks["generate"]): Promise<void> {
    const pieces: AsyncGenerator<Piece, void, void> = backend!.generate(options, (asked) =>
      say(id, "asked", asked),
    );
    let wanted = credit;
    let left = false;
    let wake = (): void => {};
    running.set(id, {
      leave: () => {
        left = true;
        void pieces.return();
        wake();
      },
      credit: (n) => {
        wanted += n;
        wake();
      },
    });
    try {
      while (!left) {
        if (wanted > 0) {
          wanted--;
          const got = await pieces.next();
          if (got.done) break;
          say(id, "piece", got.value);
        } else await new Promise<void>((resolve) => (wake = resolve));
      }
      say(id, "end", null);
    } finally {
      running.delete(id);
    }
  }
  async function finetune(id: number, { options, again }: Asks["finetune"]): Promise<void> {
    const job = await backend!.finetune(options, again, {
      event: (e) => say(id, "event", e),
      published: (p, step) => say(id, "published", { p, step }),
      kept: (c) => say(id, "kept", c),
    });
    running.set(id, { job });
    say(id, "started", job.learnsFrom);
    try {
      say(id, "done", await job.done);
    } finally {
      running.delete(id);
    }
  }
  const jobOf = (id: number): BackendJob => {
    const job = running.get(id)?.job;
    if (!job) throw jobEnded(String(id));
    return job;
  };
  const ears: Ears<Asks> = {
    open: (id, o) => void open(id, o).catch((e) => fail(id, e)),
    call: (id, { name, args, abortable }) => {
      if (!abortable) return void answer(id, () => backend!.call(name, ...(args as never)), args);
      const controller = new AbortController();
      running.set(id, { abort: (reason) => controller.abort(reason) });
      const last = { ...(args.at(-1) as object), signal: controller.signal };
      const call = answer(id, () => backend!.call(name, ...([...args.slice(0, -1), last] as never)));
      void call.finally(() => running.delete(id));
    },
    generate: (id, o) => void generate(id, o).catch((e) => fail(id, e)),
    credit: (id, n) => running.get(id)?.credit?.(n),
    leave: (id) => running.get(id)?.leave?.(),
    abort: (id, reason) => running.get(id)?.abort?.(fromWire(reason)),
    finetune: (id, o) => void finetune(id, o).catch((e) => fail(id, e)),
    publish: (id, { job }) => void answer(id, () => jobOf(job).publish()),
    checkpoint: (id, { job, dir }) => void answer(id, () => jobOf(job).checkpoint(dir), [dir]),
    cancel: (id) => running.get(id)?.job?.cancel(),
    ping: (id) => void answer(id, () => null),
    dispose: (id) => void answer(id, async () => backend?.dispose()),
  };
  port.hear((message) => dispatch(ears, message as Message<Asks>));
  say(0, "ready", null);
}
