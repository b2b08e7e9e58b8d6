/** weft finetune: rows become an adapter, or the model anew. */
import { WeftError } from "../../runtime/bundle.ts";
import { readManifest } from "../../runtime/load.ts";
import { node } from "../../runtime/node.ts";
import { openReader } from "../../runtime/reader.ts";
import { hasVersion } from "../../runtime/versions.ts";
import { claimCheckpoints, readAbout } from "../checkpoint.ts";
import type { FinetuneOptions } from "../index.ts";
import { checkBundle, loadFlags, openBundle } from "./bundle.ts";
import {
  type Command,
  type Flags,
  fail,
  given,
  number,
  optional,
  shellWords,
  string,
  text,
} from "./command.ts";
import { Learning } from "./learning.ts";
import { claimOutput, replaceFlag } from "./output.ts";
import { clearLine, endLine, say } from "./progress.ts";
import { Stop } from "./stop.ts";
import { asked } from "./wording.ts";

/** Flags that name files: kept as whole paths, so that a job goes on from any folder. */
const paths = ["data", "eval-data", "tuned", "out", "from", "checkpoint", "resume"];
const isAddress = (s: string): boolean => /^[a-z][a-z\d+.-]+:\/\//i.test(s);

interface Recalled {
  readonly bundle: string;
  readonly f: Flags;
  /** Does it go on with the run that wrote, or was to write, what is in --out? */
  readonly goesOn: boolean;
}
/** What was said, over what the checkpoint's command said. */
async function recalled(positional: readonly string[], said: Flags): Promise<Recalled> {
  const { path } = await node();
  const whole = (p: string): string => (isAddress(p) ? p : path.resolve(p));
  let bundle = positional[0];
  let f: Record<string, Flags[string]> = { ...said };
  let out: unknown;
  const resume = optional(said, "resume");
  const about = resume === undefined ? null : await readAbout(resume);
  if (about && typeof about.bundle === "string" && typeof about.flags === "object") {
    bundle ??= about.bundle;
    const { steps, epochs, ...flags } = about.flags as Record<string, string>;
    const length = said.steps === undefined && said.epochs === undefined ? given({ steps, epochs }) : {};
    f = { checkpoint: whole(resume!), ...flags, ...length, ...said };
    out = flags.out;
  }
  if (bundle === undefined)
    return fail(
      "weft finetune",
      "a bundle",
      resume === undefined ? "nothing" : `nothing, nor one in ${resume}`,
    );
  for (const name of paths) if (typeof f[name] === "string" && f[name] !== "none") f[name] = whole(f[name]);
  const goesOn = f.out !== undefined && (f.out === out || f.out === f.from);
  return { bundle, f: { ...f, bundle: whole(bundle) }, goesOn };
}

export const finetune: Command = {
  summary: "teach an adapter, or the whole model, rows of data",
  synopsis: "BUNDLE --data FILE.jsonl --name NAME --out DIR | --resume DIR",
  details:
    "Checkpoints are taken by themselves, and when Ctrl-C or SIGTERM ends the run; `weft finetune " +
    "--resume DIR` goes on from one, with more --epochs or --steps where they are given.",
  flags: {
    data: text("FILE", "rows to learn, JSONL"),
    name: text("NAME", "what the adapter is called"),
    out: text("DIR", "the folder to write"),
    method: text("M", "lora, s2ft, …, full; default: that of --from, else the bundle's first"),
    from: text("DIR", "an adapter to go on from, instead of a fresh one"),
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
    checkpoint: text("DIR", "where checkpoints go, or none; default: OUT.checkpoint, or that of --resume"),
    "save-every": text("SECONDS", "between two checkpoints; 0: only at the end; default 60"),
    resume: text("DIR", "a checkpoint to go on from; what it was started with need not be said again"),
    ...replaceFlag,
    ...loadFlags,
  },
  run: async (positional, said, json) => {
    const { path } = await node();
    const { bundle, f, goesOn } = await recalled(positional, said);
    const [out, name, data] = [string(f, "out"), string(f, "name"), string(f, "data")];
    await checkBundle("finetune", bundle);
    const from = optional(f, "from");
    const method =
      optional(f, "method") ??
      (from === undefined ? ((await readManifest(await openReader(bundle))).train[0] ?? "lora") : undefined);
    if (from !== undefined && method === "full") fail("--from", "none: full training has no adapter", from);
    // Paths that cannot be written are told now, not after the training.
    const replace = f.replace === true || goesOn;
    const dir = optional(f, "checkpoint") ?? `${out}.checkpoint`;
    const checkpoint = dir === "none" ? null : dir;
    const resume = shellWords(["weft", "finetune", "--resume", checkpoint ?? ""]);
    const kind = method === "full" ? "model" : "adapter";
    await claimOutput(out, kind, { replace }, kind === "adapter" ? `--from ${out} goes on from it, ` : "");
    if (checkpoint) {
      const [a, b] = [path.resolve(out) + path.sep, path.resolve(checkpoint) + path.sep];
      if (a.startsWith(b) || b.startsWith(a))
        fail("--checkpoint", "a folder that neither holds that of --out nor lies in it", checkpoint);
      await claimCheckpoints(checkpoint);
      if (!replace && checkpoint !== f.resume && (await hasVersion(checkpoint)))
        throw new WeftError({
          code: "WEFT_IO",
          where: checkpoint,
          expected: "a folder without a checkpoint",
          found: "that of an earlier run",
          hint: `go on with ${resume}; --replace begins anew`,
        });
    }
    await using engine = await openBundle("finetune", bundle, f);
    if (from !== undefined) await engine.adapters.load(`from.${name}`, from);
    const learning = new Learning(engine.device.name);
    const { bundle: at, resume: _resume, checkpoint: _checkpoint, json: _json, ...more } = f;
    const { replace: _replace, ...flags } = more;
    const o: FinetuneOptions = {
      name,
      data,
      ...given({
        method,
        from: from === undefined ? undefined : `from.${name}`,
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
      ...(checkpoint !== null && {
        checkpoint: {
          dir: checkpoint,
          ...given({ every: number(f, "save-every") }),
          about: { command: "finetune", bundle: at, flags },
        },
      }),
      onEvent: (e) => learning.hear(e),
    };
    const job = await engine.finetune(o);
    const wording = await asked(engine, data);
    if (wording) say(wording);
    const stop = new Stop(job, checkpoint, resume, endLine);
    try {
      const result = await job.done;
      clearLine();
      stop.saving = true;
      await (method === "full" ? engine.saveModel(out) : engine.adapters.get(name).save(out));
      const [first, last] = [result.losses[0], result.losses.at(-1)].map((x) => x?.toFixed(4));
      const learned = first === undefined ? "" : `, loss ${first} → ${last}`;
      const kept = o.evalData ? `, kept step ${result.kept} (${o.select ?? "last"})` : "";
      if (!json && result.losses.length) console.log(learning.summary());
      console.log(
        json
          ? JSON.stringify({ ...result, out, checkpoint })
          : `${out}: ${result.steps} steps${learned}${kept}`,
      );
      if (!json && checkpoint) console.log(`on with more: ${resume} --epochs N`);
    } catch (e) {
      const code = await stop.code;
      if (code === null) throw e;
      return code;
    } finally {
      stop.end();
    }
  },
};
