/** How a process of a test starts: with what run.ts has built, or from its source. */
import { existsSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath, pathToFileURL } from "node:url";

export const root = fileURLToPath(new URL("../..", import.meta.url));
export const tsx = pathToFileURL(join(root, "node_modules/tsx/dist/loader.mjs")).href;

/** A source as it was built; undefined where nobody has. */
export function built(source: string): string | undefined {
  const { WEFT_BUILT: folder } = process.env;
  const path = folder && join(folder, source.replace(/\.ts$/, ".js"));
  return path && existsSync(path) ? path : undefined;
}
/** What Node is called with before a script that imports sources. */
export const loader = (): string[] => (built("sdk/index.ts") ? [] : ["--import", tsx]);
/** What Node is called with to run a source. */
export function program(source: string): string[] {
  const path = built(source);
  return path ? [path] : ["--import", tsx, join(root, source)];
}
/** What Node is called with to run the command line. */
export const weft = (): string[] => program("tests/support/weft.ts");
