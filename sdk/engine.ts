/** The thin door: text in, text out, over the runtime's engine of ids. */

import type { AdapterRef } from "../runtime/adapters.ts";
import { encode, type Manifest, WeftError } from "../runtime/bundle.ts";
import { type AdapterConfig, defaultConfig, resolveBranches } from "../runtime/content.ts";
import { SMALL_FILE } from "../runtime/disk.ts";
import { Engine as Core, type Score, type TokenEvent } from "../runtime/engine.ts";
import { claimFolder, readFolder, writeFolder } from "../runtime/folder.ts";
import { readVerified } from "../runtime/load.ts";
import { openDevice } from "../runtime/open.ts";
import {
  adapterEntries,
  checked,
  engineEntries,
  picked,
  requestEntries,
  scoreEntries,
  trainEntries,
} from "../runtime/options.ts";
import { openReader } from "../runtime/reader.ts";
import {
  type Job as CoreJob,
  type Row,
  readWeights,
  startJob,
  type TrainEvent,
  type TrainOptions,
  type TrainResult,
} from "../runtime/trainer.ts";
import { claimCheckpoints, loadCheckpoint, saveCheckpoint } from "./checkpoint.ts";
import { type DataRow, encodeRow, parseJsonl } from "./data.ts";
import { decodeText, parseJson, readFileOr } from "./files.ts";
import { openMatrices } from "./model.ts";
import {
  AdapterName,
  AdapterRefSchema,
  CompressOptions,
  FinetuneOptions,
  GenerateOptions,
  LoadOptions,
  SaveOptions,
  ScoreOptions,
} from "./options.ts";
import { numbersAtMost, readAdapter, writeAdapter, writeAsLora } from "./peft.ts";
import { compressTernary, expandTernary } from "./ternary.ts";
import { type Message, Text } from "./text.ts";

export interface Piece extends TokenEvent {
  /** Text that became complete with this token; empty for bundles without a tokenizer. */
  readonly text: string;
}
export type {
  DataRow,
  FinetuneOptions,
  GenerateOptions,
  LoadOptions,
  Message,
  Row,
  Score,
  TrainEvent,
  TrainResult,
};

/** Load a bundle folder or address. Throws WeftError before anything is allocated if the bundle is not what its manifest says. */
export async function load(location: string | URL, options: LoadOptions = {}): Promise<Engine> {
  const { device, threads, lanes, relaxed } = checked(LoadOptions, options);
  const reader = await openReader(location);
  const core = await Core.open(
    reader,
    (m, file) =>
      openDevice(device ?? "auto", m, file, { threads, lanes, relaxed, onProgress: options.onProgress }),
    picked(engineEntries, options),
  );
  try {
    let text: Text | null = null;
    if (core.manifest.tokenizer) {
      const file = async (name: string): Promise<string> =>
        decodeText(await readVerified(reader, core.manifest, name));
      text = new Text(
        JSON.parse(await file("tokenizer.json")) as object,
        JSON.parse(await file("tokenizer_config.json")) as Record<string, unknown>,
        core.manifest.chatTemplate ? await file("chat_template.jinja") : null,
      );
    }
    const config = parseJson(await readVerified(reader, core.manifest, "config.json"), "config.json");
    return new Engine(core, text, config, reader);
  } catch (e) {
    await core.dispose();
    throw e;
  }
}

/** A running job: `done` resolves with its result; `publish` makes what it knows available to requests. */
export class Job {
  constructor(
    private readonly core: CoreJob,
    private readonly engine: Engine,
    private readonly options: unknown,
  ) {}
  get name(): string {
    return this.core.name;
  }
  get done(): Promise<TrainResult> {
    return this.core.done;
  }
  get step(): number {
    return this.core.step;
  }
  cancel(): void {
    this.core.cancel();
  }
  /** Resolves with the generation (`name@n`) that new requests get from now on. */
  publish(): Promise<string> {
    return this.core.publish();
  }
  /**
   * Make what the job is now the current version in `dir`, from which `finetune({ resume })` goes on, bit for
   * bit on the same device and bundle. Durable when it resolves; the version before is kept too. Throws WEFT_IO,
   * before anything is written, when `dir` holds anything else.
   */
  async checkpoint(dir: string): Promise<void> {
    await claimCheckpoints(dir);
    await saveCheckpoint(
      dir,
      await this.core.checkpoint(),
      this.engine.manifest.base,
      this.engine.core.info.numerics,
      this.options,
    );
  }
}

/** One adapter by name: its latest generation unless pinned. */
export class AdapterHandle {
  constructor(
    private readonly engine: Engine,
    readonly ref: string,
  ) {}
  /**
   * Write a folder that Hugging Face peft loads; `as: "lora"` turns an S2FT adapter into the LoRA that is
   * exactly the same. Durable when it resolves. Throws WEFT_IO, before anything is written, when `dir` is
   * anything but an empty folder or an adapter that weft wrote.
   */
  async save(dir: string, o: SaveOptions = {}): Promise<void> {
    checked(SaveOptions, o);
    await claimFolder(dir, "adapter");
    const { content } = this.engine.core.adapters.find(this.ref);
    const { config, weights } = (o.as === "lora" ? writeAsLora : writeAdapter)(
      content,
      this.engine.manifest,
      this.engine.core.device.plan,
    );
    await writeFolder(dir, "adapter", [
      ["adapter_model.safetensors", weights],
      ["adapter_config.json", config],
    ]);
  }
  /**
   * Write the adapter as signs of its largest numbers with one common magnitude (ComPEFT): a fraction of the bytes, and not quite the same adapter. Tells
   * how many times smaller the file is, and the relative error of its numbers. Throws as `save`.
   */
  async compress(
    dir: string,
    o: CompressOptions = {},
  ): Promise<{ bytes: number; ratio: number; error: number }> {
    checked(CompressOptions, o);
    await claimFolder(dir, "adapter");
    const { content } = this.engine.core.adapters.find(this.ref);
    const { config, weights } = writeAdapter(content, this.engine.manifest, this.engine.core.device.plan);
    const { bytes, ratio, error } = compressTernary(weights, o.density ?? 0.1);
    await writeFolder(dir, "adapter", [
      ["adapter_model.ternary", bytes],
      [
        "adapter_config.json",
        JSON.stringify({ ...(JSON.parse(config) as object), weft_ternary: true }, null, 2),
      ],
    ]);
    return { bytes: bytes.length, ratio, error };
  }
  get generation(): number {
    return this.engine.core.adapters.find(this.ref).number;
  }
  get config(): AdapterConfig {
    return this.engine.core.adapters.find(this.ref).content.config;
  }
}

export class Engine {
  private readonly jobs = new Set<CoreJob>();
  constructor(
    /** The engine of ids underneath. */
    readonly core: Core,
    readonly text: Text | null,
    private readonly modelConfig: Readonly<Record<string, unknown>>,
    private readonly reader: Awaited<ReturnType<typeof openReader>>,
  ) {}

  get manifest(): Manifest {
    return this.core.manifest;
  }
  /** How the model's makers sample from it (generation_config.json); pass it to `generate` to do the same. */
  get generationDefaults(): Manifest["generation"] {
    return this.manifest.generation;
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
    if (!this.text)
      throw new WeftError({
        code: "WEFT_TOKENIZER",
        where,
        expected: "a bundle with a tokenizer",
        found: "none",
        hint: "pass token ids",
      });
    return this.text;
  }
  private promptIds(o: Pick<GenerateOptions, "prompt" | "messages">): number[] {
    if (o.messages)
      return this.needText("messages").encode(this.needText("messages").chat(o.messages, true), false);
    if (typeof o.prompt === "string") return this.needText("prompt").encode(o.prompt);
    if (Array.isArray(o.prompt)) return [...(o.prompt as readonly number[])];
    throw new WeftError({
      code: "WEFT_OPTION",
      where: "prompt",
      expected: "text, token ids or messages",
      found: typeof o.prompt,
    });
  }

  /** Stream an answer. `break` out of the loop, or abort the signal, and its cache is freed. */
  async *generate(o: GenerateOptions): AsyncGenerator<Piece, void, void> {
    checked(GenerateOptions, o);
    const prompt = this.promptIds(o);
    const room = this.manifest.capacities.context - prompt.length;
    const stops = typeof o.stop === "string" ? [o.stop] : (o.stop ?? []);
    const ids = this.core.generate({
      ...picked(requestEntries, o),
      prompt,
      maxTokens: o.maxTokens ?? Math.max(1, Math.min(128, room)),
      stopIds: [...(o.stopIds ?? []), ...this.manifest.model.eos],
    });
    const stream = this.text?.stream();
    let held = ""; // text that may be the start of a stop
    for await (const e of ids) {
      const isStop = e.finish === "stop";
      let text = held + (isStop || !stream ? "" : stream.push(e.id));
      if (e.finish && !isStop && stream) text += stream.flush();
      const hit = stops.map((s) => text.indexOf(s)).filter((i) => i >= 0);
      if (hit.length) {
        yield { ...e, text: text.slice(0, Math.min(...hit)), finish: "stop" };
        return;
      }
      held = "";
      if (!e.finish)
        for (let n = Math.min(text.length, Math.max(0, ...stops.map((s) => s.length - 1))); n > 0; n--)
          if (stops.some((s) => s.startsWith(text.slice(text.length - n)))) {
            held = text.slice(text.length - n);
            text = text.slice(0, text.length - n);
            break;
          }
      yield { ...e, text };
    }
  }
  /** The whole answer at once. */
  async complete(
    o: GenerateOptions,
  ): Promise<{ text: string; ids: number[]; finish: "stop" | "length" | null; adapter: string }> {
    const out = { text: "", ids: [] as number[], finish: null as "stop" | "length" | null, adapter: "base" };
    for await (const p of this.generate(o)) {
      out.text += p.text;
      out.ids.push(p.id);
      out.finish = p.finish;
      out.adapter = p.adapter;
    }
    return out;
  }
  /** Loss and log-probabilities of a text or ids; on request all logits [position][vocab]. */
  score(input: string | readonly number[], o: ScoreOptions = {}): Promise<Score> {
    checked(ScoreOptions, o);
    return this.core.score(typeof input === "string" ? this.encode(input) : input, picked(scoreEntries, o));
  }

  /** Start a fine-tuning job; the engine serves on. Mistakes in options or data are thrown here, not at step 40. */
  async finetune(o: FinetuneOptions): Promise<Job> {
    checked(FinetuneOptions, o);
    const method =
      o.method ??
      (o.from ? this.core.adapters.find(o.from).content.config.method : (this.manifest.train[0] ?? "lora"));
    const rows = await this.rows(o.data, "data");
    const evalRows = o.evalData ? await this.rows(o.evalData, "evalData") : undefined;
    const adapter = picked(adapterEntries, o);
    // What results depend on: a checkpoint is only good for the same.
    const {
      onEvent: _e,
      signal: _s,
      resume: _r,
      data: _d,
      evalData: _v,
      publishEvery: _p,
      microBatch: _m,
      keep: _k,
      ...identity
    } = o;
    const key = { ...identity, method, rows: rows.length };
    if (Object.hasOwn(this.manifest.methods, method))
      resolveBranches(this.manifest, {
        ...defaultConfig(this.manifest, method),
        ...(o.from ? this.core.adapters.find(o.from).content.config : {}),
        ...adapter,
      });
    const options: TrainOptions = {
      ...picked(trainEntries, o),
      method,
      rows,
      evalRows,
      adapter,
      from: o.from ? this.core.adapters.find(o.from).content : undefined,
      disjointFrom: o.disjointFrom?.map((name) => this.core.adapters.find(name).content),
      tuned: o.tuned === undefined ? undefined : await openMatrices(o.tuned, this.manifest),
      resume: o.resume
        ? await loadCheckpoint(o.resume, this.manifest.base, this.core.info.numerics, key)
        : undefined,
    };
    const job = startJob(this.core, options, this.jobs);
    this.jobs.add(job);
    job.done.catch(() => {}).finally(() => this.jobs.delete(job));
    return new Job(job, this, key);
  }
  private async rows(data: string | readonly DataRow[], what: string): Promise<Row[]> {
    const list =
      typeof data === "string" ? parseJsonl(decodeText(await readFileOr(data, "WEFT_DATA")), data) : data;
    if (!list.length)
      throw new WeftError({ code: "WEFT_DATA", where: what, expected: "at least one row", found: "none" });
    const where = typeof data === "string" ? data : what;
    return list.map((r, i) => encodeRow(r, this.text, this.manifest.model.eos, `${where}, row ${i + 1}`));
  }

  /** Adapters on this engine: PEFT folders in, names out. */
  readonly adapters = {
    /** Read a Hugging Face PEFT folder, or one that `compress` wrote; returns its first generation. */
    load: async (name: string, dir: string): Promise<AdapterHandle> => {
      checked(AdapterName, name, { where: "name" });
      // Not more than the whole model in f32, and what describes it.
      const limit = 4 * this.manifest.model.parameters + SMALL_FILE;
      const names = ["adapter_config.json", "adapter_model.ternary", "adapter_model.safetensors"];
      const files = await readFolder(dir, names, limit, "WEFT_ADAPTER");
      const needed = (name: string): Uint8Array => {
        const bytes = files.get(name);
        if (bytes) return bytes;
        throw new WeftError({
          code: "WEFT_ADAPTER",
          where: dir,
          expected: `a folder with ${name}`,
          found: "none",
        });
      };
      const config = parseJson(needed("adapter_config.json"), `${dir}/adapter_config.json`);
      const file =
        config.weft_ternary === true
          ? expandTernary(
              needed("adapter_model.ternary"),
              `${dir}/adapter_model.ternary`,
              numbersAtMost(this.manifest, this.core.device.plan),
            )
          : needed("adapter_model.safetensors");
      this.core.adapters.publish(name, readAdapter(config, file, this.manifest, this.core.device.plan, dir));
      return new AdapterHandle(this, name);
    },
    /** A new adapter that is the weighted sum of others: exact, as a LoRA of all their rows or a selection of all their channels. */
    combine: (name: string, weights: Readonly<Record<string, number>>): AdapterHandle => {
      checked(AdapterName, name, { where: "name" });
      checked(AdapterRefSchema, weights, { where: "weights" });
      this.core.adapters.publish(name, this.core.adapters.find(weights).content);
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
   * Make an adapter (or a weighted sum) part of the base weights; `null` restores the bundle's. Requests then cost what the base costs, and cannot
   * name adapters. Resolves with the time the switch took. Throws WEFT_CONFLICT unless the engine is at rest, WEFT_ADAPTER for what cannot merge.
   */
  merge(adapter: AdapterRef | null): Promise<{ ms: number }> {
    return this.core.merge(adapter);
  }

  /**
   * After full training, or with an adapter merged: a Hugging Face folder with the base as it is now. Durable
   * when it resolves. Throws WEFT_IO, before anything is read or written, when `dir` is anything but an empty
   * folder or a model that weft wrote.
   */
  async saveModel(dir: string): Promise<void> {
    await claimFolder(dir, "model");
    const files: [string, Uint8Array | string][] = [
      [
        "model.safetensors",
        encode((await readWeights(this.core)).map((t) => ({ ...t, dtype: "F32" as const }))),
      ],
    ];
    for (const name of ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja"])
      if (this.manifest.files[name]) files.push([name, await readVerified(this.reader, this.manifest, name)]);
    files.push(["config.json", JSON.stringify(this.modelConfig, null, 2)]);
    await writeFolder(dir, "model", files);
  }

  /** Reject what runs, free the device; the process can exit. */
  async dispose(): Promise<void> {
    for (const j of this.jobs)
      j.cancel(
        new WeftError({
          code: "WEFT_DISPOSED",
          where: `job ${j.name}`,
          expected: "an engine in use",
          found: "dispose() was called",
        }),
      );
    await this.core.dispose();
  }
  [Symbol.asyncDispose](): Promise<void> {
    return this.dispose();
  }
}
