/** The package as a stranger has it: packed, and installed into a folder of its own. */
import { spawn } from "node:child_process";
import { cpSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { scratch } from "./tiny.ts";

const root = fileURLToPath(new URL("../..", import.meta.url));
export interface Ran {
  readonly code: number | null;
  readonly out: string;
  readonly err: string;
}
export function runIn(folder: string, command: string, args: readonly string[], env = {}): Promise<Ran> {
  const child = spawn(command, args, {
    cwd: folder,
    stdio: ["ignore", "pipe", "pipe"],
    env: { ...process.env, ...env },
  });
  let [out, err] = ["", ""];
  child.stdout.on("data", (d) => (out += d));
  child.stderr.on("data", (d) => (err += d));
  return new Promise((resolve, reject) => {
    child.on("error", reject);
    child.on("close", (code) => resolve({ code, out, err }));
  });
}
export interface Installed {
  readonly tarball: Uint8Array;
  /** Beside the consumers' folders: node_modules. */
  readonly folder: string;
  /** The package in it. */
  readonly inside: string;
}
let installed: Promise<Installed> | undefined;
/** Packed and installed once a test process, without a network: what the package needs is linked. */
export const install = (): Promise<Installed> => (installed ??= installing());
async function installing(): Promise<Installed> {
  const folder = scratch("weft-consumers-");
  const npm = async (cwd: string, ...args: string[]): Promise<string> => {
    const { code, out, err } = await runIn(cwd, "npm", args);
    if (code !== 0) throw new Error(`npm ${args.join(" ")}: ${err}${out}`);
    return out;
  };
  const packed = await npm(root, "pack", "--silent", "--pack-destination", folder);
  const tarball = join(folder, packed.trim().split("\n").at(-1)!);
  const { dependencies } = JSON.parse(readFileSync(join(root, "package.json"), "utf8")) as {
    dependencies: Record<string, string>;
  };
  const links = Object.keys(dependencies).map((name) => [name, `file:${join(root, "node_modules", name)}`]);
  cpSync(join(root, "tests/consumers"), folder, { recursive: true });
  writeFileSync(
    join(folder, "package.json"),
    JSON.stringify({
      name: "consumers",
      private: true,
      dependencies: { "@weft/sdk": `file:${tarball}`, ...Object.fromEntries(links) },
    }),
  );
  await npm(folder, "install", "--offline", "--ignore-scripts", "--no-audit", "--no-fund");
  return { tarball: readFileSync(tarball), folder, inside: join(folder, "node_modules/@weft/sdk") };
}
