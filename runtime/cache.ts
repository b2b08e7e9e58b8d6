/**
 * The user's cache, in Node: a folder of their own that nobody else may write to, so that what lies in it may
 * be used again, even as code. `WEFT_CACHE` names another place, or is `off`; else it is
 * `$XDG_CACHE_HOME/weft` or `~/.cache/weft`.
 */
import { node } from "./node.ts";

/**
 * A folder of the cache, made if need be; null where there is none to be trusted: no home, another owner,
 * open to others, or `off`.
 */
export async function cacheFolder(name: string): Promise<string | null> {
  const { fs, os, path } = await node();
  const { WEFT_CACHE: asked, XDG_CACHE_HOME: xdg } = process.env;
  if (asked === "off") return null;
  const base = path.resolve(asked || path.join(xdg || path.join(os.homedir(), ".cache"), "weft"));
  const folder = path.join(base, name);
  try {
    await fs.mkdir(folder, { recursive: true, mode: 0o700 });
    for (const at of [base, folder]) {
      const s = await fs.lstat(at);
      const own = process.getuid === undefined || (s.uid === process.getuid() && (s.mode & 0o022) === 0);
      if (!s.isDirectory() || !own) return null;
    }
    return folder;
  } catch {
    // A machine without a home, or a full or read-only one, works without a cache.
    return null;
  }
}
