/** A PEFT folder's two files as an adapter. */
import type { BranchEntry, Manifest } from "../../runtime/bundle.ts";
import {
  type AdapterContent,
  absent,
  indexTensor,
  modulePath,
  placedOf,
  siteOf,
  wordsIn,
} from "../../runtime/content.ts";
import { resolveBranches } from "../../runtime/match.ts";
import { pattern, steps } from "../../runtime/pattern.ts";
import { decode, headerEnd, parseHeader, type TensorInfo } from "../../runtime/safetensors.ts";
import type { Index, Placed } from "../../runtime/tensors/tensor.ts";
import { readConfig } from "./config.ts";
import { fail, InFiles, indexInFiles, type Json, PREFIX } from "./folder.ts";
import { hasParameters, onMatrices } from "./parameters.ts";

/** PEFT files → adapter content. Every tensor must belong to this base and class. */
export async function readAdapter(
  json: Json,
  file: Uint8Array,
  manifest: Manifest,
  where: string,
): Promise<AdapterContent> {
  if (hasParameters(json)) {
    const single = onMatrices(json, file, manifest, where);
    return readAdapter(single.json, single.file, manifest, where);
  }
  const { config, method, layers, exclude, replaced } = readConfig(
    json,
    manifest,
    `${where}/adapter_config.json`,
  );
  const recorded = json.weft_base;
  if (typeof recorded === "string" && recorded !== manifest.base)
    fail(
      `${where}/adapter_config.json`,
      `an adapter of base ${manifest.base.slice(0, 12)}`,
      `base ${recorded.slice(0, 12)}`,
      "WEFT_ADAPTER_MISMATCH",
      "it was trained on another model",
    );
  const name = `${where}/adapter_model.safetensors`;
  headerEnd(file, file.length, name);
  const byName = new Map(
    parseHeader(file, file.length, name).tensors.map((t): [string, TensorInfo] => [t.name, t]),
  );
  const budget = steps();
  const names = typeof exclude === "string" ? null : exclude;
  const excludes =
    typeof exclude === "string"
      ? pattern(exclude, false, {
          code: "WEFT_ADAPTER",
          where: `${where}/adapter_config.json: exclude_modules`,
        })
      : null;
  const excluded = (p: string): boolean =>
    excludes ? excludes(p, budget) : (names ?? []).some((t) => p === t || p.endsWith(`.${t}`));
  // A branch that chooses keeps as many rows as the file has.
  const fromFile = (path: string, b: BranchEntry): number | null => {
    const index = indexTensor(b)!;
    return byName.get(`${PREFIX}${path}.${index.key}`)?.shape.at(-1) ?? null;
  };
  const chooses = manifest.branches.some((b) => b.method === method.name && indexTensor(b));
  const named = await resolveBranches(manifest, config, chooses ? fromFile : undefined);
  const branches = named.map((layer, l) =>
    layer.map((s, i) =>
      (layers && !layers.includes(l)) ||
      excluded(modulePath(manifest, l, siteOf(manifest, manifest.branches[i]!)))
        ? absent
        : s,
    ),
  );
  const take = (key: string, shape: readonly number[]): TensorInfo => {
    const info =
      byName.get(key) ?? fail(name, `a tensor ${key}`, "none of that name", "WEFT_ADAPTER_MISMATCH");
    if (JSON.stringify(info.shape) !== JSON.stringify(shape))
      fail(
        `${name}: ${key}`,
        JSON.stringify(shape),
        JSON.stringify(info.shape),
        "WEFT_ADAPTER_MISMATCH",
        "the adapter belongs to another base",
      );
    byName.delete(key);
    return info;
  };
  /** What a file chooses, in the adapter; and the file's row of each of its own. */
  const readIndex = (p: Placed, kind: Index, key: string): number[] => {
    const its = indexInFiles(p);
    const info = take(key, its.shape(p.rank));
    if (info.dtype !== "I32") fail(`${name}: ${key}`, its.says, info.dtype);
    const ints = new Int32Array(file.slice(info.start, info.end).buffer);
    const chosen = its.parse(p, manifest, ints, (expected, found, { hint, at = "" } = {}) =>
      fail(`${name}: ${key}${at}`, expected, found, "WEFT_ADAPTER_MISMATCH", hint),
    );
    kind.set(p, chosen);
    const rows = new Map(its.inFile(p, ints).map((x, r) => [x, r]));
    return chosen.map((x) => rows.get(x)!);
  };
  const all = new InFiles(manifest);
  const tensors = branches.map((layer, l) => {
    const words = new Float32Array(wordsIn(manifest, layer));
    for (const placed of placedOf(manifest, layer, words, l)) if (placed.length) all.add(placed, readIndex);
    return words;
  });
  all.map(
    () => {},
    ({ name: key, kind, placed, orders }) => {
      const info = take(key, kind.shape(placed));
      const values = decode(file.subarray(info.start, info.end), info.dtype, `${name}: ${key}`);
      kind.read(placed, values, orders);
    },
  );
  all.done();
  // Modules whose path ends in a name of modules_to_save, as PEFT matches them.
  const replaces = new Map<string, Float32Array>();
  for (const m of replaced)
    if (![...byName.keys()].some((key) => key.slice(0, key.lastIndexOf(".")).endsWith(m)))
      fail(`${name}: modules_to_save`, `tensors of ${m}`, "none", "WEFT_ADAPTER_MISMATCH");
  for (const [key, info] of byName) {
    const tensor = key.startsWith(PREFIX)
      ? manifest.tensors.find((t) => t.name === key.slice(PREFIX.length))
      : undefined;
    const saved = replaced.some((m) => key.slice(0, key.lastIndexOf(".")).endsWith(m));
    if (!saved || !tensor) continue;
    if (manifest.checkpoint.transposed.some((end) => key.endsWith(`.${end}`)))
      fail(`${name}: ${key}`, "no module in modules_to_save whose matrix is [in, out]", "one");
    if (JSON.stringify(info.shape) !== JSON.stringify(tensor.shape))
      fail(
        `${name}: ${key}`,
        JSON.stringify(tensor.shape),
        JSON.stringify(info.shape),
        "WEFT_ADAPTER_MISMATCH",
      );
    replaces.set(tensor.name, decode(file.subarray(info.start, info.end), info.dtype, `${name}: ${key}`));
    byName.delete(key);
  }
  for (const key of byName.keys())
    fail(
      name,
      "tensors of this base's linear layers",
      key,
      "WEFT_ADAPTER_MISMATCH",
      "the adapter belongs to another base, or uses a feature that is not supported",
    );
  return { config, branches, tensors, ...(replaces.size && { replaces }) };
}
