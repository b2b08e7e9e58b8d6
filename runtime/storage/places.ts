/** What a caller may name as a folder, beside a path. */
import { WeftError } from "../errors.ts";
import { show } from "../schema.ts";
import { blobDrive, fileDrive } from "./blobs.ts";
import type { Drive } from "./drive.ts";
import { handleDrive } from "./handle.ts";

/**
 * A folder: a path in Node, an address, `storage:NAME` for one of a page's own storage, a directory handle,
 * files that the user chose or dropped, or blobs by name. Addresses and files can only be read.
 */
export type Place = string | URL | FileSystemDirectoryHandle | Iterable<File> | Map<string, Blob>;

/** Throws WEFT_OPTION for what is no folder. */
export function driveOf(place: Exclude<Place, string | URL>): Drive {
  if (place instanceof Map) return blobDrive(place as Map<string, Blob>);
  if (typeof place === "object" && place !== null) {
    if ("getDirectoryHandle" in place) return handleDrive(place, `folder ${place.name}`);
    if (Symbol.iterator in place) return fileDrive(place);
  }
  throw new WeftError({
    code: "WEFT_OPTION",
    where: "folder",
    expected: "a path, an address, a directory handle, files, or a map of blobs",
    found: show(place),
  });
}
