/** Where a bundle is read from: a folder or an HTTP(S) address. The runtime's only door to files. */
import { WeftError } from "./bundle.ts";
import { openInFolder, readFromFolder } from "./folder.ts";

export { sha256 } from "./hash.ts";

export interface BundleReader {
  readonly where: string;
  /** A whole file of the bundle. */
  readonly read: (name: string) => Promise<Uint8Array>;
  /** A large file in pieces, where that can be: its size and SHA-256, read through once, and any range of it. */
  readonly open?: (name: string) => Promise<RangeFile>;
}
export interface RangeFile {
  readonly bytes: number;
  readonly sha256: string;
  readonly range: (from: number, to: number) => Promise<Uint8Array>;
  readonly close: () => Promise<void>;
}

/** Names inside a bundle stay inside it. */
export function checkName(name: string): void {
  if (
    name.startsWith("/") ||
    name.includes("\\") ||
    name.split("/").some((p) => p === "" || p === "." || p === "..") ||
    /^[a-z]+:/i.test(name)
  )
    throw new WeftError({
      code: "WEFT_BUNDLE",
      where: `manifest file ${JSON.stringify(name)}`,
      expected: "a path inside the bundle",
      found: "a path that leaves it",
    });
}

export async function openReader(location: string | URL): Promise<BundleReader> {
  const text = String(location);
  if (/^https?:/.test(text)) {
    const base = text.endsWith("/") ? text : `${text}/`;
    return {
      where: text,
      read: async (name) => {
        checkName(name);
        const response = await fetch(new URL(name, base)).catch((cause: Error) => {
          throw new WeftError({
            code: "WEFT_IO",
            where: `${base}${name}`,
            expected: "a response",
            found: cause.message,
            retryable: true,
            cause,
          });
        });
        if (!response.ok)
          throw new WeftError({
            code: "WEFT_IO",
            where: `${base}${name}`,
            expected: "200",
            found: String(response.status),
          });
        return new Uint8Array(await response.arrayBuffer());
      },
    };
  }
  const { join } = await import("node:path");
  const { fileURLToPath } = await import("node:url");
  const folder = text.startsWith("file:") ? fileURLToPath(text) : text;
  const missing = (name: string) => (cause: Error) => {
    throw new WeftError({
      code: "WEFT_BUNDLE",
      where: join(folder, name),
      expected: "a file of the bundle",
      found: cause.message,
      hint: "compile the model with `weft compile`",
      cause,
    });
  };
  return {
    where: folder,
    read: async (name) => {
      checkName(name);
      return readFromFolder(join(folder, name)).catch(missing(name));
    },
    open: async (name) => {
      checkName(name);
      return openInFolder(join(folder, name)).catch(missing(name));
    },
  };
}
