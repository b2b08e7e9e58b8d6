/**
 * LoRA as a GGUF file, as llama.cpp reads it (convert_lora_to_gguf.py, llama-adapter.cpp): of each matrix
 * NAME.lora_a [rank, in] and NAME.lora_b [out, rank], rows of b where those of the matrix are; one alpha for
 * all, which each rank divides; without one, the change is not scaled.
 */
import { WeftError } from "../../runtime/bundle.ts";
import type { Json } from "../models/model.ts";
import { openFile } from "./file.ts";
import { writtenAs } from "./model.ts";
import { type GgufTensor, ggml, writeGguf } from "./write.ts";

/** The change b·a of one matrix, under its checkpoint name. */
export interface AdapterPart {
  readonly name: string;
  readonly rank: number;
  readonly ins: number;
  readonly outs: number;
  /** [rank, ins] */
  readonly a: Float32Array;
  /** [outs, rank] */
  readonly b: Float32Array;
}
/** What says which base an adapter is of. */
const BASE = "weft.base";
const bytesOf = (values: Float32Array): Uint8Array =>
  new Uint8Array(values.buffer, values.byteOffset, values.byteLength);

/** A file in pieces; `alpha` null: nothing scales the parts. Throws WEFT_CONFIG as `modelAsGguf`. */
export function adapterAsGguf(
  config: Json,
  { name, base, alpha }: { readonly name: string; readonly base: string; readonly alpha: number | null },
  parts: readonly AdapterPart[],
): AsyncGenerator<Uint8Array, void, void> {
  const { gguf } = writtenAs(config);
  const tensors = parts.flatMap(({ name, rank, ins, outs }): GgufTensor[] => [
    { name: `${gguf.name(name)}.lora_a`, shape: [rank, ins], layout: ggml.F32 },
    { name: `${gguf.name(name)}.lora_b`, shape: [outs, rank], layout: ggml.F32 },
  ]);
  function* data(): Generator<Uint8Array, void, void> {
    for (const { name, rank, outs, a, b } of parts) {
      yield bytesOf(a);
      const rows = (from: number, to: number): Float32Array => b.slice(from * rank, to * rank);
      yield bytesOf(gguf.layout.convert(name, rows, 0, outs, config));
    }
  }
  const said = {
    "general.architecture": gguf.architecture,
    "general.type": "adapter",
    "general.name": name,
    "adapter.type": "lora",
    "adapter.lora.alpha": { f32: alpha ?? 0 },
    [BASE]: base,
  };
  return writeGguf(said, tensors, data());
}

/**
 * The parts of a file, of those matrices that it has any of. Throws WEFT_ADAPTER for a file that is no LoRA,
 * WEFT_ADAPTER_MISMATCH for one of other matrices, WEFT_WEIGHTS for one that is damaged.
 */
export async function adapterFromGguf(
  path: string,
  config: Json,
  matrices: readonly Pick<AdapterPart, "name" | "ins" | "outs">[],
): Promise<{ readonly alpha: number | null; readonly base: string | null; readonly parts: AdapterPart[] }> {
  const { gguf } = writtenAs(config);
  const { meta, names, shapeOf, read } = await openFile(path);
  const refuse = (
    code: "WEFT_ADAPTER" | "WEFT_ADAPTER_MISMATCH",
    at: string,
    expected: string,
    found: unknown,
  ): never => {
    throw new WeftError({ code, where: `${path}: ${at}`, expected, found: String(found) });
  };
  for (const [key, value] of [
    ["general.type", "adapter"],
    ["adapter.type", "lora"],
  ] as const)
    if (meta[key] !== value) refuse("WEFT_ADAPTER", key, value, meta[key]);
  const architecture = meta["general.architecture"];
  if (architecture !== gguf.architecture)
    refuse("WEFT_ADAPTER_MISMATCH", "general.architecture", gguf.architecture, architecture);
  const alpha = meta["adapter.lora.alpha"] ?? 0;
  if (typeof alpha !== "number" || !Number.isFinite(alpha))
    refuse("WEFT_ADAPTER", "adapter.lora.alpha", "a number", alpha);
  const left = new Set(names);
  const parts: AdapterPart[] = [];
  for (const { name, ins, outs } of matrices) {
    const [a, b] = [`${gguf.name(name)}.lora_a`, `${gguf.name(name)}.lora_b`];
    if (!left.has(a) && !left.has(b)) continue;
    const rank = shapeOf(a)?.[0] ?? refuse("WEFT_ADAPTER", a, `beside ${b}`, "nothing");
    for (const [tensor, shape] of [
      [a, [rank, ins]],
      [b, [outs, rank]],
    ] as const)
      if (`${shapeOf(tensor)}` !== `${shape}`)
        refuse("WEFT_ADAPTER_MISMATCH", tensor, `[${shape}]`, `[${shapeOf(tensor)}]`);
    const rows = (from: number, to: number): Float32Array => read(b, [outs, rank], from, to);
    parts.push({
      ...{ name, rank, ins, outs },
      a: read(a, [rank, ins], 0, rank),
      b: gguf.layout.restore(name, rows, 0, outs, config),
    });
    left.delete(a);
    left.delete(b);
  }
  for (const other of left)
    refuse("WEFT_ADAPTER_MISMATCH", "tensors", "those of this base's linear layers", other);
  const base = meta[BASE];
  return { alpha: alpha || null, base: typeof base === "string" ? base : null, parts } as never;
}
