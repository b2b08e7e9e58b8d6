/** The thin door: text in, text out, over the runtime's engine of ids. */

import type { AdapterRef, Generation } from "../runtime/adapters.ts";
import { type Manifest, WeftError } from "../runtime/bundle.ts";
import type { Engine as Core, Finish, Merged, MergeOptions, Score } from "../runtime/engine.ts";
import { readVerified } from "../runtime/load.ts";
import { openEngine, readEntries } from "../runtime/loading.ts";
import {
  adapterEntries,
  checked,
  picked,
  requestEntries,
  scoreEntries,
  trainEntries,
} from "../runtime/options.ts";
import { type BundleReader, openReader, type Place } from "../runtime/reader.ts";
import type { Remote } from "../runtime/remote.ts";
import { abortable, throwIfAborted } from "../runtime/signals.ts";
import { MappedStream } from "../runtime/stream.ts";
import type { Job as CoreJob, Row, TrainEvent, TrainOptions, TrainResult } from "../runtime/trainer.ts";
import { AdapterHandle } from "./adapter.ts";
import type { Grounds } from "./checkpoint.ts";
import type { DataRow } from "./data.ts";
import { decodeText, parseJson } from "./files.ts";
import { Job } from "./job.ts";
import type { Again } from "./keeping.ts";
import {
  AdapterName,
  AdapterRefSchema,
  FinetuneOptions,
  GenerateOptions,
  LoadOptions,
  ScoreOptions,
} from "./options.ts";
import { type Completion, gather, type Piece, pieces } from "./pieces.ts";
import type { Message, Text } from "./text.ts";

export type {
  Completion,
  DataRow,
  FinetuneOptions,
  Finish,
  GenerateOptions,
  LoadOptions,
  Message,
  Piece,
  Row,
  Score,
  TrainEvent,
  TrainResult,
};

/**
 * Load a bundle: a folder, an address, which is kept for the next time unless `cache` says no, a directory
 * handle, or files. Throws WeftError before anything is allocated if the bundle is not what
 * its manifest says. An abort rejects at once, in every phase.
 */
export async function load(location: Place, options: LoadOptions = {}): Promise<Engine> {
  checked(LoadOptions, options);
  return abortable(
    options.signal,
    () => loading(location, options),
    (late) => late.dispose(),
  );
}
async function loading(location: Place, options: LoadOptions): Promise<Engine> {
  const reader = await openReader(location, picked(readEntries, options));
  const core = await openEngine(reader, options);
  try {
    let openText: (() => Text) | null = null;
    if (core.manifest.tokenizer) {
      const file = async (name: string): Promise<string> =>
        decodeText(await readVerified(reader, core.manifest, name));
      const { openerOf } = await import("./text.ts");
      const files = [await file("tokenizer.json"), await file("tokenizer_config.json")] as const;
      const open = await openerOf(core.manifest.chatTemplate ? await file("chat_template.jinja") : null);
      openText = () => open(JSON.parse(files[0]) as object, JSON.parse(files[1]) as Record<string, unknown>);
    }
    const config = parseJson(await readVerified(reader, core.manifest, "config.json"), "config.json");
    const engine = new Engine(core, openText, config, reader);
    if (core.manifest.correction) await (await import("./correction.ts")).takeCorrection(engine);
    return engine;
  } catch (e) {
    await core.dispose();
    throw e;
  }
}

/** A request in ids, of generations that stay what they are. */
export interface Asked {
  readonly prompt: readonly number[];
  readonly adapter: AdapterRef | undefined;
}

export class Engine {
  /** Bundlers rename classes; who looks at one in a console shall not see it. */
  static readonly name = "Engine";
  private readonly jobs = new Set<CoreJob>();
  private opened: Text | null = null;
  constructor(
    /** The engine of ids underneath. */
    readonly core: Core,
    private openText: (() => Text) | null,
    /** config.json of the model. */
    readonly modelConfig: Readonly<Record<string, unknown>>,
    readonly reader: BundleReader,
  ) {}

  /**
   * Tokenizer and templates; null where the bundle has none. Opened when it is first asked for: a tokenizer
   * takes tens of MB, and who speaks in ids needs none. Throws WEFT_TOKENIZER.
   */
  get text(): Text | null {
    if (this.openText) this.opened = this.openText();
    this.openText = null;
    return this.opened;
  }
  get manifest(): Manifest {
    return this.core.manifest;
  }
  /** How the model's makers sample from it (generation_config.json); pass it to `generate` to do the same. */
  get generationDefaults(): Manifest["generation"] {
    return this.manifest.generation;
  }
  /** Identity of the base weights, by value: the bundle's, or of what full training made of them. */
  get base(): string {
    return this.core.base;
  }
  /** Which target and adapter compute. */
  get device(): Core["info"] {
    return this.core.info;
  }
  memory(): ReturnType<Core["memory"]> {
    return this.core.memory();
  }
  encode(text: string): number[] {
    return this.needText("encode").encode(text);
  }
  decode(ids: readonly number[]): string {
    return this.needText("decode").decode(ids);
  }
  private needText(where: string): Text {
    const { text } = this;
    if (text) return text;
    throw new WeftError({
      code: "WEFT_TOKENIZER",
      where,
      expected: "a bundle with a tokenizer",
      found: "none",
      hint: "pass token ids",
    });
  }
  /**
   * Ids of a prompt as `generate` takes it: text, ids, or a conversation by the model's template, up to the
   * assistant's next word. Throws WEFT_TOKENIZER for text without a tokenizer, messages without a template.
   */
  promptIds(o: Pick<GenerateOptions, "prompt" | "messages" | "tools" | "templateArguments">): number[] {
    if (o.messages) {
      const text = this.needText("messages");
      const given = { ...o.templateArguments, ...(o.tools && { tools: o.tools }) };
      return text.encode(text.chat(o.messages, true, given), false);
    }
    if (typeof o.prompt === "string") return this.needText("prompt").encode(o.prompt);
    if (Array.isArray(o.prompt)) return [...(o.prompt as readonly number[])];
    throw new WeftError({
      code: "WEFT_OPTION",
      where: "prompt",
      expected: "text, token ids or messages",
      found: typeof o.prompt,
    });
  }

  /**
   * Stream an answer: it starts with the first `next()`. `break` out of the loop, `return()` or an abort ends
   * it at once, waiting or running, and frees its cache. Throws WEFT_CONTEXT_OVERFLOW for a prompt that
   * leaves no room, WEFT_CAPACITY (retryable) when too many requests wait. `hear` is told what was asked for
   * when it is.
   */
  generate(o: GenerateOptions, hear?: (asked: Asked) => void): AsyncGenerator<Piece, void, void> {
    const stops = typeof o?.stop === "string" ? [o.stop] : (o?.stop ?? []);
    return new MappedStream(
      () => {
        checked(GenerateOptions, o);
        if (stops.length) this.needText("stop");
        const prompt = this.promptIds(o);
        hear?.({ prompt, adapter: o.adapter && this.core.adapters.fixed(o.adapter) });
        return this.core.generate({
          ...picked(requestEntries, o),
          prompt,
          stopIds: [...(o.stopIds ?? []), ...this.manifest.model.eos],
        });
      },
      pieces(this.text, stops, { said: o?.said, marks: o?.marks }),
      (p) => p.finish !== null,
    );
  }
  /** The whole answer at once. */
  complete(o: GenerateOptions): Promise<Completion> {
    return gather(this.generate(o));
  }
  /** Loss and log-probabilities of a text or ids; on request all logits [position][vocab]. */
  score(input: string | readonly number[], o: ScoreOptions = {}): Promise<Score> {
    checked(ScoreOptions, o);
    return this.core.score(typeof input === "string" ? this.encode(input) : input, picked(scoreEntries, o));
  }

  /**
   * Start a fine-tuning job; the engine serves on. Mistakes in options or data are thrown here, not at step
   * 40. `again`: it went on in an engine that ended, and is the same job.
   */
  async finetune(o: FinetuneOptions, again?: Again): Promise<Job> {
    checked(FinetuneOptions, o);
    this.core.check();
    throwIfAborted(o.signal);
    // Who never teaches reads none of it.
    const { checkAdapter, startJob } = await import("../runtime/trainer.ts");
    const { base, info, device } = this.core;
    const methodOf = (ref: string): string => this.core.adapter(ref).shape.config.method;
    const method = o.method ?? (o.from ? methodOf(o.from) : (this.manifest.train[0] ?? "lora"));
    const { standard } = this.core;
    const start = o.from ?? (standard && methodOf(standard) === method ? standard : undefined);
    const rows = await this.rows(o.data, "data");
    const evalRows = o.evalData ? await this.rows(o.evalData, "evalData") : undefined;
    const adapter = picked(adapterEntries, o);
    const named = (name: string): Generation => this.core.adapter(name);
    const [from, disjointFrom] = [start ? named(start) : undefined, o.disjointFrom?.map(named)];
    const options: TrainOptions = {
      ...picked(trainEntries, o),
      method,
      rows,
      evalRows,
      adapter,
      from: from?.content,
      disjointFrom: disjointFrom?.map((g) => g.content),
      tuned:
        o.tuned === undefined
          ? undefined
          : await (await import("./model.ts")).openMatrices(o.tuned, this.manifest),
      resume: undefined,
    };
    await checkAdapter(this.manifest, options);
    let known: Promise<Grounds> | undefined;
    const grounds = (): Promise<Grounds> =>
      (known ??= (async () => {
        const { identityOf } = await import("../runtime/grounds.ts");
        const identity = await identityOf(this.manifest, device.plan, options);
        return { base, numerics: info.numerics, options: { ...identity, tuned: o.tuned ?? null } };
      })());
    const keeping = o.resume || o.checkpoint || again ? await import("./keeping.ts") : null;
    const resume = await keeping?.stateToGoOnFrom(o, again, grounds);
    // What was read until now is of the base as it was.
    if (this.core.base !== base)
      throw new WeftError({
        code: "WEFT_CONFLICT",
        where: `job ${o.name}`,
        expected: `base ${base.slice(0, 12)} until the job starts`,
        found: `base ${this.core.base.slice(0, 12)}, of a full training that ended`,
        retryable: true,
      });
    const keepings = (await keeping?.keepingsOf(o, again)) ?? [];
    const onEvent = (e: TrainEvent): unknown => {
      job.hear(e);
      return o.onEvent?.(e);
    };
    const published = again?.published;
    const core = startJob(this.core, { ...options, resume, published, onEvent }, this.jobs);
    const learnsFrom = { from: from?.ref, disjointFrom: disjointFrom?.map((g) => g.ref) };
    const job = new Job(core, this, grounds, o, learnsFrom, keepings);
    this.jobs.add(core);
    core.done.catch(() => {}).finally(() => this.jobs.delete(core));
    return job;
  }
  /** Rows as jobs learn them: ids and labels. `what` names them in errors. Throws WEFT_DATA. */
  async rows(data: string | Blob | readonly DataRow[], what: string): Promise<Row[]> {
    const { rowsOf } = await import("./data.ts");
    return rowsOf(data, what, this, this.manifest.model.eos);
  }

  /** Adapters on this engine: PEFT folders in, names out. */
  readonly adapters = {
    /**
     * Read a Hugging Face PEFT folder, or one that `compress` wrote: a path, an address (asked as `remote`
     * says), a directory handle, files or blobs; or a LoRA of llama.cpp, where the path ends in .gguf.
     * Returns its first generation.
     */
    load: async (name: string, place: Place, remote: Remote = {}): Promise<AdapterHandle> => {
      checked(AdapterName, name, { where: "name" });
      const { base } = this.core;
      const manifest = { ...this.manifest, base };
      const { readAdapterAt } = await import("./peft/index.ts");
      const { content, warnings } = await readAdapterAt(place, remote, manifest, this.modelConfig);
      this.core.adapters.publish(name, content, { base, warnings });
      return new AdapterHandle(this, name);
    },
    /**
     * A new adapter that is the weighted sum of others: exact, as a LoRA of all their rows or a selection of
     * all their channels.
     */
    combine: async (name: string, weights: Readonly<Record<string, number>>): Promise<AdapterHandle> => {
      checked(AdapterName, name, { where: "name" });
      checked(AdapterRefSchema, weights, { where: "weights" });
      await this.core.adapters.needs(weights);
      const { content, base } = this.core.adapters.find(weights);
      this.core.adapters.publish(name, content, { base });
      return new AdapterHandle(this, name);
    },
    get: (ref: string): AdapterHandle => {
      this.core.adapters.find(ref);
      return new AdapterHandle(this, ref);
    },
    list: (): ReturnType<Core["adapters"]["list"]> => this.core.adapters.list(),
    remove: (name: string): void => this.core.adapters.remove(name),
  };

  /**
   * Make an adapter (or a weighted sum) part of the base weights; `null` restores the bundle's. Requests then
   * cost what the base costs, and cannot name adapters. Resolves with the time that the switch took, and what
   * storing the weights rounded. Throws WEFT_CONFLICT unless the engine is at rest, WEFT_ADAPTER for what
   * cannot merge, and for weights in blocks (int8, q4) without `requantise`.
   */
  merge(adapter: AdapterRef | null, options: MergeOptions = {}): Promise<Merged> {
    return this.core.merge(adapter, options);
  }

  /**
   * The base as it is now, also after full training or with an adapter merged: as a Hugging Face folder, or,
   * where the path ends in .gguf, as a file that llama.cpp loads, with every tensor in the type that holds
   * what the bundle has. Durable when it resolves, on a disk; resolves with what is not quite as it was.
   * Throws WEFT_IO, before anything is read or written, when `place` is anything but free, an empty folder or
   * a model that weft wrote; WEFT_CONFIG or WEFT_TOKENIZER for what GGUF files cannot say.
   */
  async saveModel(place: Place): Promise<{ readonly notes: readonly string[] }> {
    this.core.check();
    const { saveModel } = await import("./model.ts");
    return { notes: await saveModel(place, this) };
  }

  /**
   * Resolves once, with why the engine ended: WEFT_DISPOSED after `dispose()`, or the failure. Never rejects.
   */
  get closed(): Promise<WeftError> {
    return this.core.closed;
  }
  /**
   * The last errors that functions of the caller (`onStep`, `onProgress`, `onEvent`) threw; `load({ onError
   * })` hears them as they come.
   */
  get reports(): readonly WeftError[] {
    return this.core.reports;
  }
  /** Reject what runs and free the device: resolves when its threads are gone; the process can exit. */
  dispose(): Promise<void> {
    return this.core.dispose();
  }
  [Symbol.asyncDispose](): Promise<void> {
    return this.dispose();
  }
}
