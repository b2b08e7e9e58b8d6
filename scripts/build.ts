/**
 * Makes dist/, what the package ships beside its documents: for Node every source file as JavaScript of its
 * own, with declarations and the texts that the compiler reads; for pages one bundle, in which NAME.page.ts
 * stands wherever there is one in place of NAME.ts.
 */
import { cpSync, existsSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { dirname, join, relative } from "node:path";
import { fileURLToPath } from "node:url";
import { type BuildOptions, type BuildResult, build, type Metafile, type Plugin } from "esbuild";
import ts from "typescript";

export const root = fileURLToPath(new URL("..", import.meta.url));
const dist = join(root, "dist");
const layers = ["ops", "compiler", "runtime", "sdk"];
/** AssemblyScript: texts that bundles are compiled from. */
const assemblyScript = ["runtime/host", "compiler/emit/assembly"];
/** What else is read, or started, beside the module that does. */
const beside = [...assemblyScript, "compiler/emit/assemble.mjs", "asconfig.json"];
const target = "es2022";

/** Every TypeScript source of the layers, as a path from the root. */
function* sources(folder: string): Generator<string> {
  for (const e of readdirSync(join(root, folder), { withFileTypes: true })) {
    const path = `${folder}/${e.name}`;
    if (e.isDirectory()) {
      if (!assemblyScript.includes(path)) yield* sources(path);
    } else if (path.endsWith(".ts")) yield path;
  }
}
const all = layers.flatMap((layer) => [...sources(layer)]);
const forNode = all.filter((path) => !path.endsWith(".page.ts"));

/** Sources import each other as .ts, what is shipped as .js. */
const everyModule: Plugin = {
  name: "every module apart",
  setup: (b) => {
    b.onResolve({ filter: /^\./ }, ({ path, kind }) =>
      kind === "entry-point" ? undefined : { path: path.replace(/\.ts$/, ".js"), external: true },
    );
  },
};
/** A format or an optimizer without what kernels are made of: only the compiler reads that. */
const ofKernels = ["wgsl", "assembly", "step"];
function withoutKernels(path: string): string {
  const source = ts.createSourceFile(path, readFileSync(path, "utf8"), ts.ScriptTarget.Latest, true);
  const { text } = source;
  let [out, at] = ["", 0];
  const visit = (node: ts.Node): void => {
    if (ts.isPropertyAssignment(node) && ofKernels.includes(node.name.getText(source))) {
      out += text.slice(at, node.getStart(source));
      at = node.end + (text[node.end] === "," ? 1 : 0);
    } else ts.forEachChild(node, visit);
  };
  visit(source);
  return out + text.slice(at);
}
const inPages = (path: string): string => {
  const there = path.replace(/\.ts$/, ".page.ts");
  return existsSync(there) ? there : path;
};
/**
 * What pages fetch when they need it, each with the door behind which it is: it is only ever asked for by who
 * has that door open. Told so, what doors need lies together, and not in a chunk for each set of those that
 * share it, which would compress far worse.
 */
const later = new Map<string, string>();
for (const from of all)
  for (const [, to] of readFileSync(join(root, from), "utf8").matchAll(/\bimport\("(\.[^"]+\.ts)"\)/g)) {
    const path = relative(root, join(root, dirname(from), to!));
    const layer = path.split("/")[0]!;
    // An engine in a worker has a door of its own, with these behind it.
    const own = ["sdk/engine.ts", "sdk/replay/local.ts", "sdk/download.ts"].includes(path);
    if (!own && (layer === "runtime" || layer === "sdk"))
      later.set(inPages(join(root, path)), join(root, layer, "index.ts"));
  }

/**
 * Tables of what few pages need of concepts that have a file each. Their folders are there twice, once for
 * these tables: so those few fetch what they need, and others do not.
 */
const apart = new Set(
  ["runtime/formats/values.ts", "runtime/tensors/files.ts"].map((path) => join(root, path)),
);
const suffix = "?apart";

/** For pages: NAME.page.ts in place of NAME.ts; formats and optimizers without what kernels are made of. */
const pages: Plugin = {
  name: "pages",
  setup: (b) => {
    b.onResolve({ filter: /^\.\.?\/.*\.ts$/ }, ({ path, resolveDir, importer }) => {
      const here = join(resolveDir, path);
      const there = inPages(here);
      const ofTable = apart.has(importer) || importer.endsWith(suffix);
      if (ofTable && dirname(here) === resolveDir) return { path: there, suffix };
      return there === here ? undefined : { path: there };
    });
    b.onLoad({ filter: /\/(runtime|sdk)\/.*\.ts$/ }, ({ path }) => {
      const door = later.get(path);
      if (!door) return undefined;
      const contents = `import ${JSON.stringify(door)};\n${readFileSync(path, "utf8")}`;
      return { contents, loader: "ts" };
    });
    b.onLoad({ filter: /\/runtime\/(formats\/\w+|kv|optimizers\/\w+)\.ts$/ }, ({ path }) => ({
      contents: withoutKernels(path),
      loader: "ts",
    }));
  },
};

/** The doors of the package that open in a page too. */
export const doors = {
  ...{ index: "sdk/index.ts", runtime: "runtime/index.ts", openai: "sdk/openai/index.ts" },
  worker: "sdk/worker/index.ts",
};
/**
 * What the page's worker runs, in one file: bundlers that find it by its address may make another kind of
 * script of it, which has no chunks.
 */
export const workerEntry: BuildOptions = {
  ...{ entryPoints: { "worker-entry": "sdk/worker/entry.ts" }, splitting: false, minify: true },
};
/**
 * Bundle `entryPoints` for pages, with all that they need: neither `node:`, nor the compiler, nor a package
 * is left to be found.
 */
export async function forPages(options: BuildOptions): Promise<BuildResult & { metafile: Metafile }> {
  const result = await build({
    ...{ bundle: true, splitting: true, format: "esm", platform: "browser", target, metafile: true },
    ...{ absWorkingDir: root, logLevel: "warning", plugins: [pages], legalComments: "none" },
    ...options,
  });
  return { ...result, metafile: result.metafile! };
}

/** Licenses of the packages whose code is in a bundle. */
function licenses({ inputs }: Metafile): string {
  const packages = new Set(
    Object.keys(inputs).flatMap((path) => /^.*node_modules\/(?:@[^/]+\/)?[^/]+/.exec(path)?.[0] ?? []),
  );
  return [...packages]
    .sort()
    .map((path) => {
      const folder = join(root, path);
      const { name, version } = JSON.parse(readFileSync(join(folder, "package.json"), "utf8")) as {
        name: string;
        version: string;
      };
      const file = readdirSync(folder).find((f) => /^licen[cs]e/i.test(f));
      if (!file) throw new Error(`${name} has no license file to ship`);
      return `${name} ${version}\n\n${readFileSync(join(folder, file), "utf8").trim()}\n`;
    })
    .join(`\n${"-".repeat(80)}\n\n`);
}

/** Declarations that lie behind one of the package's doors, by path; pages have the same doors. */
function* behindDoors(all: ReadonlyMap<string, string>): Generator<readonly [string, string]> {
  const { exports } = JSON.parse(readFileSync(join(root, "package.json"), "utf8")) as {
    exports: Record<string, { types?: string } | string>;
  };
  const doors = Object.values(exports).flatMap((e) => (typeof e === "object" && e.types) || []);
  const found = new Set(doors.map((types) => join(root, types)));
  for (const path of found) {
    const text = all.get(path);
    if (text === undefined) throw new Error(`${path}: no such declarations`);
    for (const [, to] of text.matchAll(/(?:from |import\()"(\.[^"]+)\.js"/g))
      found.add(`${join(dirname(path), to!)}.d.ts`);
    yield [path, text];
  }
}
/** Declare what Node gets. */
function declare(): void {
  const config = ts.readConfigFile(join(root, "tsconfig.json"), ts.sys.readFile).config as object;
  const { options } = ts.parseJsonConfigFileContent(config, ts.sys, root);
  const program = ts.createProgram(
    forNode.map((path) => join(root, path)),
    {
      ...options,
      ...{ noEmit: false, declaration: true, emitDeclarationOnly: true, outDir: dist, rootDir: root },
      // A third of the time; types are checked by tsc.
      noCheck: true,
    },
  );
  // Declarations keep the names of sources in their imports; what is shipped is .js and .d.ts. Who has no
  // `await using` in their libraries gets the names that it needs from TypeScript's own.
  const made = new Map<string, string>();
  const write: ts.WriteFileCallback = (name, text) => {
    const lib = /\bAsyncDisposable\b|\.asyncDispose\b/.test(text) ? "esnext.disposable" : null;
    const shipped = text.replace(/((?:from |import\()"\.[^"]+)\.ts"/g, '$1.js"');
    made.set(join(name), lib ? `/// <reference lib="${lib}" />\n${shipped}` : shipped);
  };
  // What cannot be declared.
  const wrong = program.emit(undefined, write).diagnostics;
  if (wrong.length)
    throw new Error(
      ts.formatDiagnostics(wrong, {
        getCanonicalFileName: (f) => f,
        getCurrentDirectory: () => root,
        getNewLine: () => "\n",
      }),
    );
  for (const [path, text] of behindDoors(made)) writeFileSync(path, text);
}

export async function buildAll(): Promise<void> {
  rmSync(dist, { recursive: true, force: true });
  await build({
    entryPoints: forNode,
    ...{ bundle: true, format: "esm", platform: "node", packages: "external", target: "node20" },
    ...{ absWorkingDir: root, outbase: ".", outdir: "dist", plugins: [everyModule], logLevel: "warning" },
  });
  // Bundlers of pages make it small once more; here it is for the tarball.
  const { metafile } = await forPages({ entryPoints: doors, outdir: "dist/page", minifyWhitespace: true });
  await forPages({ ...workerEntry, outdir: "dist/page" });
  writeFileSync(join(dist, "page/LICENSES.txt"), licenses(metafile));
  for (const path of beside) {
    const to = join(dist, path);
    mkdirSync(dirname(to), { recursive: true });
    cpSync(join(root, path), to, { recursive: true, filter: (from) => !from.endsWith("tsconfig.json") });
  }
  declare();
}
if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const t0 = performance.now();
  console.log("building dist, with declarations: up to a minute");
  await buildAll();
  console.log(`${relative(process.cwd(), dist)}: ${((performance.now() - t0) / 1000).toFixed(1)} s`);
}
