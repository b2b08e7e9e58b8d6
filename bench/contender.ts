/** Contenders in processes of their own, which wait without computing while another has its turn. */
import { spawn, spawnSync } from "node:child_process";
import { cpSync, existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";
import { build } from "esbuild";

const peers = fileURLToPath(new URL("./peers/", import.meta.url));

export interface Contender {
  readonly name: string;
  ask<T>(what: string, args?: object): Promise<T>;
  end(): void;
}
/** Start a process that answers requests; null, with its reason on the console, when it does not start. */
export async function contender(
  name: string,
  command: string,
  args: readonly string[],
  cwd: string,
): Promise<Contender | null> {
  const child = spawn(command, args, {
    cwd,
    stdio: ["pipe", "pipe", "pipe"],
    env: { ...process.env, OMP_WAIT_POLICY: "PASSIVE" },
  });
  let said = "";
  child.stderr.on("data", (d) => (said = (said + d).slice(-2000)));
  const answers: ((line: string | null) => void)[] = [];
  const lines = createInterface({ input: child.stdout });
  lines.on("line", (line) => {
    if (line.startsWith("answer ")) answers.shift()?.(line.slice(7));
  });
  child.on("error", (e) => (said += e.message));
  lines.on("close", () => {
    for (const a of answers.splice(0)) a(null);
  });
  const next = async <T>(): Promise<T> => {
    const line = await new Promise<string | null>((resolve) => answers.push(resolve));
    const answer =
      line === null
        ? { error: /^.*Error:.*$/m.exec(said)?.[0] || said.trim().slice(-200) || "it ended" }
        : (JSON.parse(line) as { error?: string });
    if (answer.error) throw new Error(`${name}: ${answer.error}`);
    return answer as T;
  };
  try {
    await next();
  } catch (e) {
    console.log(`  not here: ${(e as Error).message}`);
    return null;
  }
  return {
    name,
    ask: <T>(what: string, args: object = {}) => {
      child.stdin.write(`${JSON.stringify({ what, ...args })}\n`);
      return next<T>();
    },
    end: () => void child.kill(),
  };
}
/**
 * The folder with the peers of bench/peers/package.json, installed into the temporary folder when they are
 * not there yet; null when npm cannot.
 */
export function peerFolder(): string | null {
  const manifest = readFileSync(join(peers, "package.json"), "utf8");
  const dir = join(tmpdir(), "weft-bench-peers");
  const marker = join(dir, "node_modules/installed.json");
  mkdirSync(dir, { recursive: true });
  if (!existsSync(marker) || readFileSync(marker, "utf8") !== manifest) {
    console.log("installing the peers (npm install, once) …");
    writeFileSync(join(dir, "package.json"), manifest);
    const npm = spawnSync("npm", ["install", "--no-audit", "--no-fund", "--loglevel=error"], {
      cwd: dir,
      stdio: ["ignore", "ignore", "inherit"],
    });
    if (npm.status !== 0) return null;
    writeFileSync(marker, manifest);
  }
  for (const f of readdirSync(peers)) if (f.endsWith(".mjs")) cpSync(join(peers, f), join(dir, f));
  return dir;
}
/**
 * A peer of TypeScript as an app would have it: JavaScript, whose process has nothing that reads TypeScript.
 * It cannot compile models.
 */
export async function builtPeer(name: string): Promise<string> {
  const outdir = resolve("node_modules/.cache/weft-bench");
  await build({
    ...{ entryPoints: [peerScript(name)], outdir, outExtension: { ".js": ".mjs" }, bundle: true },
    ...{ splitting: true, format: "esm", platform: "node", target: "node20", packages: "external" },
  });
  return join(outdir, name.replace(/ts$/, "mjs"));
}
export const peerScript = (name: string): string => join(peers, name);
