/**
 * What weft writes beside its files, the same wherever the folder is: the marker of a flat folder
 * (`.weft.json`), and `CURRENT`, which names the version that counts.
 */
import * as v from "valibot";
import { WeftError } from "./errors.ts";
import { bytes, exactly, foreign, matching, sha256Hex } from "./schema.ts";

export type FolderKind = "adapter" | "model" | "bundle";
/** What a file is to hold: whole, or in pieces that may be made while it is written. */
export type Content = Uint8Array | string | AsyncIterable<Uint8Array>;
/** Names and contents; they may be made while they are written. */
export type Files = Iterable<readonly [string, Content]> | AsyncIterable<readonly [string, Content]>;
export interface FileSum {
  readonly bytes: number;
  readonly sha256: string;
}
/** What any folder may have from the system, or from a browser that writes there; never touched. */
export const SYSTEM = /^(lost\+found|\.DS_Store|Thumbs\.db|desktop\.ini|\.nfs[0-9a-f]+|.*\.crswap)$/;

export const MARKER = ".weft.json";
/** Where new files lie before they are moved: `.weft-<id>`. */
export const STAGING = /^\.weft-[0-9a-f]{16}$/;
export const stagingOf = (m: { readonly id: string }): string => `.weft-${m.id}`;

const insideName = v.pipe(
  v.string(),
  v.check(
    (name) =>
      !/^\.weft|[\\\0]|^[a-z]+:/i.test(name) &&
      name.split("/").every((part) => part !== "" && part !== "." && part !== ".."),
    "a path inside the folder",
  ),
);
const sum: v.GenericSchema<object, FileSum> = foreign({ bytes, sha256: sha256Hex });
const sums = v.record(insideName, sum);
export const markerSchema = foreign({
  format: exactly("weft-folder"),
  kind: v.picklist(["adapter", "model", "bundle"]),
  /** Random, new with each write: two markers of one id are of one version. */
  id: matching(/^[0-9a-f]{16}$/, "16 hexadecimal digits"),
  /** What weft wrote here; while `writing`, what it wrote before. */
  files: sums,
  /** The version on its way in, `.weft-<id>`. */
  writing: v.optional(sums),
});
export type Marker = v.InferOutput<typeof markerSchema>;

export const CURRENT = "CURRENT";
export const VERSION = /^v-\d+-[0-9a-f]{16}$/;
export const currentSchema = foreign({
  format: exactly("weft-versions"),
  version: matching(VERSION, "a version"),
  files: v.record(matching(/^[\w-]+(\.[\w-]+)*$/, "a name"), sum),
});
export type Current = v.InferOutput<typeof currentSchema>;

export const article = (kind: FolderKind): string => (kind === "adapter" ? "an adapter" : `a ${kind}`);
/** What stands in the way of writing a flat folder. */
export const refused = (where: string, expected: string, found: string): WeftError =>
  new WeftError({
    code: "WEFT_IO",
    where,
    expected,
    found,
    hint: "weft only replaces what it wrote itself: choose another folder, or move this away",
  });
/** Throws WEFT_IO for a folder of another kind. */
export function checkKind(where: string, marker: Marker, kind: FolderKind): void {
  if (marker.kind !== kind) throw refused(where, `${article(kind)} to replace`, article(marker.kind));
}
export const STRANGER = "a folder with nothing but what weft wrote";
export const EDITED = ["the file that weft wrote", "one that was changed since"] as const;
/** What stands in the way of writing versions. */
export const refusedVersions = (
  where: string,
  found: string,
  expected = "a folder with nothing but checkpoints",
): WeftError =>
  new WeftError({
    code: "WEFT_IO",
    where,
    expected,
    found,
    hint: "choose another folder, or move this away",
  });
export const noVersion = (where: string): WeftError =>
  new WeftError({
    code: "WEFT_IO",
    where,
    expected: "the name of a version",
    found: "no such file",
    hint: "a folder of checkpoints has one: is the path right?",
  });
/** A version's file that is not what was written. */
export const changedSince = (where: string, expected: FileSum, found: FileSum): WeftError =>
  new WeftError({
    code: "WEFT_IO",
    where,
    expected: `${expected.bytes} bytes of sha-256 ${expected.sha256}`,
    found: `${found.bytes} bytes of sha-256 ${found.sha256}`,
    hint: "the file was changed after it was written",
  });
export const replaced = (where: string): WeftError =>
  new WeftError({
    code: "WEFT_CONFLICT",
    where,
    expected: "one version of the folder",
    found: "another than a moment ago: it is being replaced",
    hint: "load it again",
    retryable: true,
  });
