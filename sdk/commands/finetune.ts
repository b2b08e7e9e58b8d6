/** weft finetune: rows become an adapter, or the model anew. */

import { node } from "../../runtime/disk.ts";
import { claimFolder } from "../../runtime/folder.ts";
import { readManifest } from "../../runtime/load.ts";
import { openReader } from "../../runtime/reader.ts";
import { claimCheckpoints } from "../checkpoint.ts";
import type { FinetuneOptions } from "../index.ts";
import { checkBundle, loadFlags, openBundle } from "./bundle.ts";
import { type Command, fail, given, needed, number, optional, shellWords, string, text } from "./command.ts";
import { endLine, progress } from "./progress.ts";
import { Stop } from "./stop.ts";

export const finetune: Command = {
  summary: "teach an adapter, or the whole model, rows of data",
  synopsis: "BUNDLE --data FILE.jsonl --name NAME --out DIR",
  flags: {
    data: text("FILE", "rows to learn, JSONL"),
    name: text("NAME", "what the adapter is called"),
    out: text("DIR", "the folder to write"),
    method: text("M", "lora, s2ft, …, full; default: the bundle's first"),
    selector: text("S", "how S2FT and sparse adapters choose: random, activation-small, …; default random"),
    tuned: text("MODEL", "with --selector difference: the same model fine-tuned in full"),
    rank: text("N", "default: LoRA and its kin 8, others what the bundle has room for"),
    alpha: text("X", "the change is scaled by alpha / rank; default 16"),
    dropout: text("X", "share of a branch's inputs that training drops; default 0"),
    epochs: text("N", "how often all rows are gone through; default 1"),
    steps: text("N", "optimizer steps, instead of epochs"),
    "batch-size": text("N", "rows an optimizer step; default 8"),
    "learning-rate": text("X", "default 2e-3, with --method full 1e-3"),
    schedule: text("S", "constant, linear or cosine; default constant"),
    "warmup-steps": text("N", "steps in which the learning rate rises from 0; default 0"),
    "weight-decay": text("X", "default 0"),
    seed: text("N", "of what is drawn; default 0"),
    "eval-data": text("FILE", "rows to evaluate on, never learned"),
    "eval-every": text("N", "optimizer steps between evaluations; default: an epoch"),
    select: text("S", "last or best: which step is kept; default last"),
    checkpoint: text("DIR", "where a checkpoint is taken when the process is told to stop"),
    resume: text("DIR", "a checkpoint to go on from"),
    ...loadFlags,
  },
  run: async (positional, f, json) => {
    const out = string(f, "out");
    const from = needed(positional, "finetune", "a bundle");
    await checkBundle("finetune", from);
    const method = optional(f, "method") ?? (await readManifest(await openReader(from))).train[0] ?? "lora";
    // Paths that cannot be written are told now, not after the training.
    await claimFolder(out, method === "full" ? "model" : "adapter");
    const checkpoint = f.checkpoint === undefined ? null : string(f, "checkpoint");
    if (checkpoint) {
      const { path } = await node();
      const [a, b] = [path.resolve(out) + path.sep, path.resolve(checkpoint) + path.sep];
      if (a.startsWith(b) || b.startsWith(a))
        fail("--checkpoint", "a folder that neither holds that of --out nor lies in it", checkpoint);
      await claimCheckpoints(checkpoint);
    }
    await using engine = await openBundle("finetune", from, f);
    const o: FinetuneOptions = {
      name: string(f, "name"),
      data: string(f, "data"),
      method,
      ...given({
        evalData: optional(f, "eval-data"),
        evalEvery: number(f, "eval-every"),
        select: f.select as FinetuneOptions["select"],
        selector: f.selector as FinetuneOptions["selector"],
        tuned: optional(f, "tuned"),
        rank: number(f, "rank"),
        alpha: number(f, "alpha"),
        epochs: number(f, "epochs"),
        steps: number(f, "steps"),
        batchSize: number(f, "batch-size"),
        learningRate: number(f, "learning-rate"),
        schedule: f.schedule as never,
        warmupSteps: number(f, "warmup-steps"),
        seed: number(f, "seed"),
        resume: optional(f, "resume"),
        weightDecay: number(f, "weight-decay"),
        dropout: number(f, "dropout"),
      }),
      onEvent: (e) => {
        if (e.type === "start")
          progress(
            `${e.steps} steps, ${e.rows} rows (${e.skippedRows} without labels skipped), ${e.trainable} trainable parameters on ${engine.device.name}`,
          );
        if (e.type === "start") endLine();
        if (e.type === "step")
          progress(
            `step ${e.step} loss ${e.loss.toFixed(4)} lr ${e.learningRate.toExponential(2)} ${Math.round(e.tokensPerSecond)} tokens/s`,
          );
        if (e.type === "eval")
          progress(`eval at step ${e.step}: loss ${e.loss.toFixed(4)}${e.best ? " (best)" : ""}`);
        if (e.type === "eval") endLine();
      },
    };
    const job = await engine.finetune(o);
    const flags = Object.entries({ ...f, resume: checkpoint ?? undefined }).flatMap(([k, v]) =>
      typeof v === "string" ? [`--${k}`, v] : v ? [`--${k}`] : [],
    );
    const stop = new Stop(job, checkpoint, shellWords(["weft", "finetune", from, ...flags]), endLine);
    try {
      const result = await job.done;
      endLine();
      stop.saving = true;
      await (method === "full" ? engine.saveModel(out) : engine.adapters.get(o.name).save(out));
      const [first, last] = [result.losses[0], result.losses.at(-1)].map((x) => x?.toFixed(4));
      const kept = o.evalData ? `, kept step ${result.kept} (${o.select ?? "last"})` : "";
      console.log(
        json
          ? JSON.stringify({ ...result, out })
          : `${out}: ${result.steps} steps, loss ${first} → ${last}${kept}`,
      );
    } catch (e) {
      const code = await stop.code;
      if (code === null) throw e;
      return code;
    } finally {
      stop.end();
    }
  },
};
