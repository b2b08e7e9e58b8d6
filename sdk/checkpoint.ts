/**
 * Job checkpoints: everything a job needs to go on bit for bit, as safetensors and JSON in versions
 * (runtime/versions.ts).
 */

import * as v from "valibot";
import { WeftError } from "../runtime/bundle.ts";
import type { AdapterContent } from "../runtime/content.ts";
import { type Folder, folderAt, type Place } from "../runtime/folders.ts";
import { decode, encode, parseHeader, type TensorData } from "../runtime/safetensors.ts";
import {
  boolean,
  check,
  count,
  exactly,
  finite,
  type Of,
  object,
  oneOf,
  positive,
  record,
  sha256Hex,
  show,
  text,
} from "../runtime/schema.ts";
import { selectors } from "../runtime/selectors.ts";
import type { TrainState } from "../runtime/trainer.ts";
import { parseJson } from "./files.ts";

const branchState = object({ rank: count, alpha: finite, scale: finite });
const Saved = object({
  version: exactly(7),
  base: sha256Hex,
  numerics: text,
  /** What results depend on; resuming with others is refused. */
  options: record(v.unknown()),
  step: count,
  updates: count,
  /** JSON has no NaN: null is the loss of a step whose numbers were not finite. */
  losses: v.array(v.nullable(finite)),
  config: v.nullable(
    object({
      method: text,
      rank: v.nullable(positive),
      alpha: finite,
      rslora: boolean,
      dropout: finite,
      targetModules: v.union([text, v.array(text)]),
      rankPattern: record(positive),
      alphaPattern: record(finite),
      selector: oneOf(selectors),
    }),
  ),
  branches: v.nullable(v.array(v.array(branchState))),
  best: v.nullable(object({ step: count, loss: finite })),
});
type Saved = Of<typeof Saved>;
const STATE = "trainer_state.json";
const TENSORS = "trainer_state.safetensors";
/** What whoever took it wants to know when it goes on. */
const ABOUT = "about.json";
/**
 * A folder that takes checkpoints, asked before work starts. Throws WEFT_IO that names what is in the way.
 */
export async function claimCheckpoints(place: Place): Promise<Folder> {
  const folder = await folderAt(place);
  await folder.claimVersions([STATE, TENSORS, ABOUT]);
  return folder;
}

/** How many steps a job is to take is no part of what it was until now: it may be more when it goes on. */
type Options = Readonly<Record<string, unknown>>;
const settingsIn = (o: Options): Readonly<Record<string, unknown>> =>
  typeof o.settings === "object" && o.settings ? (o.settings as Record<string, unknown>) : {};
const stepsOf = (o: Options): number => Number(settingsIn(o).steps);
const withoutSteps = (o: Options): Options => {
  const { steps: _, ...settings } = settingsIn(o);
  return { ...o, settings };
};

/** What a job's results depend on; going on with others is refused. */
export interface Grounds {
  readonly base: string;
  readonly numerics: string;
  readonly options: Options;
}
export interface Checkpoint extends Grounds {
  readonly state: TrainState;
}
export async function saveCheckpoint(
  folder: Folder,
  { state, base, numerics, options }: Checkpoint,
  about?: Readonly<Record<string, unknown>>,
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
    version: 7,
    base,
    numerics,
    options,
    step: state.step,
    updates: state.updates,
    losses: state.losses.map((x) => (Number.isFinite(x) ? x : null)),
    config: state.adapter?.config ?? null,
    branches: state.adapter?.branches ?? null,
    best: state.best ? { step: state.best.step, loss: state.best.loss } : null,
  };
  await folder.writeVersion(state.step, [
    [STATE, JSON.stringify(json)],
    [TENSORS, encode(tensors, { format: "weft" })],
    ...(about ? ([[ABOUT, JSON.stringify(about)]] as const) : []),
  ]);
}
/** What was kept with a checkpoint for who goes on; null where nothing was. Throws WEFT_IO. */
export async function readAbout(place: Place): Promise<Record<string, unknown> | null> {
  const folder = await folderAt(place);
  const bytes = (await folder.readVersion()).get(ABOUT);
  return bytes ? parseJson(bytes, `${folder.where}: ${ABOUT}`) : null;
}

/** Where two values of JSON differ first: the path, and what stands there. */
function difference(a: unknown, b: unknown, path: string): readonly [string, unknown, unknown] | null {
  if (JSON.stringify(a) === JSON.stringify(b)) return null;
  const isPart = (x: unknown): x is Record<string, unknown> => typeof x === "object" && x !== null;
  if (!isPart(a) || !isPart(b)) return [path, a, b];
  for (const key of new Set([...Object.keys(a), ...Object.keys(b)])) {
    const found = difference(a[key], b[key], `${path}.${key}`);
    if (found) return found;
  }
  return [path, a, b];
}

/** Throws WEFT_CONFLICT where a job would go on from `then` on other grounds. */
export function checkSame(then: Grounds, now: Grounds, where: string): void {
  const refuse = (what: string, expected: string, found: string, hint = ""): never => {
    throw new WeftError({
      code: "WEFT_CONFLICT",
      where: `${where}: ${what}`,
      expected,
      found,
      hint: hint || "resume with the bundle, device, data and options of the checkpoint",
    });
  };
  if (then.base !== now.base) refuse("base", then.base.slice(0, 12), now.base.slice(0, 12));
  if (then.numerics !== now.numerics) refuse("numerics", then.numerics, now.numerics);
  const other = difference(withoutSteps(then.options), withoutSteps(now.options), "options");
  if (other) refuse(other[0], show(other[1]), show(other[2]));
  const [done, wanted] = [stepsOf(then.options), stepsOf(now.options)];
  if (!(wanted >= done))
    refuse("steps", `at least ${done}, as it was started with`, String(wanted), "for fewer, begin anew");
}

export async function loadCheckpoint(place: Place, now: Grounds): Promise<TrainState> {
  const folder = await folderAt(place);
  const { where: dir } = folder;
  const files = await folder.readVersion();
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
  const raw = parseJson(file(STATE), `${dir}: ${STATE}`);
  if (raw.version !== 7)
    throw new WeftError({
      code: "WEFT_CONFLICT",
      where: `${dir}: version`,
      expected: "7",
      found: show(raw.version),
      hint: "it was written by another version of weft",
    });
  const json = check(Saved, raw, { code: "WEFT_IO", where: `${dir}: ${STATE}` });
  checkSame(json, now, dir);
  const where = `${dir}: ${TENSORS}`;
  const bytes = file(TENSORS);
  const { tensors } = parseHeader(bytes, bytes.length, where);
  const list = (name: string): Float32Array[] =>
    tensors
      .filter((t) => t.name.startsWith(`${name}.`))
      .sort((a, b) => Number(a.name.slice(name.length + 1)) - Number(b.name.slice(name.length + 1)))
      .map((t) => decode(bytes.subarray(t.start, t.end), t.dtype, `${where}: ${t.name}`));
  const adapter = (tensors: Float32Array[]): AdapterContent | null =>
    json.config && json.branches && tensors.length
      ? { config: json.config, branches: json.branches, tensors }
      : null;
  return {
    step: json.step,
    updates: json.updates,
    losses: json.losses.map((x) => x ?? Number.NaN),
    accum: list("accum"),
    weights: list("weights"),
    adapter: adapter(list("adapter")),
    best: json.best ? { ...json.best, adapter: adapter(list("best")) } : null,
  };
}
