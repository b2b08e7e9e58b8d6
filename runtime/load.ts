/**
 * Bundle → verified manifest → device with weights in place. Nothing is allocated before version, paths,
 * sizes and hashes are checked.
 */
import {
  BUNDLE_FORMAT,
  BUNDLE_VERSION,
  layerConstants,
  layersWith,
  type Manifest,
  ManifestSchema,
  rotaryTables,
  WeftError,
} from "./bundle.ts";
import type { Change } from "./changes.ts";
import { checkConsistent } from "./consistent.ts";
import { type Device, type LoadProgress, paramNamed } from "./device.ts";
import { packPiece, piecesOf } from "./formats.ts";
import { type BundleReader, type RangeFile, sha256 } from "./reader.ts";
import type { Heard } from "./remote.ts";
import { check, exactly, finite, foreign } from "./schema.ts";
import { groupOf, SHARD_ROWS } from "./shards.ts";
import type { Rounding } from "./values.ts";

const bad = (where: string, expected: string, found: string, hint?: string): WeftError =>
  new WeftError({ code: "WEFT_BUNDLE", where, expected, found, ...(hint && { hint }) });

export async function readManifest(reader: BundleReader): Promise<Manifest> {
  const where = `${reader.where}: manifest.json`;
  const text = new TextDecoder().decode(await reader.read("manifest.json"));
  let json: unknown;
  try {
    json = JSON.parse(text);
  } catch (cause) {
    const { message } = cause as Error;
    // Servers of pages that find their own way answer any address with the page.
    const hint = /^\s*</.test(text) ? "the server sent a page: is the address right?" : undefined;
    throw new WeftError({
      ...{ code: "WEFT_BUNDLE", where, expected: "JSON", found: message, cause },
      ...(hint && { hint }),
    });
  }
  return asManifest(json, where);
}
/** What manifest.json says, checked as far as it goes. Throws WEFT_BUNDLE, or WEFT_BUNDLE_VERSION. */
export function asManifest(json: unknown, where: string): Manifest {
  const at = { code: "WEFT_BUNDLE", where } as const;
  const { version } = check(foreign({ format: exactly(BUNDLE_FORMAT), version: finite }), json, at);
  if (version !== BUNDLE_VERSION)
    throw new WeftError({
      code: "WEFT_BUNDLE_VERSION",
      where,
      expected: `version ${BUNDLE_VERSION}`,
      found: `version ${version}`,
      hint: version > BUNDLE_VERSION ? "update weft" : "compile the model again",
    });
  const manifest = check(ManifestSchema, json, at);
  checkConsistent(manifest);
  return manifest;
}

/** A file with its recorded size and hash, or an error. */
export async function readVerified(
  reader: BundleReader,
  m: Manifest,
  name: string,
  heard?: Heard,
): Promise<Uint8Array> {
  const entry = m.files[name];
  if (!entry) throw bad(`manifest`, `an entry for ${name}`, "none");
  const bytes = await reader.read(name, entry.bytes, heard);
  await checkFile(reader, m, name, bytes.length, () => sha256(bytes));
  return bytes;
}
async function checkFile(
  reader: BundleReader,
  m: Manifest,
  name: string,
  bytes: number,
  hash: () => Promise<string>,
): Promise<void> {
  const entry = m.files[name]!;
  if (bytes !== entry.bytes)
    throw bad(
      `${reader.where}: ${name}`,
      `${entry.bytes} bytes`,
      `${bytes} bytes`,
      "the file is truncated or was changed",
    );
  const found = await hash();
  if (found !== entry.sha256)
    throw bad(
      `${reader.where}: ${name}`,
      `sha-256 ${entry.sha256}`,
      found,
      "the file was changed after it was compiled",
    );
}
/** A verified file by ranges: in memory as a whole only where it has no reader for pieces. */
async function openVerified(
  reader: BundleReader,
  m: Manifest,
  name: string,
  heard: Heard,
): Promise<Pick<RangeFile, "range" | "close">> {
  if (!reader.open) {
    const bytes = await readVerified(reader, m, name, heard);
    return { range: async (from, to) => bytes.subarray(from, to), close: async () => {} };
  }
  const file = await reader.open(name, m.files[name]!.bytes, heard);
  try {
    await checkFile(reader, m, name, file.bytes, async () => file.sha256);
    return file;
  } catch (e) {
    await file.close();
    throw e;
  }
}

/**
 * Copy every weight into its chamber, in the panels of the device's target; `changeOf` may move any of them
 * on the way, in the model's own order: what storing them then took is returned.
 */
export async function uploadWeights(
  reader: BundleReader,
  m: Manifest,
  device: Device,
  onProgress: (p: LoadProgress) => void,
  changeOf?: (layer: number, name: string) => Change | undefined,
): Promise<readonly Rounding[]> {
  const { plan } = device;
  const lost: Rounding[] = [];
  const layers = m.model.layers;
  const where = new Map<string, { group: number; name: string; outer: boolean }>();
  for (const [name, path] of Object.entries(m.checkpoint.outer))
    where.set(path, { group: layers, name, outer: true });
  for (const [name, path] of Object.entries(m.checkpoint.layer))
    for (const l of layersWith(m.model, paramNamed(plan.layerParams, name)))
      where.set(path.replace("{l}", String(l)), { group: l, name, outer: false });
  const total = m.tensors.reduce((n, t) => n + t.bytes, 0);
  let done = 0;
  const shards = [...new Set(m.tensors.map((t) => t.shard))];
  const toFetch = shards.reduce((n, shard) => n + (m.files[shard]?.bytes ?? 0), 0);
  let fetched = 0;
  const heard: Heard = (bytes) => onProgress({ phase: "fetch", done: (fetched += bytes), total: toFetch });
  for (const shard of shards) {
    const file = await openVerified(reader, m, shard, heard);
    try {
      for (const t of m.tensors) {
        if (t.shard !== shard) continue;
        const to = where.get(t.name);
        if (!to) throw bad(`tensor ${t.name}`, "a parameter of this model", "one it does not have");
        const p = paramNamed(to.outer ? plan.outerParams : plan.layerParams, to.name);
        const change = changeOf?.(to.group, to.name);
        // Both are rare.
        const moving = change || m.selection ? await import("./reorder.ts") : null;
        const move = moving?.moveOf(m, to.group, to.name, change);
        const at = { space: "weights", group: groupOf(p, to.group) } as const;
        let range = (from: number, to: number): Promise<Uint8Array> =>
          file.range(t.start + from, t.start + to);
        if (p.kind === "vector") {
          const values = new Float32Array((await range(0, t.bytes)).slice().buffer);
          move?.(values);
          device.write({ ...at, offset: p.offset }, values);
        } else {
          if (move) {
            const { changed } = moving!;
            const where = `${reader.where}: ${t.name}`;
            const { stored, rounding } = changed(t.format, await range(0, t.bytes), p.n, p.k, move, where);
            // An order alone rounds nothing.
            if (change) lost.push(rounding);
            range = async (from, to) => stored.subarray(from, to);
          }
          const block = p.own === null ? undefined : SHARD_ROWS;
          for (const piece of piecesOf(t.format, p.n, p.k, plan.panel, block))
            device.write(
              { ...at, offset: p.offset + piece.at },
              packPiece(t.format, piece, await range(piece.from, piece.to), p.k, plan.panel),
            );
        }
        where.delete(t.name);
        done += t.bytes;
        onProgress({ phase: "upload", done, total });
      }
    } finally {
      await file.close();
    }
  }
  if (where.size) throw bad("manifest tensors", `${[...where.keys()][0]}`, "no such tensor");
  writeConstants(m, device, layers);
  return lost;
}
/** What kernels read beside weights: rotary tables, and numbers of the first layers and the outer group. */
export function writeConstants(m: Manifest, device: Device, first: number): void {
  for (let lane = 0; lane < device.lanes; lane++)
    device.write(
      { space: "arena", group: 0, offset: device.plan.homes.rotary, lane },
      rotaryTables(m.model.ropes, m.capacities.context),
    );
  for (const g of [...Array(first).keys(), m.model.layers]) {
    const constants = layerConstants.map((name) => m.model.perLayer[name]?.[g] ?? 0);
    device.write({ space: "tables", group: g, offset: 0 }, Uint32Array.of(g, ...constants));
  }
}
