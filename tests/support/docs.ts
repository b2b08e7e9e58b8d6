/**
 * Code in Markdown, and how it is run. A block is a fence with a language; what is to know of it is a comment
 * on the line before: `<!-- in a page -->` (JavaScript for browsers), `<!-- not run: WHY -->`, `<!-- the file
 * PATH -->` or `<!-- added to PATH -->` (of this repository: what else is on the page runs in a copy that has
 * them). Blocks of TypeScript and JavaScript that import nothing go on from the one before them.
 */
import { spawn } from "node:child_process";
import { chmodSync, cpSync, mkdirSync, readFileSync, symlinkSync, writeFileSync } from "node:fs";
import { join, relative } from "node:path";
import { pathToFileURL } from "node:url";
import { transform } from "esbuild";
import ts from "typescript";
import { forPages, workerEntry } from "../../scripts/build.ts";
import { parsed } from "../../sdk/cli.ts";
import { commands } from "../../sdk/commands/index.ts";
import { type Ran, runIn } from "./package.ts";
import { built, root, tsx, weft } from "./program.ts";

export { root };

interface Block {
  /** Of its first line in the page, from 1. */
  readonly line: number;
  readonly language: string;
  readonly text: string;
  readonly inPage: boolean;
  /** Why it is not run; null: it is. */
  readonly unrun: string | null;
  /** What it is of the repository's sources. */
  readonly source: { readonly path: string; readonly whole: boolean } | null;
}
/** A file of the repository that a page writes, or lines that it adds to one. */
export interface Source {
  /** Of its first line in the page. */
  readonly line: number;
  readonly path: string;
  readonly whole: boolean;
  readonly text: string;
}
/** What runs at once: a script of the shell, or blocks of code that go on from each other. */
export interface Program {
  readonly where: string;
  readonly kind: "shell" | "node" | "page";
  /** The page with nothing but this: lines are numbered as in the page. */
  readonly text: string;
  readonly unrun: string | null;
}
const known: Readonly<Record<string, "shell" | "code">> = { sh: "shell", ts: "code", js: "code" };

function blocksOf(page: string, markdown: string): Block[] {
  const out: Block[] = [];
  const lines = markdown.split("\n");
  for (let i = 0; i < lines.length; i++) {
    const language = /^```(\S*)/.exec(lines[i]!)?.[1];
    if (language === undefined) continue;
    const end = lines.indexOf("```", i + 1);
    if (end < 0) throw new Error(`${page}:${i + 1}: a block without an end`);
    const said = /^<!-- (?:(in a page)|not run: (.+)|(the file|added to) (\S+)) -->$/.exec(
      lines[i - 1] ?? "",
    );
    // Without a language: a drawing, or what a program says.
    if (language) {
      const text = lines.slice(i + 1, end).join("\n");
      if (!Object.hasOwn(known, language))
        throw new Error(`${page}:${i + 1}: a block of ${language}, which nobody runs`);
      const source = said?.[4] ? { path: said[4], whole: said[3] === "the file" } : null;
      out.push({ line: i + 2, language, text, inPage: !!said?.[1], unrun: said?.[2] ?? null, source });
    }
    i = end;
  }
  return out;
}
/** The programs of a page, in order. */
export function programsOf(page: string, markdown: string): Program[] {
  const out: (Program & { text: string })[] = [];
  for (const { line, language, text, inPage, unrun, source } of blocksOf(page, markdown)) {
    if (source) continue;
    const kind: Program["kind"] = known[language] === "shell" ? "shell" : inPage ? "page" : "node";
    const before = out.findLast((p) => p.kind !== "shell");
    const goesOn = kind === "node" && !/^import /m.test(text) && before?.kind === kind && !unrun;
    const program = goesOn ? before : { where: `${page}:${line}`, kind, text: "", unrun };
    const gap = line - program.text.split("\n").length;
    program.text += "\n".repeat(gap) + text;
    if (!goesOn) out.push(program);
  }
  return out;
}
export const sourcesOf = (page: string, markdown: string): Source[] =>
  blocksOf(page, markdown).flatMap(({ line, text, source }) => (source ? [{ line, text, ...source }] : []));
/**
 * A copy of the sources in `folder`, with what a page adds. Lines that import go to the top of a file, others
 * into its table: behind the line that ends in `= {`.
 */
export function houseWith(folder: string, sources: readonly Source[]): string {
  for (const part of ["compiler", "ops", "runtime", "sdk", "package.json", "tsconfig.json", "asconfig.json"])
    cpSync(join(root, part), join(folder, part), { recursive: true });
  for (const name of ["assembler", "program", "quick", "weft"])
    cpSync(join(root, `tests/support/${name}.ts`), join(folder, `tests/support/${name}.ts`));
  symlinkSync(join(root, "node_modules"), join(folder, "node_modules"));
  for (const { path, whole, text } of sources) {
    const file = join(folder, path);
    if (whole) writeFileSync(file, text, { flag: "wx" });
    else {
      const lines = text.split("\n");
      const imports = lines.filter((line) => line.startsWith("import "));
      const entries = lines.filter((line) => !line.startsWith("import "));
      const before = readFileSync(file, "utf8");
      if (!/ = \{$/m.test(before)) throw new Error(`${path} has no table`);
      writeFileSync(file, [...imports, before.replace(/ = \{$/m, `$&\n${entries.join("\n")}`)].join("\n"));
    }
  }
  return folder;
}

/** The package's doors as their sources, which are in `house`, by the names that its users import. */
export function doorsOf(house = root): Record<string, string> {
  const { name, exports } = JSON.parse(readFileSync(join(house, "package.json"), "utf8")) as {
    name: string;
    exports: Record<string, { default: string } | string>;
  };
  return Object.fromEntries(
    Object.entries(exports).flatMap(([door, to]) =>
      typeof to === "string"
        ? []
        : [[name + door.slice(1), join(house, to.default.replace(/^\.\/dist/, "").replace(/\.js$/, ".ts"))]],
    ),
  );
}
/**
 * A folder in which the pages' commands and programs work: `weft` is on the PATH, `npm run weft` is there,
 * and `@weft/sdk` is the sources in `house`.
 */
export function furnish(folder: string, house = root): NodeJS.ProcessEnv {
  const bin = join(folder, "node_modules/.bin");
  mkdirSync(bin, { recursive: true });
  const command = house === root ? weft() : ["--import", tsx, join(house, "tests/support/weft.ts")];
  const quoted = [process.execPath, ...command].map((word) => `'${word}'`).join(" ");
  writeFileSync(join(bin, "weft"), `#!/bin/sh\nexec ${quoted} "$@"\n`);
  chmodSync(join(bin, "weft"), 0o755);
  writeFileSync(join(folder, "package.json"), JSON.stringify({ private: true, scripts: { weft: "weft" } }));
  const inside = join(folder, "node_modules/@weft/sdk");
  mkdirSync(inside, { recursive: true });
  const doors = Object.entries(doorsOf(house));
  const own = (source: string): string => (house === root && built(source)) || join(house, source);
  const quick = own("tests/support/quick.ts");
  const file = (door: string): string => `./${door.replaceAll(/\W+/g, "-")}.mjs`;
  for (const [door, source] of doors) {
    const paths = [quick, own(relative(house, source))];
    const [first, here] = paths.map((path) => JSON.stringify(pathToFileURL(path).href));
    writeFileSync(join(inside, file(door)), `import ${first};\nexport * from ${here};\n`);
  }
  const exports = doors.map(([door]) => [door.replace("@weft/sdk", "."), file(door)]);
  writeFileSync(
    join(inside, "package.json"),
    JSON.stringify({ name: "@weft/sdk", type: "module", exports: Object.fromEntries(exports) }),
  );
  return { PATH: `${bin}:${process.env.PATH}` };
}

/** A program as a file in `folder`. A block without an import is a module all the same. */
function written(folder: string, { where, text }: Program): string {
  const file = join(folder, `${where.replaceAll(/\W+/g, "-")}.mts`);
  writeFileSync(file, `${text}\nexport {};\n`);
  return file;
}
const read = new Map<string, ts.SourceFile | undefined>();
/** TypeScript's own host, which reads what lies in none of `folders` once for all programs. */
function hostOf(options: ts.CompilerOptions, folders: readonly string[]): ts.CompilerHost {
  const host = ts.createCompilerHost(options);
  const { getSourceFile } = host;
  host.getSourceFile = (name, ...how) => {
    const there = folders.some((folder) => name.startsWith(folder));
    const file = (!there && read.get(name)) || getSourceFile.call(host, name, ...how);
    if (!there) read.set(name, file);
    return file;
  };
  return host;
}
/**
 * Write programs of code into `folder`, and say what TypeScript has against them: `page:line: message`. Where
 * `house` is a copy of the sources, also against what the page has written there: `path:line: message`.
 */
export function typeErrors(
  folder: string,
  programs: readonly Program[],
  house = root,
  sources: readonly Source[] = [],
): string[] {
  const files = [
    ...programs.map((p) => [written(folder, p), p.where] as const),
    ...sources.map(({ path }) => [join(house, path), path] as const),
  ];
  const config = ts.readConfigFile(join(root, "tsconfig.json"), ts.sys.readFile).config as object;
  const { options } = ts.parseJsonConfigFileContent(config, ts.sys, root);
  const how: ts.CompilerOptions = {
    ...options,
    ...{ noUnusedLocals: false, noUnusedParameters: false, typeRoots: [join(root, "node_modules/@types")] },
    types: ["node"],
    paths: Object.fromEntries(Object.entries(doorsOf(house)).map(([door, source]) => [door, [source]])),
  };
  const program = ts.createProgram(
    files.map(([file]) => file),
    how,
    hostOf(how, house === root ? [folder] : [folder, house]),
  );
  return files.flatMap(([file, where]) => {
    const source = program.getSourceFile(file)!;
    const wrong = [...program.getSyntacticDiagnostics(source), ...program.getSemanticDiagnostics(source)];
    return wrong.map((d) => {
      const line = source.getLineAndCharacterOfPosition(d.start ?? 0).line + 1;
      return `${where.replace(/:\d+$/, "")}:${line}: ${ts.flattenDiagnosticMessageText(d.messageText, "\n")}`;
    });
  });
}
/** Run a program of Node; where `sources` are what it has as `@weft/sdk`, they are loaded as TypeScript. */
export async function runNode(folder: string, p: Program, house = root): Promise<Ran> {
  const file = written(folder, p);
  if (house !== root || !built("sdk/index.ts"))
    return runIn(folder, process.execPath, ["--import", tsx, file]);
  const { code } = await transform(p.text, { loader: "ts", format: "esm", target: "node20" });
  const plain = file.replace(/\.mts$/, ".mjs");
  writeFileSync(plain, `${code}\nexport {};\n`);
  return runIn(folder, process.execPath, [plain]);
}
/** A program of a page as one script; throws where it needs what pages have not. */
export async function bundlePage(folder: string, p: Program): Promise<string> {
  const { outputFiles } = await forPages({
    ...{ entryPoints: [written(folder, p)], alias: doorsOf(), splitting: false, write: false },
    ...{ outdir: "page", logLevel: "silent" },
  });
  return outputFiles![0]!.text;
}
/** What a page's worker runs. */
export async function workerScript(): Promise<string> {
  const { outputFiles } = await forPages({ ...workerEntry, write: false, outdir: "page" });
  return outputFiles![0]!.text;
}

const said = /^\s*(?:weft|npm run -s weft --)(?=\s)/;
/** The words of a command line behind `weft`, as the shell splits them; null where it is none of weft's. */
function weftWords(line: string): string[] | null {
  const at = line
    .split(/[|;&]+/)
    .map((part) => part.trim())
    .find((part) => said.test(`${part} `));
  if (at === undefined) return null;
  const words = at.replace(said, "").match(/'[^']*'|"[^"]*"|[^\s'"]+/g) ?? [];
  const comment = words.findIndex((w) => w.startsWith("#"));
  return (comment < 0 ? words : words.slice(0, comment)).map((w) => w.replace(/^(['"])(.*)\1$/, "$2"));
}
/** What the command line has against a line of the shell; null: nothing, or it is none of weft's. */
export function commandError(line: string): string | null {
  const [name, ...args] = weftWords(line) ?? [];
  if (name === undefined || name.startsWith("-") || /^[A-Z]+$/.test(name)) return null;
  if (!Object.hasOwn(commands, name)) return `no command ${name}`;
  try {
    parsed(name, commands[name]!, args);
    return null;
  } catch (e) {
    return (e as Error).message;
  }
}
/** Command lines of weft inside the text of a page, by line. */
export const inlineCommands = (markdown: string): { readonly line: number; readonly text: string }[] =>
  markdown
    .split("\n")
    .flatMap((text, i) =>
      [...text.matchAll(/`([^`]+)`/g)]
        .filter(([, code]) => said.test(code!))
        .map(([, code]) => ({ line: i + 1, text: code!.replaceAll(/[[\]…]/g, "") })),
    );
/** Lines of a script, with those that end in a backslash as one. */
export const shellLines = (text: string): string[] =>
  text
    .replaceAll("\\\n", " ")
    .split("\n")
    .filter((line) => line.trim() && !/^\s*#/.test(line));

/**
 * Run a script, line after line. A line that starts a server runs until the script ends, on a port of its
 * own, and lines behind it talk to it. Resolves with what the first line that failed said, or null.
 */
export async function runShell(folder: string, text: string, env: NodeJS.ProcessEnv): Promise<string | null> {
  const servers: Awaited<ReturnType<typeof startServer>>[] = [];
  const failed = async (): Promise<string | null> => {
    for (const line of shellLines(text)) {
      if (weftWords(line)?.[0] === "serve") servers.push(await startServer(folder, line, env));
      else {
        const there = line.replaceAll("http://127.0.0.1:8080", servers.at(-1)?.url ?? "$&");
        const { code, out, err } = await runIn(folder, "sh", ["-ec", there], env);
        if (code !== 0 || /"error":(?!\s*null)/.test(out)) return `${line}\n${err}${out}`;
      }
    }
    return null;
  };
  try {
    return await failed();
  } finally {
    for (const { stop } of servers) await stop();
  }
}
async function startServer(folder: string, line: string, env: NodeJS.ProcessEnv) {
  const child = spawn("sh", ["-c", `exec ${line.replace(/\s#.*$/, "")} --port 0`], {
    cwd: folder,
    stdio: ["ignore", "pipe", "pipe"],
    env: { ...process.env, ...env },
  });
  let said = "";
  child.stderr.on("data", (d) => (said += d));
  const ended = new Promise<number | null>((resolve) => child.on("close", resolve));
  const url = await new Promise<string>((resolve, reject) => {
    child.stdout.on("data", (d) => {
      said += d;
      const found = /^(http:\S+)\/v1: /m.exec(said)?.[1];
      if (found) resolve(found);
    });
    void ended.then(() => reject(new Error(`${line}\n${said}`)));
  });
  const stop = async (): Promise<void> => {
    child.kill("SIGTERM");
    const code = await ended;
    if (code !== 0) throw new Error(`${line} ended with ${code}\n${said}`);
  };
  return { url, stop };
}
