/** An engine in this thread, as a replay plays on it. */
import type { WeftError } from "../../runtime/errors.ts";
import type { Asked, Engine, Piece } from "../engine.ts";
import type { Again } from "../keeping.ts";
import type { FinetuneOptions, GenerateOptions } from "../options.ts";
import { type Backend, type BackendJob, type Facts, factsOf, type JobEars } from "./backend.ts";
import { type ArgsOf, type CallName, calls, type ResultOf } from "./calls.ts";

export class Local implements Backend {
  readonly facts: Facts;
  constructor(private readonly engine: Engine) {
    this.facts = factsOf(engine);
  }
  get ended(): WeftError | null {
    return this.engine.core.ended;
  }
  get closed(): Promise<WeftError> {
    return this.engine.closed;
  }
  async call<K extends CallName>(name: K, ...args: ArgsOf<K>): Promise<ResultOf<K>> {
    const answer = calls[name] as (e: Engine, ...a: unknown[]) => ResultOf<K> | Promise<ResultOf<K>>;
    return answer(this.engine, ...args);
  }
  generate(o: GenerateOptions, hear: (asked: Asked) => void): AsyncGenerator<Piece, void, void> {
    return this.engine.generate(o, hear);
  }
  async finetune(o: FinetuneOptions, again: Omit<Again, "keep">, ears: JobEars): Promise<BackendJob> {
    const { engine } = this;
    const onEvent: FinetuneOptions["onEvent"] = (e) => {
      if (e.type === "publish") ears.published(engine.core.adapters.published(e.generation), e.step);
      ears.event(e);
    };
    const job = await engine.finetune({ ...o, onEvent }, { ...again, keep: ears.kept });
    const done = job.done.then((result) => {
      const { base, invariance } = engine.core;
      return { result, base, invariance };
    });
    done.catch(() => {});
    return {
      learnsFrom: job.learnsFrom,
      done,
      publish: () => job.publish(),
      checkpoint: (dir) => job.checkpoint(dir),
      cancel: () => job.cancel(),
    };
  }
  dispose(): Promise<void> {
    return this.engine.dispose();
  }
}
