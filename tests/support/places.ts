/** The two kinds of places that hold files, and processes that write there. */
import { spawn } from "node:child_process";
import { readdirSync, readFileSync, readlinkSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { build } from "esbuild";
import * as assert from "uvu/assert";
import { claimFolder, readFolder, writeFolder } from "../../runtime/folder.ts";
import { claimVersions, readVersion, writeVersion } from "../../runtime/versions.ts";
import { WeftError } from "../../sdk/index.ts";
import { NAMES, payload, type Write, writeOf } from "./payload.ts";
import { scratch } from "./tiny.ts";

/** Most bytes of a file that is read here. */
export const LIMIT = 2 ** 20;
export const refused = async (code: string, says: RegExp, f: () => Promise<unknown>): Promise<void> => {
  try {
    await f();
  } catch (e) {
    assert.instance(e, WeftError, String((e as Error).stack));
    assert.is((e as WeftError).code, code, (e as Error).message);
    assert.match((e as Error).message, says);
    return;
  }
  assert.unreachable(`expected ${code}`);
};
/** Every file, link and folder below, byte for byte. */
export const tree = (dir: string): Record<string, string> => {
  const out: Record<string, string> = {};
  const walk = (at: string): void => {
    for (const e of readdirSync(join(dir, at), { withFileTypes: true })) {
      const name = join(at, e.name);
      if (e.isDirectory()) walk(name);
      const path = join(dir, name);
      out[name] = e.isFile()
        ? readFileSync(path, "base64")
        : e.isSymbolicLink()
          ? `→ ${readlinkSync(path)}`
          : "folder";
    }
  };
  walk("");
  return out;
};

/** The two kinds of places, to the tests that hold for both. */
export const places = {
  folder: {
    write: (dir: string, w: Write) => writeFolder(dir, "adapter", payload(w)),
    read: async (dir: string) => writeOf(await readFolder(dir, NAMES, LIMIT)),
    claim: (dir: string) => claimFolder(dir, "adapter"),
    /** What lies there when all is well. */
    tidy: (dir: string) => assert.equal(readdirSync(dir).sort(), [".weft.json", ...NAMES].sort()),
  },
  versions: {
    write: (dir: string, w: Write) => writeVersion(dir, w.n, payload(w)),
    read: async (dir: string) => writeOf(await readVersion(dir)),
    claim: (dir: string) => claimVersions(dir, NAMES),
    tidy: (dir: string) => {
      const [current, ...versions] = readdirSync(dir).sort();
      assert.is(current, "CURRENT");
      assert.ok(versions.length <= 2 && versions.every((v) => /^v-\d+-/.test(v)), versions.join());
      for (const v of versions) assert.equal(readdirSync(join(dir, v)).sort(), [...NAMES].sort());
    },
  },
} as const;
export type Place = keyof typeof places;

/** tests/support/writer.ts, as one file that starts at once. */
export const writerFile = (async () => {
  const outfile = join(scratch(), "writer.mjs");
  await build({
    entryPoints: [fileURLToPath(new URL("./writer.ts", import.meta.url))],
    bundle: true,
    platform: "node",
    format: "esm",
    outfile,
    logLevel: "error",
  });
  return outfile;
})();
interface Writer {
  readonly acknowledged: () => number;
  /** The next line it writes. */
  readonly next: () => Promise<void>;
  readonly kill: () => void;
  /** Its exit code, and its last line. */
  readonly ended: Promise<{ code: number | null; last: string }>;
}
export async function startWriter(
  how: Place,
  dir: string,
  writer: string,
  times: number,
  o: { bytes?: number; shell?: string; cwd?: string; uid?: number } = {},
): Promise<Writer> {
  const args = [await writerFile, how, dir, writer, String(times), String(o.bytes ?? 20_000)];
  const child = o.shell
    ? spawn("sh", ["-c", `${o.shell}; exec "$0" "$@"`, process.execPath, ...args], { cwd: o.cwd })
    : spawn(process.execPath, args, { cwd: o.cwd, ...(o.uid !== undefined && { uid: o.uid, gid: o.uid }) });
  let out = "";
  let wake: (() => void)[] = [];
  const tell = (): void => {
    const waiting = wake;
    wake = [];
    for (const f of waiting) f();
  };
  child.stdout.on("data", (d) => {
    out += d;
    tell();
  });
  child.stderr.on("data", (d) => (out += d));
  const lines = (): string[] => out.split("\n").filter(Boolean);
  return {
    acknowledged: () => lines().filter((l) => /^\d+$/.test(l)).length,
    next: () => new Promise((r) => wake.push(r)),
    kill: () => child.kill("SIGKILL"),
    ended: new Promise((r) =>
      child.on("close", (code) => {
        tell();
        r({ code, last: lines().at(-1) ?? "" });
      }),
    ),
  };
}
