/** An engine in a worker, as a replay plays on it. */
import { WeftError } from "../../runtime/errors.ts";
import { onAbort } from "../../runtime/signals.ts";
import { MappedStream, Stream } from "../../runtime/stream.ts";
import type { Asked, Piece } from "../engine.ts";
import type { Again } from "../keeping.ts";
import type { FinetuneOptions, GenerateOptions } from "../options.ts";
import type { Backend, BackendJob, Facts, JobEars, Learned } from "../replay/backend.ts";
import type { ArgsOf, CallName, ResultOf } from "../replay/calls.ts";
import { type Deferred, deferred } from "../replay/deferred.ts";
import {
  type Asks,
  dispatch,
  type Ears,
  type Message,
  mapsIn,
  type Says,
  type WorkerPort,
} from "./protocol.ts";
import { fromWire, toWire } from "./wire.ts";

/** Pieces that may be on their way to a reader, and how many are asked for at a time. */
const CREDIT = 16;
const REFILL = 8;
/** Beats without an answer before a worker counts as gone; those of a thread that slept count once. */
const BEATS = 6;

/** What hears of one thing that was asked for. */
type Ear = { readonly [K in keyof Says]?: (value: Says[K]) => void };

export class Remote implements Backend {
  facts!: Facts;
  ended: WeftError | null = null;
  private readonly end = deferred<WeftError>();
  private readonly heard = new Map<number, Ear>();
  private asked = 0;
  private readonly ready = deferred<void>();
  private gone: Promise<void> | null = null;
  private timer: ReturnType<typeof setInterval> | undefined;
  private missed = 0;

  private constructor(private readonly port: WorkerPort) {
    const all = <K extends keyof Says>(kind: K) => [
      kind,
      (id: number, value: Says[K]) => this.heard.get(id)?.[kind]?.(value),
    ];
    const kinds = [
      "answer",
      "error",
      "asked",
      "piece",
      "end",
      "started",
      "event",
      "published",
      "kept",
    ] as const;
    const ears = {
      ...Object.fromEntries(
        [...kinds, "done", "progress", "step", "opened"].map((k) => all(k as keyof Says)),
      ),
      ready: () => this.ready.resolve(),
      ended: (_: number, why: Says["ended"]) => this.die(fromWire(why) as WeftError),
    } as Partial<Ears<Says>>;
    port.hear((message) => dispatch(ears, message as Message<Says>));
    void port.lost.then((found) => this.die(lostWorker(found)));
  }
  /** `beat`: milliseconds between two questions whether it is still there; 0: none is asked. */
  static async open(
    start: () => Promise<WorkerPort>,
    o: Asks["open"],
    hears: Pick<Ear, "progress" | "step">,
    signal: AbortSignal | undefined,
    beat: number,
  ): Promise<Remote> {
    const port = await start();
    const remote = new Remote(port);
    const opened = deferred<Facts>();
    const forget = onAbort(signal, opened.reject);
    try {
      await Promise.race([remote.ready.promise, remote.end.promise, opened.promise]);
      remote.ask("open", o, { ...hears, opened: opened.resolve, error: (e) => opened.reject(fromWire(e)) });
      if (beat) remote.watch(beat);
      remote.facts = await opened.promise;
      return remote;
    } catch (e) {
      await remote.stop();
      throw e;
    } finally {
      forget();
    }
  }
  get closed(): Promise<WeftError> {
    return this.end.promise;
  }

  private ask<K extends keyof Asks>(kind: K, value: Asks[K], ear: Ear): number {
    const id = ++this.asked;
    this.heard.set(id, ear);
    if (this.ended) this.reject(id, this.ended);
    else this.post(id, kind, value);
    return id;
  }
  private post<K extends keyof Asks>(id: number, kind: K, value: Asks[K]): void {
    if (this.ended) return;
    try {
      this.port.post([id, kind, value]);
    } catch (cause) {
      this.reject(id, notSent(cause));
    }
  }
  private reject(id: number, e: unknown): void {
    this.heard.get(id)?.error?.(toWire(e));
  }
  /** Nothing more will be heard of it. */
  private over(id: number): void {
    this.heard.delete(id);
  }
  /** Asked and answered once. */
  private once<K extends keyof Asks>(
    kind: K,
    value: Asks[K],
    { signal, args = [] }: { signal?: AbortSignal | undefined; args?: readonly unknown[] } = {},
  ): Promise<unknown> {
    const answer: Deferred<unknown> = deferred();
    const id = this.ask(kind, value, {
      answer: ({ value, maps }) => {
        for (const [i, map] of mapsIn(args).entries()) {
          map.clear();
          for (const [name, file] of maps[i]!) map.set(name, file);
        }
        answer.resolve(value);
      },
      error: (e) => answer.reject(fromWire(e)),
    });
    const forget = onAbort(signal, (reason) => {
      this.post(id, "abort", toWire(reason));
      answer.reject(reason);
    });
    return answer.promise.finally(() => {
      forget();
      this.over(id);
    });
  }

  call<K extends CallName>(name: K, ...given: ArgsOf<K>): Promise<ResultOf<K>> {
    const args: unknown[] = [...given];
    const last = args.at(-1);
    const signal = typeof last === "object" && last && "signal" in last ? last.signal : undefined;
    if (signal) args.splice(-1, 1, { ...(last as object), signal: undefined });
    const value = { name, args, abortable: Boolean(signal) };
    return this.once("call", value, { signal: signal as AbortSignal | undefined, args }) as Promise<
      ResultOf<K>
    >;
  }
  generate(o: GenerateOptions, hear: (asked: Asked) => void): AsyncGenerator<Piece, void, void> {
    let id = 0;
    let read = 0;
    return new MappedStream(
      () =>
        new Stream<Piece>((stream) => {
          const { signal, ...options } = o;
          const ended = (error: unknown): void => {
            forget();
            this.over(id);
            stream.end(error);
          };
          id = this.ask(
            "generate",
            { options, credit: CREDIT },
            {
              asked: hear,
              piece: (p) => stream.push(p),
              end: () => ended(null),
              error: (e) => ended(fromWire(e)),
            },
          );
          const forget = onAbort(signal, (reason) => {
            this.post(id, "leave", null);
            ended(reason);
          });
          return {
            leave: () => {
              this.post(id, "leave", null);
              ended(null);
            },
          };
        }),
      (p) => {
        if (++read % REFILL === 0) this.post(id, "credit", REFILL);
        return p;
      },
      (p) => p.finish !== null,
    );
  }
  async finetune(options: FinetuneOptions, again: Omit<Again, "keep">, ears: JobEars): Promise<BackendJob> {
    if (options.checkpoint?.dir instanceof Map)
      throw new WeftError({
        code: "WEFT_OPTION",
        where: "checkpoint.dir",
        expected: "a folder that a worker can write to",
        found: "blobs in this thread's memory",
        hint: "a directory handle, storage:NAME or a path; job.checkpoint(map) fills a map of blobs",
      });
    const started = deferred<BackendJob["learnsFrom"]>();
    const done = deferred<Learned>();
    const id = this.ask(
      "finetune",
      { options, again },
      {
        ...{ started: started.resolve, event: ears.event, kept: ears.kept },
        published: ({ p, step }) => ears.published(p, step),
        done: done.resolve,
        error: (e) => {
          started.reject(fromWire(e));
          done.reject(fromWire(e));
        },
      },
    );
    done.promise.catch(() => {}).finally(() => this.over(id));
    return {
      learnsFrom: await started.promise,
      done: done.promise,
      publish: () => this.once("publish", { job: id }) as Promise<string>,
      checkpoint: (dir) => this.once("checkpoint", { job: id, dir }, { args: [dir] }) as Promise<void>,
      cancel: () => this.post(id, "cancel", null),
    };
  }

  /** A worker that answers nothing is as good as gone. */
  private watch(beat: number): void {
    let answered = true;
    const ping = (): void => {
      answered = false;
      this.once("ping", null).then(
        () => {
          answered = true;
          this.missed = 0;
        },
        () => {},
      );
    };
    this.timer = setInterval(() => {
      if (answered) ping();
      else if (++this.missed >= BEATS) this.die(lostWorker(`no answer for ${(BEATS * beat) / 1000} seconds`));
    }, beat);
    (this.timer as { unref?: () => void }).unref?.();
    // What slept with the page and did not wake up is not waited for that long.
    this.port.thawed(() => {
      this.missed = BEATS - 2;
      if (answered) ping();
    });
  }
  /** What waits is rejected, and the thread is let go. */
  private die(why: WeftError): void {
    if (this.ended) return;
    this.ended = why;
    for (const id of [...this.heard.keys()]) this.reject(id, why);
    void this.stop();
    this.end.resolve(why);
  }
  private stop(): Promise<void> {
    clearInterval(this.timer);
    return (this.gone ??= this.port.end());
  }
  async dispose(): Promise<void> {
    // An engine that ended lets its threads go by itself, but not for longer than that takes.
    if (!this.ended) await this.once("dispose", null).catch(() => {});
    await this.stop();
  }
}
const lostWorker = (found: string): WeftError =>
  new WeftError({
    code: "WEFT_DEVICE_LOST",
    where: "worker",
    expected: "a worker that answers",
    found,
    hint: "load the model again",
    retryable: true,
  });
const notSent = (cause: unknown): WeftError =>
  new WeftError({
    code: "WEFT_OPTION",
    where: "worker",
    expected: "options that can be sent to a worker",
    found: (cause as Error)?.message ?? String(cause),
    hint: "functions cannot, but for those that hear: onEvent, onProgress, onStep, onError, onRecover",
    cause,
  });
