/**
 * Writes a folder, or a version, again and again: `folder | versions`, the folder, the writer's name, how
 * often, and bytes. Tells each write on a line when it is acknowledged.
 */
import { writeSync } from "node:fs";
import { WeftError } from "../../runtime/bundle.ts";
import { writeFolder } from "../../runtime/folder.ts";
import { writeVersion } from "../../runtime/versions.ts";
import { payload } from "./payload.ts";

const [how, dir, writer, times, bytes] = process.argv.slice(2) as [string, string, string, string, string];
try {
  for (let n = 1; n <= Number(times); n++) {
    const files = payload({ writer, n }, Number(bytes));
    await (how === "folder" ? writeFolder(dir, "adapter", files) : writeVersion(dir, n, files));
    writeSync(1, `${n}\n`);
  }
} catch (e) {
  writeSync(1, `${e instanceof WeftError ? e.message : (e as Error).stack}\n`);
  process.exitCode = 1;
}
