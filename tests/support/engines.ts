/** Engines on tiny models, with the reference values of torch + transformers + peft. */
import { readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import * as assert from "uvu/assert";
import { type CompileOptions, compileTo } from "../../compiler/compile.ts";
import type { Capacities } from "../../compiler/target.ts";
import { decode, parseHeader } from "../../runtime/bundle.ts";
import { type Engine, type LoadOptions, load } from "../../sdk/index.ts";
import { generator, uniform } from "./random.ts";
import { long } from "./scale.ts";
import { type Config, even, type FamilyName, families, mha, mqa, odd, scratch, writeModel } from "./tiny.ts";

export const fixtures = fileURLToPath(new URL("../fixtures/", import.meta.url));
export const configs = { odd, even, mha, mqa, ...families } as const;
export const small: Partial<Capacities> = {
  context: 128,
  tokens: 48,
  sequences: 16,
  headRows: 12,
  savedRows: 320,
  keptRows: 320,
  quantum: 32,
  unitRows: 80,
  slots: 4,
  rank: 8,
  experts: 4,
  units: 8,
  blocks: 64,
  jobs: 2,
};
/**
 * Room for S2FT on every site: 32 channels each; of the odd model, 60 (a key head's three query heads of 20).
 */
export const s2ftAll = {
  sites: ["o_proj", "v_proj", "gate_proj", "up_proj", "down_proj"],
  parameters: 5 * 32 * 64,
} as const;
export const s2ftOdd = {
  sites: ["o_proj", "v_proj", "gate_proj", "up_proj", "down_proj"],
  parameters: 5 * 60 * 96,
} as const;
/** Of families with fused projections, and of mixtures: what their fixtures choose fits. */
export const s2ftFamilies = {
  phi3: { sites: ["qkv_proj", "gate_up_proj", "down_proj"], parameters: 4 * 16 * 48 },
  gpt2: { sites: ["c_attn", "c_fc", "c_proj"], parameters: 4 * 20 * 40 },
  mixtral: { sites: ["v_proj", "w1", "w3", "w2"], parameters: 3 * 8 * 40 },
  qwen3_moe: { sites: ["down_proj"], parameters: 4 * 48 },
  qwen3_moe_mixed: { sites: ["up_proj", "down_proj"], parameters: 2 * 4 * 40 },
} as const;
export const idsOf = (name: string, n: number, vocab: number): number[] => {
  const next = generator(name);
  return Array.from({ length: n }, () => next() % vocab);
};
/** The batch of make.py: awkward lengths, some labels ignored. */
export const batchOf = (vocab: number): { input_ids: number[]; labels: number[] }[] =>
  (
    [
      [7, 0],
      [33, 12],
      [65, 3],
      [70, 40],
      [2, 0],
    ] as const
  ).map(([n, skip], i) => {
    const ids = idsOf(`row${i}`, n, vocab);
    return { input_ids: ids, labels: ids.map((t, k) => (k < skip ? -100 : t)) };
  });

/**
 * The smallest device a bundle may meet: 1 MiB bindings and 128 invocations; 8 storage buffers and 16 KiB are
 * WebGPU's own minimum.
 */
export const tiny = { bindingBytes: 2 ** 20, workgroupInvocations: 128 } as const;

interface S2ftReference {
  readonly s2ft_loss: number;
  readonly s2ft_grads: Readonly<Record<string, readonly number[]>>;
  readonly s2ft: readonly number[];
}
interface Reference extends S2ftReference {
  readonly loss: number;
  readonly grads: Readonly<Record<string, readonly number[]>>;
  readonly full: readonly number[];
  readonly lora_loss: number;
  readonly lora_grads: Readonly<Record<string, readonly number[]>>;
  readonly lora: readonly number[];
}
type FamilyReference = Omit<Reference, keyof S2ftReference> &
  Partial<S2ftReference> & {
    /** Of a mixture: LoRA on the matrices of its experts too. */
    readonly experts?: Pick<Reference, "lora_loss" | "lora_grads" | "lora">;
    /** Of the file that peft read. */
    readonly weft_parameters_sha256?: string;
    /** Of each layer and expert: sums over tokens of what its channels carry. */
    readonly expert_squares?: readonly Readonly<
      Record<"activation" | "gradient", readonly (readonly number[])[]>
    >[];
  };
const json = (name: string): object => JSON.parse(readFileSync(`${fixtures}${name}`, "utf8")) as object;
export const reference = { ...json("reference.json"), ...json("families.json") } as {
  odd: Reference;
  even: Reference &
    Readonly<
      Record<
        "activation_squares" | "gradient_squares",
        readonly Readonly<Record<"ffn" | "heads", readonly number[]>>[]
      >
    >;
  mha: S2ftReference;
  mqa: S2ftReference;
  methods: Readonly<
    Record<
      string,
      { loss: number; grads: Readonly<Record<string, readonly number[]>>; losses: readonly number[] }
    >
  >;
  weft_adapter_sha256?: string;
  weft_s2ft_as_lora_sha256?: string;
  /** Tables by kind of scaling: inverse frequencies, and what cosines and sines are multiplied by. */
  ropes: readonly {
    readonly parameters: Readonly<Record<string, unknown>>;
    readonly inverse: readonly number[];
    readonly scale: number;
    readonly long?: readonly number[];
  }[];
} & Readonly<Record<FamilyName, FamilyReference>>;
const tensors = new Map(
  ["reference.safetensors", "families.safetensors"].flatMap((file) => {
    const bytes = readFileSync(`${fixtures}${file}`);
    return parseHeader(bytes, bytes.length, file).tensors.map(
      (t) => [t.name, decode(bytes.subarray(t.start, t.end), t.dtype, t.name)] as const,
    );
  }),
);
export const referenceTensor = (name: string): Float32Array => tensors.get(name)!;

const bundles = new Map<string, Promise<string>>();
/** A bundle of a tiny model, compiled once a test process. */
export function bundle(config: Config, options: CompileOptions = {}): Promise<string> {
  // On WebGPU every law is tested under the limits of the smallest devices.
  const limits = options.targets?.includes("webgpu") ? tiny : {};
  const full: CompileOptions = {
    targets: ["wasm"],
    train: ["lora"],
    // In the long form kernels are those that users have.
    quick: !long,
    limits,
    ...options,
    capacities: { ...small, ...options.capacities },
  };
  const key = JSON.stringify([config, full]);
  let made = bundles.get(key);
  if (!made) {
    const dir = `${scratch()}/model.weft`;
    made = compileTo(writeModel(config), dir, full).then(() => dir);
    bundles.set(key, made);
  }
  return made;
}
/**
 * What was left in the middle of a list is given back at its end: a request that comes after it has ended.
 */
export async function atRest(engine: Engine): Promise<void> {
  await engine.score([1, 2]);
  await engine.core.jobsAtRest();
}
export async function engineOf(
  config: Config,
  options: CompileOptions & { load?: LoadOptions } = {},
): Promise<Engine> {
  const { load: loading, ...compile } = options;
  const target = compile.targets?.[0] ?? "wasm";
  // What is compared is computed, and not read again: tests of prefixes ask for them.
  const device = target === "wasm" ? "wasm" : "software";
  return load(await bundle(config, compile), { device, prefixCache: false, ...loading });
}
export async function collect(
  engine: Engine,
  o: Parameters<Engine["generate"]>[0],
): Promise<{ ids: number[]; logprobs: number[] }> {
  const out = { ids: [] as number[], logprobs: [] as number[] };
  for await (const p of engine.generate(o)) {
    out.ids.push(p.id);
    out.logprobs.push(p.logprob);
  }
  return out;
}
/** Memory in use. What is cached is not: whoever needs room has it. */
export function inUse(engine: Engine) {
  const { blocks, ...others } = engine.memory();
  return { ...others, blocks: { total: blocks.total, free: blocks.free } };
}
export const bits = (a: Float32Array | Uint8Array): string =>
  Buffer.from(a.buffer, a.byteOffset, a.byteLength).toString("base64");
export const contentBits = (engine: Engine, ref: string): string =>
  engine.core.adapters.find(ref).content.tensors.map(bits).join();

/** Logits of the reference prompt against torch's. */
export async function checkLogits(
  engine: Engine,
  name: string,
  vocab: number,
  adapter?: string,
): Promise<void> {
  const { logits } = await engine.score(idsOf("prompt", 70, vocab), {
    logits: true,
    ...(adapter && { adapter }),
  });
  const want = referenceTensor(name);
  let max = 0;
  let error = 0;
  logits!.forEach((row, i) => {
    row.forEach((x, j) => {
      max = Math.max(max, Math.abs(want[i * vocab + j]!));
      error = Math.max(error, Math.abs(x - want[i * vocab + j]!));
    });
  });
  assert.ok(error <= 1e-4 * max, `${name}: largest error ${error}, logits up to ${max}`);
}
/** Gradient of a tensor from one plain SGD step, against norm and projections of torch's. */
export function checkGradient(
  name: string,
  before: Float32Array,
  after: Float32Array,
  lr: number,
  want: readonly number[],
): void {
  const g = Float64Array.from(before, (x, i) => (x - after[i]!) / lr);
  const got = [
    Math.sqrt(g.reduce((s, x) => s + x * x, 0)),
    ...[0, 1, 2, 3].map((k) => uniform(`projection${k}`, g.length).reduce((s, u, i) => s + u * g[i]!, 0)),
  ];
  got.forEach((x, i) =>
    assert.ok(
      Math.abs(x - want[i]!) <= 2e-4 * (want[0]! + 1e-3),
      `${name}: projection ${i} is ${x}, torch says ${want[i]}`,
    ),
  );
}
