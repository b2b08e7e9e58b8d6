/** weft compile: a model becomes a bundle. */
import { type CompileOptions, compile as compileModel, type FinetuneOptions } from "../index.ts";
import { type Command, type Flags, fail, given, needed, number, string, text, toggle } from "./command.ts";
import { rounded } from "./inspect.ts";
import { clearLine, phases } from "./progress.ts";

/** How a bundle is made: for `compile`, and for what compiles on its way. */
export const compileFlags = {
  target: text("LIST", "wasm, webgpu or both; default wasm,webgpu"),
  train: text("LIST", "what jobs can train: lora, s2ft, prefix, …, full, or none; default lora"),
  methods: text("LIST", "what requests can use beside that; default lora"),
  format: text(
    "F",
    "how weights are stored: keep (as they are), f32, f16, bf16, int8, q4; by module: q4,embed_tokens=int8",
  ),
  kv: text("F", "how the cache holds keys and values: f32, or f16 in half the memory; default f32"),
  policy: text("P", "who goes first: coserve (requests, jobs fill the rest) or fcfs; default coserve"),
  context: text("N", "longest sequence, tokens; default: the model's, at most 1024"),
  tokens: text("N", "rows of one step; default 256"),
  rank: text("N", "largest rank of an adapter, a multiple of 4; default 16"),
  experts: text("N", "the same for the matrices of experts; default 0: adapters leave those alone"),
  slots: text("N", "adapters on the device at once; default 16"),
  jobs: text("N", "fine-tuning jobs at once; default 2"),
  blocks: text("N", "cache blocks of 32 tokens; default: 8 contexts, at least 256"),
  "saved-rows": text("N", "tokens of training rows in flight; default 1024"),
  "kept-rows": text("N", "of these, tokens whose activations are kept; default 1024"),
  "head-rows": text("N", "tokens drawn in one step; default 32"),
  quantum: text("N", "rows in which gradients are summed; default 32"),
  "unit-rows": text("N", "most rows of a backward unit; default 128"),
  "s2ft-sites": text("LIST", "sites that S2FT trains; default: the paper's"),
  quick: toggle("compile in a quarter of the time, for trials: slower kernels, the same bits"),
  "no-fuse": toggle("every operation a kernel of its own; the same bits"),
  relaxed: toggle("add kernels with fused multiply-adds, a class of numerics of their own"),
  products: text(
    "P",
    "what products are made of: f32, integers (of int8 and q4) or matrix (units); default f32",
  ),
  correct: text("HOW", "with --calibrate: eora or lrec, an adapter that gives back what rounding took"),
  calibrate: text("FILE", "rows: for --correct, or to choose the channels of S2FT's class `permuted` now"),
  selector: text("S", "with --calibrate: random, activation-small, …; default activation-small"),
  seed: text("N", "with --calibrate: of what is drawn; default 0"),
} as const;

/** `q4`, or `q4,embed_tokens=int8`: for all and by module. Checked as options are. */
function formats(said: Flags[string]): CompileOptions["format"] {
  if (typeof said !== "string" || !/[,=]/.test(said)) return said as CompileOptions["format"];
  const parts = said.split(",").map((part) => part.split("="));
  return Object.fromEntries(
    parts.map(([module, format]) => (format === undefined ? ["default", module] : [module, format])),
  ) as CompileOptions["format"];
}

/** Compile `model` as the flags say, and say what came of it. */
export async function compileTo(model: string, out: string, f: Flags, json: boolean): Promise<void> {
  const list = (name: string): string[] | undefined =>
    typeof f[name] === "string" ? f[name].split(",").filter((x) => x && x !== "none") : undefined;
  for (const name of ["correct", "selector", "seed"])
    if (f[name] !== undefined && f.calibrate === undefined)
      fail(`--${name}`, "--calibrate beside it", "nothing to calibrate on");
  const t0 = performance.now();
  const manifest = await compileModel(model, out, {
    ...given({
      targets: list("target") as never,
      train: list("train") as never,
      methods: list("methods") as never,
      format: formats(f.format),
      kv: f.kv as never,
      policy: f.policy as never,
      correct: f.correct as never,
      quick: f.quick ? true : undefined,
      fuse: f["no-fuse"] ? false : undefined,
      relaxed: f.relaxed ? true : undefined,
      products: f.products as never,
      calibrate: f.calibrate
        ? {
            data: string(f, "calibrate"),
            ...given({ selector: f.selector as FinetuneOptions["selector"], seed: number(f, "seed") }),
          }
        : undefined,
    }),
    capacities: given({
      context: number(f, "context"),
      tokens: number(f, "tokens"),
      slots: number(f, "slots"),
      jobs: number(f, "jobs"),
      rank: number(f, "rank"),
      experts: number(f, "experts"),
      blocks: number(f, "blocks"),
      savedRows: number(f, "saved-rows"),
      keptRows: number(f, "kept-rows"),
      headRows: number(f, "head-rows"),
      quantum: number(f, "quantum"),
      unitRows: number(f, "unit-rows"),
      s2ft: f["s2ft-sites"] ? { sites: list("s2ft-sites") ?? [] } : undefined,
    }),
    onProgress: phases(),
  });
  clearLine();
  const result = {
    bundle: out,
    base: manifest.base,
    targets: Object.keys(manifest.targets),
    train: manifest.train,
    parameters: manifest.model.parameters,
    format: manifest.model.format,
    rounding: manifest.model.rounding,
    ...(manifest.correction && { correction: manifest.correction }),
    seconds: Number(((performance.now() - t0) / 1000).toFixed(2)),
  };
  const trains = result.train.join(" and ") || "nothing";
  const { correction } = manifest;
  const told = (x: number): string => x.toFixed(4);
  const corrected =
    correction &&
    `; ${correction.method} of rank ${correction.rank}: loss ${told(correction.loss.corrected)}, ` +
      `without it ${told(correction.loss.rounded)}, of the checkpoint ${told(correction.loss.exact)} ` +
      `(KL ${told(correction.divergence.corrected)}, without ${told(correction.divergence.rounded)})` +
      (correction.unreached ? `; no row met ${correction.unreached} of the experts` : "");
  console.log(
    json
      ? JSON.stringify(result)
      : `${out}: ${result.parameters} parameters in ${result.format}${rounded(manifest)} for ` +
          `${result.targets.join(" and ")}, trains ${trains}, ${result.seconds} s${corrected ?? ""}`,
  );
}

export const compile: Command = {
  summary: "a Hugging Face folder or a .gguf file becomes a bundle",
  synopsis: "MODEL -o BUNDLE",
  flags: { output: text("BUNDLE", "the folder to write", { short: "o" }), ...compileFlags },
  run: async (positional, f, json) =>
    compileTo(needed(positional, "compile", "a model folder or .gguf file"), string(f, "output"), f, json),
};
