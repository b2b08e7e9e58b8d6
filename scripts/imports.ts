/**
 * The import rule: ops ← compiler → runtime/bundle.ts ← runtime ← sdk ← examples, and no other arrow; no
 * module needs itself to be there before it is. Also: where GPU objects and node: may appear.
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
    "runtime/targets.ts",
    "runtime/disk.ts",
    "assemblyscript",
    "binaryen",
    "@huggingface/gguf",
    "valibot",
  ],
  runtime: ["runtime/", "valibot", "@noble/hashes/"],
  sdk: ["sdk/", "runtime/", "@huggingface/", "valibot", "fflate"],
  examples: ["examples/", "sdk/index.ts", "sdk/worker/index.ts", "scripts/build.ts", "uplot"],
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

/** Files whose values a source needs before its own are there: neither types nor what it imports later. */
function needs(path: string, text: string): string[] {
  const typesOnly = (named: ts.NamedImportBindings | ts.NamedExportBindings | undefined): boolean =>
    named !== undefined &&
    (ts.isNamedImports(named) || ts.isNamedExports(named)) &&
    named.elements.every((e) => e.isTypeOnly);
  return ts.createSourceFile(path, text, ts.ScriptTarget.ES2022).statements.flatMap((s) => {
    let types: boolean;
    if (ts.isImportDeclaration(s)) {
      const clause = s.importClause;
      types =
        clause?.phaseModifier === ts.SyntaxKind.TypeKeyword ||
        (clause !== undefined && !clause.name && typesOnly(clause.namedBindings));
    } else if (ts.isExportDeclaration(s)) types = s.isTypeOnly || typesOnly(s.exportClause);
    else return [];
    const from = s.moduleSpecifier;
    if (types || !from || !ts.isStringLiteral(from) || !from.text.startsWith(".")) return [];
    return [relative(root, resolve(root, dirname(path), from.text)).replaceAll("\\", "/")];
  });
}
/** Circles of a graph: a way from a node back to itself, once each. */
function circles(graph: ReadonlyMap<string, readonly string[]>): string[] {
  const out: string[] = [];
  const done = new Set<string>();
  const walk = (at: string, way: readonly string[]): void => {
    const since = way.indexOf(at);
    if (since >= 0) out.push([...way.slice(since), at].join(" → "));
    if (since >= 0 || done.has(at)) return;
    for (const next of graph.get(at) ?? []) walk(next, [...way, at]);
    done.add(at);
  };
  for (const at of graph.keys()) walk(at, []);
  return out;
}

/** Every violation, one line each. */
export function violations(): string[] {
  const out: string[] = [];
  const graph = new Map<string, string[]>();
  for (const [folder, may] of Object.entries(allowed))
    for (const path of sources(folder)) {
      const text = readFileSync(join(root, path), "utf8");
      graph.set(path, needs(path, text));
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
          /^compiler\/(compile|export|planner)\.ts$/.test(target) &&
          (dynamic || new RegExp(`import type \\{[^}]*\\} from "${spec}"`).test(text));
        if (!lazyCompiler && !may.some((p) => target.startsWith(p))) out.push(`${path}: imports ${target}`);
      }
      if (!gpuFiles.test(path) && /\bGPU(Device|Buffer|Queue|Adapter|ComputePipeline|BindGroup)\b/.test(text))
        out.push(`${path}: names a GPU object`);
    }
  return [...out, ...circles(graph).map((way) => `a circle: ${way}`)];
}
if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const found = violations();
  for (const v of found) console.error(v);
  process.exit(found.length ? 1 : 0);
}
