/**
 * The import rule: ops ← compiler → runtime/bundle.ts ← runtime ← sdk ← examples, and no other arrow. Also:
 * where GPU objects and node: may appear.
 */
import { readdirSync, readFileSync } from "node:fs";
import { dirname, join, relative, resolve } from "node:path";
import { fileURLToPath } from "node:url";
import ts from "typescript";

const root = fileURLToPath(new URL("..", import.meta.url));
/** folder → what it may import, as path prefixes. */
const allowed: Readonly<Record<string, readonly string[]>> = {
  ops: ["ops/"],
  compiler: [
    "compiler/",
    "ops/",
    "runtime/bundle.ts",
    "runtime/folder.ts",
    "runtime/cache.ts",
    "runtime/schema.ts",
    "runtime/disk.ts",
    "assemblyscript",
    "binaryen",
    "@huggingface/gguf",
    "valibot",
  ],
  runtime: ["runtime/", "valibot"],
  sdk: ["sdk/", "runtime/", "@huggingface/", "valibot"],
  examples: ["examples/", "sdk/index.ts"],
};
/** The only files with `node:` imports outside tests, benches, scripts and examples. */
const nodeFiles = new Set([
  "compiler/cache.ts",
  "compiler/files.ts",
  "compiler/weights.ts",
  "compiler/open.ts",
  "compiler/emit/asc.ts",
  "compiler/emit/host.ts",
  "compiler/emit/assemblyscript.ts",
  "runtime/node.ts",
  "sdk/cli.ts",
  "sdk/commands/chat.ts",
  "sdk/openai/node.ts",
]);
/** Files that may name GPU objects. */
const gpuFiles = /^runtime\//;

function* sources(dir: string): Generator<string> {
  for (const e of readdirSync(join(root, dir), { withFileTypes: true })) {
    const path = `${dir}/${e.name}`;
    if (e.isDirectory()) {
      if (path !== "runtime/host" && path !== "compiler/emit/assembly") yield* sources(path);
    } else if (path.endsWith(".ts")) yield path;
  }
}

/** Every violation, one line each. */
export function violations(): string[] {
  const out: string[] = [];
  for (const [folder, may] of Object.entries(allowed))
    for (const path of sources(folder)) {
      const text = readFileSync(join(root, path), "utf8");
      for (const { fileName: spec } of ts.preProcessFile(text, true, true).importedFiles) {
        const dynamic = text.includes(`import("${spec}")`);
        if (spec.startsWith("node:")) {
          if (folder !== "examples" && !nodeFiles.has(path)) out.push(`${path}: imports ${spec}`);
          continue;
        }
        const target = spec.startsWith(".")
          ? relative(root, resolve(root, dirname(path), spec)).replaceAll("\\", "/")
          : spec;
        const lazyCompiler =
          folder === "sdk" &&
          /^compiler\/(compile|planner)\.ts$/.test(target) &&
          (dynamic || new RegExp(`import type \\{[^}]*\\} from "${spec}"`).test(text));
        if (!lazyCompiler && !may.some((p) => target.startsWith(p))) out.push(`${path}: imports ${target}`);
      }
      if (!gpuFiles.test(path) && /\bGPU(Device|Buffer|Queue|Adapter|ComputePipeline|BindGroup)\b/.test(text))
        out.push(`${path}: names a GPU object`);
    }
  return out;
}
if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const found = violations();
  for (const v of found) console.error(v);
  process.exit(found.length ? 1 : 0);
}
