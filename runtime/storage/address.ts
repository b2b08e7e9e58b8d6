/** A folder at an HTTP(S) address, which is only read. */
import { WeftError } from "../errors.ts";
import { fileUrl, folderUrl, type Remote, readUrl, shown, statusOf } from "../remote.ts";
import type { Drive } from "./drive.ts";

export function addressDrive(location: string | URL, o: Remote): Drive {
  const base = folderUrl(location);
  return {
    where: shown(base).replace(/\/$/, ""),
    get: async (path, limit) => {
      try {
        return new Blob([(await readUrl(fileUrl(base, path), limit, o)) as BufferSource]);
      } catch (e) {
        if (e instanceof WeftError && statusOf(e) === 404) return null;
        throw e;
      }
    },
  };
}
