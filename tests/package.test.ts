/**
 * What is shipped: the tarball, installed without this repository, in each way that applications use it. All
 * of them say what the sources say.
 */
import { existsSync, readdirSync, readFileSync, symlinkSync } from "node:fs";
import { dirname, join, relative } from "node:path";
import { fileURLToPath } from "node:url";
import { gzipSync } from "node:zlib";
import * as attw from "@arethetypeswrong/core";
import { build, type Metafile } from "esbuild";
import { publint } from "publint";
import { formatMessage } from "publint/utils";
import ts from "typescript";
import * as assert from "uvu/assert";
import { doors, forPages } from "../scripts/build.ts";
import { load } from "../sdk/index.ts";
import { inChromium } from "./support/chromium.ts";
import { batchOf, bundle, configs, idsOf, small } from "./support/engines.ts";
import { install, type Ran, runIn } from "./support/package.ts";
import { suite } from "./support/suite.ts";
import { scratch, writeModel } from "./support/tiny.ts";

const test = suite("package");
const root = fileURLToPath(new URL("..", import.meta.url));
const prompt = idsOf("package", 12, 128);
const rows = batchOf(128);
const options = { targets: ["wasm"], train: ["lora"], quick: true, capacities: small } as const;

interface Answer {
  readonly ids: number[];
  readonly losses: number[];
}
let said: Promise<Answer> | undefined;
/** What the sources say. */
const expected = (): Promise<Answer> =>
  (said ??= (async () => {
    await using engine = await load(await bundle(configs.even, options), { device: "wasm", threads: 1 });
    const { ids } = await engine.complete({ prompt, maxTokens: 6 });
    const job = await engine.finetune({
      ...{ name: "j", data: rows, steps: 1, batchSize: 5, shuffle: false, rank: 4 },
    });
    const { losses } = await job.done;
    return { ids, losses: [...losses] };
  })());
/** What a console calls an engine, a job, an engine of ids, an adapter, and an engine in a worker. */
const consoleNames = ["Engine", "Job", "Engine", "AdapterHandle", "ReplayEngine"];
const answer = ({ code, out, err }: Ran): Answer => {
  assert.is(code, 0, err);
  return JSON.parse(out) as Answer;
};
const asked = async (more: object = {}): Promise<string> =>
  JSON.stringify({ bundle: await bundle(configs.even, options), prompt, rows, ...more });

test("the tarball has what is used, and no more: no tests, no sources, less than a megabyte", async () => {
  const { tarball, inside } = await install();
  assert.ok(tarball.length <= 1e6, `${tarball.length} bytes`);
  assert.equal(readdirSync(inside).sort(), [
    ...["CHANGELOG.md", "LICENSE", "README.md", "dist", "docs", "examples", "package.json"],
  ]);
  const about = JSON.parse(readFileSync(join(inside, "package.json"), "utf8")) as Record<string, unknown>;
  assert.is(about.license, "Apache-2.0");
  for (const field of ["private", "repository", "homepage", "bugs"]) assert.is(about[field], undefined);
  assert.ok(readFileSync(join(inside, "CHANGELOG.md"), "utf8").includes(`## ${about.version}`));
  for (const name of ["valibot", "@huggingface/tokenizers", "@huggingface/jinja"])
    assert.ok(readFileSync(join(inside, "dist/page/LICENSES.txt"), "utf8").includes(name), name);
});

test("publint and attw find nothing", async () => {
  const { tarball, inside } = await install();
  const { messages, pkg } = await publint({ pkgDir: inside, strict: true });
  assert.equal(
    messages.map((m) => formatMessage(m, pkg)),
    [],
  );
  const { problems, ...checked } = (await attw.checkPackage(
    attw.createPackageFromTarballData(tarball),
  )) as attw.Analysis;
  assert.ok(checked.types);
  // An ESM package: CommonJS reaches it by import(), or by require() where Node can; and TypeScript's oldest
  // resolution, which knows no exports, finds none of its doors.
  const wrong = problems.filter(
    (p) => !("resolutionKind" in p && p.resolutionKind === "node10") && p.kind !== "CJSResolvesToESM",
  );
  assert.equal(wrong, []);
});

test("Node, plain JavaScript: compiles the same bytes, says and learns the same", async () => {
  const { folder } = await install();
  const out = join(scratch(), "model.weft");
  const ran = await runIn(folder, process.execPath, [
    "node/main.mjs",
    await asked({ model: writeModel(configs.even), out, options }),
  ]);
  const want = await expected();
  const { told, ...rest } = answer(ran) as Answer & { told: string[] };
  assert.equal(rest, { ...want, apart: want.ids, one: true, names: consoleNames });
  for (const text of told) assert.match(text, /^WeftError: WEFT_BUNDLE at /);
  const here = await bundle(configs.even, options);
  const manifest = (at: string): unknown => JSON.parse(readFileSync(join(at, "manifest.json"), "utf8"));
  assert.equal(manifest(out), manifest(here), "every file has the same hash");
});

test("a service that brings its own text uses the runtime alone", async () => {
  const { folder } = await install();
  assert.equal(
    answer(await runIn(folder, process.execPath, ["ids/main.mjs", await asked()])),
    await expected(),
  );
});

test("CommonJS requires it where Node can require ES modules, else it is told how", async () => {
  const { folder } = await install();
  const ran = await runIn(folder, process.execPath, ["commonjs/main.cjs", await asked()]);
  if ((process.features as { require_module?: boolean }).require_module)
    assert.equal(answer(ran).ids, (await expected()).ids);
  else assert.match(ran.err, /require\(\) of ES Module .* not supported.*\n.*dynamic import\(\)/);
});

/** What TypeScript has against a project and the package's declarations; others' declarations are theirs. */
function typeErrors(project: string): string[] {
  const { config } = ts.readConfigFile(project, ts.sys.readFile) as { config: object };
  const { options, fileNames } = ts.parseJsonConfigFileContent(config, ts.sys, dirname(project));
  const program = ts.createProgram(fileNames, options);
  const own = program.getSourceFiles().filter((f) => !/node_modules\/(?!@weft\/sdk\/)/.test(f.fileName));
  assert.ok(own.length > fileNames.length);
  return [
    ...program.getOptionsDiagnostics(),
    ...program.getGlobalDiagnostics(),
    ...own.flatMap((f) => [...program.getSyntacticDiagnostics(f), ...program.getSemanticDiagnostics(f)]),
  ].map((d) => `${d.file?.fileName}: ${ts.flattenDiagnosticMessageText(d.messageText, "\n")}`);
}
test("TypeScript resolves every door as Node does, and refuses what does not exist", async () => {
  const { folder } = await install();
  const types = join(folder, "node_modules/@types");
  if (!existsSync(types)) symlinkSync(join(root, "node_modules/@types"), types);
  // With Node's types and newer libraries, and with the least that a page has.
  for (const project of ["tsconfig.json", "tsconfig.page.json"])
    assert.equal(typeErrors(join(folder, "types", project)), [], project);
});

test("the command line is on the PATH", async () => {
  const { folder } = await install();
  const weft = join(folder, "node_modules/.bin/weft");
  const { version } = JSON.parse(readFileSync(join(root, "package.json"), "utf8")) as { version: string };
  assert.is((await runIn(folder, weft, ["--version"])).out, `${version}\n`);
  const help = await runIn(folder, weft, ["--help"]);
  assert.is(help.code, 0, help.err);
  assert.match(help.out, /weft compile/);
  const ran = await runIn(folder, weft, [
    ...["generate", await bundle(configs.even, options), "--ids", prompt.join(), "--json"],
    ...["--max-tokens", "6"],
  ]);
  assert.is(ran.code, 0, ran.err);
  assert.equal((JSON.parse(ran.out) as Answer).ids, (await expected()).ids);
  assert.not.match(ran.err, /vulkan/i);
});

for (const splitting of [false, true])
  test(`esbuild, ${splitting ? "in chunks" : "in one file"}: what is used is initialised`, async () => {
    const { folder } = await install();
    await build({
      ...{ entryPoints: ["esbuild/main.mjs"], absWorkingDir: folder, bundle: true, format: "esm" },
      ...{ platform: "node", outdir: `out-${splitting}`, outExtension: { ".js": ".mjs" }, splitting },
      ...{ logLevel: "error", external: ["assemblyscript", "binaryen", "@huggingface/*"] },
    });
    const ran = await runIn(folder, process.execPath, [`out-${splitting}/main.mjs`, await asked()]);
    assert.equal(answer(ran).ids, (await expected()).ids);
  });

/** What a file brings at once, and all that it may bring later. */
function reached({ outputs }: Metafile, entry: string): { now: Set<string>; later: Set<string> } {
  const walk = (at: string, seen: Set<string>, dynamic: boolean): Set<string> => {
    if (seen.has(at)) return seen;
    seen.add(at);
    for (const { path, kind } of outputs[at]!.imports)
      if (dynamic || kind === "import-statement") walk(path, seen, dynamic);
    return seen;
  };
  return { now: walk(entry, new Set(), false), later: walk(entry, new Set(), true) };
}

test("a page gets neither Node nor the compiler, and at most 60 KB to speak and to learn", async () => {
  const { folder, inside } = await install();
  const { metafile, outputFiles } = await build({
    ...{ entryPoints: ["vite/main.js"], absWorkingDir: folder, bundle: true, format: "esm" },
    ...{ splitting: true, minify: true, platform: "browser", outdir: "page", write: false },
    ...{ metafile: true, logLevel: "error" },
  });
  const inputs = Object.keys(metafile.inputs).map((path) => relative(inside, join(folder, path)));
  assert.ok(inputs.includes("dist/page/index.js"));
  for (const path of inputs) assert.match(path, /^dist\/page\/[\w.-]+\.js$|^\.\..*vite\/main\.js$/);
  for (const { imports } of Object.values(metafile.outputs))
    assert.equal(
      imports.filter((i) => i.external).map((i) => i.path),
      [],
    );
  const shipped = [...readdirSync(join(inside, "dist/page"))].filter((f) => f.endsWith(".js"));
  const code = shipped.map((f) => readFileSync(join(inside, "dist/page", f), "utf8")).join("\n");
  assert.not.match(code, /(from |import\()"node:|binaryen|compileAssembly|emitLaunch|assemblyscript/);
  const { metafile: own } = await forPages({ entryPoints: doors, outdir: "page", write: false });
  assert.equal(
    Object.keys(own.inputs).filter((path) => !/^(runtime|sdk)\/|\/node_modules\/|^node_modules\//.test(path)),
    [],
  );

  const size = (path: string): number => {
    const file = outputFiles.find((f) => f.path === join(folder, path))!;
    return gzipSync(file.contents, { level: 9 }).length;
  };
  const sizes = (paths: Iterable<string>): number => [...paths].reduce((n, path) => n + size(path), 0);
  const { now, later } = reached(metafile, "page/main.js");
  const named = (name: string): string => [...later].find((path) => path.startsWith(`page/${name}-`))!;
  // A page plays on one device: the larger counts.
  const device = Math.max(size(named("wasm")), size(named("webgpu")));
  // The page's own lines are not weft's.
  const core = sizes(now) - size("page/main.js") + device;
  const text = size(named("text")) + size(named("template"));
  const extra = (name: string): string[] =>
    [...reached(metafile, named(name)).now].filter((path) => !now.has(path));
  const teaching = sizes(new Set([...extra("trainer"), ...extra("data")]));
  const kept = sizes(extra("cache"));
  console.log(
    `page: ${core + teaching} bytes gzip, until it speaks ${core}, a job's ${teaching}, tokenizer and templates ${text}, storage ${kept}, all ${sizes(later)}`,
  );
  assert.ok(core + teaching <= 60e3, `${core} + ${teaching} bytes`);
});

for (const isolated of [false, true])
  test(`Vite builds a page that learns the same${isolated ? ", with shared memory" : ""}`, async () => {
    const { folder } = await install();
    const here = await bundle(configs.even, options);
    const { build: vite } = await import("vite");
    const dist = join(folder, "vite/dist");
    if (!existsSync(dist))
      await vite({ root: join(folder, "vite"), logLevel: "error", configFile: false, publicDir: false });
    const file = (at: string, type: string) =>
      existsSync(at) && !at.endsWith("/") ? { type, body: readFileSync(at) } : null;
    const there = await inChromium<
      Answer & { told: string; apart: number[]; names: string[]; error?: string }
    >(
      (path) => {
        if (path === "/asked.json") return { type: "application/json", body: JSON.stringify({ prompt }) };
        if (path === "/rows.jsonl")
          return { type: "text/plain", body: rows.map((r) => JSON.stringify(r)).join("\n") };
        if (path.startsWith("/model.weft/"))
          return file(join(here, path.slice("/model.weft/".length)), "application/octet-stream");
        if (path === "/") return file(join(dist, "index.html"), "text/html");
        return file(join(dist, path), "text/javascript");
      },
      { isolated },
    );
    assert.is(there.error, undefined, there.error);
    const { told, apart, names, ...rest } = there;
    assert.equal(rest, await expected());
    assert.equal(apart, rest.ids);
    assert.equal(names, consoleNames);
    assert.match(told, /^WeftError: WEFT_OPTION.*compiling ahead of time, in Node/);
  });
test.run();
