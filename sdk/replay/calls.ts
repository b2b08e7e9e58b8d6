/**
 * What is asked of an engine and answered once, by name. The table is all that there is: who computes in
 * another thread, and who asks again of another engine, derive their types from it.
 */
import type { Published } from "../../runtime/adapters.ts";
import type { AdapterConfig } from "../../runtime/content.ts";
import type { Engine } from "../engine.ts";

type Of<F extends (...a: never[]) => unknown> = Parameters<F>;
type Adapters = Engine["adapters"];
type Handle = ReturnType<Adapters["get"]>;

/** What an adapter is, as of when it was asked for. */
export interface AdapterFacts {
  readonly ref: string;
  readonly generation: number;
  /** Identity of the base weights that it was trained on. */
  readonly base: string;
  readonly config: AdapterConfig;
  /** What whoever uses it should know. */
  readonly warnings: readonly string[];
}
const factsOf = ({ ref, generation, base, config, warnings }: Handle): AdapterFacts => ({
  ...{ ref, generation, base, config, warnings },
});
/** What was made, and what it takes to make it again. */
interface Made {
  readonly facts: AdapterFacts;
  readonly published: Published;
}
const made = (e: Engine, handle: Handle): Made => ({
  facts: factsOf(handle),
  published: e.core.adapters.published(handle.ref),
});

export const calls = {
  encode: (e: Engine, ...a: Of<Engine["encode"]>) => e.encode(...a),
  decode: (e: Engine, ...a: Of<Engine["decode"]>) => e.decode(...a),
  promptIds: (e: Engine, ...a: Of<Engine["promptIds"]>) => e.promptIds(...a),
  memory: (e: Engine) => e.memory(),
  score: (e: Engine, ...a: Of<Engine["score"]>) => e.score(...a),
  /** `fixed`: what stays merged, whatever its name comes to mean. */
  merge: async (e: Engine, ...a: Of<Engine["merge"]>) => {
    const fixed = a[0] === null ? null : e.core.adapters.fixed(a[0]);
    return { merged: await e.merge(...a), fixed };
  },
  saveModel: (e: Engine, ...a: Of<Engine["saveModel"]>) => e.saveModel(...a),
  load: async (e: Engine, ...a: Of<Adapters["load"]>) => made(e, await e.adapters.load(...a)),
  combine: async (e: Engine, ...a: Of<Adapters["combine"]>) => made(e, await e.adapters.combine(...a)),
  adapter: (e: Engine, ref: string) => factsOf(e.adapters.get(ref)),
  list: (e: Engine) => e.adapters.list(),
  remove: (e: Engine, ...a: Of<Adapters["remove"]>) => e.adapters.remove(...a),
  save: (e: Engine, ref: string, ...a: Of<Handle["save"]>) => e.adapters.get(ref).save(...a),
  compress: (e: Engine, ref: string, ...a: Of<Handle["compress"]>) => e.adapters.get(ref).compress(...a),
  toBlobs: (e: Engine, ref: string, ...a: Of<Handle["toBlobs"]>) => e.adapters.get(ref).toBlobs(...a),
  bringBack: (e: Engine, name: string, last: number, generations: readonly Published[]) =>
    e.core.adapters.bringBack(name, last, generations),
} satisfies Record<string, (e: Engine, ...args: never[]) => unknown>;

export type CallName = keyof typeof calls;
export type ArgsOf<K extends CallName> =
  Parameters<(typeof calls)[K]> extends [Engine, ...infer A] ? A : never;
export type ResultOf<K extends CallName> = Awaited<ReturnType<(typeof calls)[K]>>;
