/**
 * Job checkpoints: everything a job needs to go on bit for bit, as safetensors and JSON in versions
 * (runtime/versions.ts).
 */

import { decode, encode, parseHeader, type TensorData, WeftError } from "../runtime/bundle.ts";
import type { AdapterConfig, AdapterContent, BranchState } from "../runtime/content.ts";
import type { TrainState } from "../runtime/trainer.ts";
import { claimVersions, readVersion, writeVersion } from "../runtime/versions.ts";
import { parseJson } from "./files.ts";

interface Saved {
  readonly version: 4;
  readonly base: string;
  readonly numerics: string;
  readonly options: unknown;
  readonly step: number;
  readonly updates: number;
  readonly losses: readonly number[];
  readonly config: AdapterConfig | null;
  readonly branches: readonly (readonly BranchState[])[] | null;
  readonly best: { readonly step: number; readonly loss: number } | null;
}
const STATE = "trainer_state.json";
const TENSORS = "trainer_state.safetensors";
/**
 * Can checkpoints be written to `dir`? Asked before work starts. Throws WEFT_IO that names what stands in the
 * way.
 */
export const claimCheckpoints = (dir: string): Promise<void> => claimVersions(dir, [STATE, TENSORS]);

/** `options` are what results depend on; resuming with others is refused. */
export async function saveCheckpoint(
  dir: string,
  state: TrainState,
  base: string,
  numerics: string,
  options: unknown,
): Promise<void> {
  const tensors: TensorData[] = [];
  const put = (name: string, list: readonly Float32Array[] | undefined): void =>
    list?.forEach((data, i) =>
      tensors.push({ name: `${name}.${i}`, shape: [data.length], dtype: "F32", data }),
    );
  put("accum", state.accum);
  put("weights", state.weights);
  put("adapter", state.adapter?.tensors);
  put("best", state.best?.adapter?.tensors);
  const json: Saved = {
    version: 4,
    base,
    numerics,
    options,
    step: state.step,
    updates: state.updates,
    losses: state.losses,
    config: state.adapter?.config ?? null,
    branches: state.adapter?.branches ?? null,
    best: state.best ? { step: state.best.step, loss: state.best.loss } : null,
  };
  await writeVersion(dir, state.step, [
    [STATE, JSON.stringify(json)],
    [TENSORS, encode(tensors, { format: "weft" })],
  ]);
}

export async function loadCheckpoint(
  dir: string,
  base: string,
  numerics: string,
  options: unknown,
): Promise<TrainState> {
  const files = await readVersion(dir);
  const file = (name: string): Uint8Array => {
    const bytes = files.get(name);
    if (!bytes)
      throw new WeftError({
        code: "WEFT_IO",
        where: dir,
        expected: `a version with ${name}`,
        found: "one without",
      });
    return bytes;
  };
  const json = parseJson(file(STATE), `${dir}: ${STATE}`) as unknown as Saved;
  const refuse = (what: string, expected: string, found: string): never => {
    throw new WeftError({
      code: "WEFT_CONFLICT",
      where: `${dir}: ${what}`,
      expected,
      found,
      hint: "resume with the bundle, device and options of the checkpoint",
    });
  };
  if (json.version !== 4) refuse("version", "4", String(json.version));
  if (json.base !== base) refuse("base", base.slice(0, 12), String(json.base).slice(0, 12));
  if (json.numerics !== numerics) refuse("numerics", numerics, json.numerics);
  if (JSON.stringify(json.options) !== JSON.stringify(options))
    refuse("options", JSON.stringify(json.options), JSON.stringify(options));
  const where = `${dir}: ${TENSORS}`;
  const bytes = file(TENSORS);
  const { tensors } = parseHeader(bytes, bytes.length, where);
  const list = (name: string): Float32Array[] =>
    tensors
      .filter((t) => t.name.startsWith(`${name}.`))
      .sort((a, b) => Number(a.name.slice(name.length + 1)) - Number(b.name.slice(name.length + 1)))
      .map((t) => decode(bytes.subarray(t.start, t.end), t.dtype, `${where}: ${t.name}`));
  const adapter = (tensors: Float32Array[]): AdapterContent | null =>
    json.config && tensors.length ? { config: json.config, branches: json.branches!, tensors } : null;
  return {
    step: json.step,
    updates: json.updates,
    losses: json.losses,
    accum: list("accum"),
    weights: list("weights"),
    adapter: adapter(list("adapter")),
    best: json.best ? { ...json.best, adapter: adapter(list("best")) } : null,
  };
}
