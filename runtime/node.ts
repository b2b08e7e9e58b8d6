/**
 * What Node has and a page has not. The runtime's and the SDK's one door to `node:` modules, which are loaded
 * on first use. In a bundle for pages node.page.ts stands in its place.
 */
export type { Dirent, Stats } from "node:fs";
export type { FileHandle } from "node:fs/promises";

export interface Node {
  readonly fs: typeof import("node:fs/promises");
  readonly sync: typeof import("node:fs");
  readonly path: typeof import("node:path");
  readonly crypto: typeof import("node:crypto");
  readonly os: typeof import("node:os");
  readonly url: typeof import("node:url");
  readonly threads: typeof import("node:worker_threads");
  readonly module: Pick<typeof import("node:module"), "createRequire">;
  readonly zlib: typeof import("node:zlib");
}
async function loadNode(): Promise<Node> {
  const [fs, sync, path, crypto, os, url, threads, module, zlib] = await Promise.all([
    import("node:fs/promises"),
    import("node:fs"),
    import("node:path"),
    import("node:crypto"),
    import("node:os"),
    import("node:url"),
    import("node:worker_threads"),
    import("node:module"),
    import("node:zlib"),
  ]);
  return { fs, sync, path, crypto, os, url, threads, module, zlib };
}

let loaded: Promise<Node> | undefined;
export const node = (): Promise<Node> => (loaded ??= loadNode());
export const isNode = typeof process !== "undefined" && Boolean(process.versions?.node);
