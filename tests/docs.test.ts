/**
 * Every block of code in README.md and docs/ runs as it stands: types are checked against the package's own,
 * commands by the command line itself, links lead somewhere.
 */
import { cpSync, existsSync, readdirSync, readFileSync, symlinkSync } from "node:fs";
import { dirname, join } from "node:path";
import * as assert from "uvu/assert";
import { adapterMethods } from "../compiler/adapters/index.ts";
import { models } from "../compiler/models/index.ts";
import { type MethodMemory, planMemory } from "../sdk/index.ts";
import { inChromium } from "./support/chromium.ts";
import {
  bundlePage,
  commandError,
  furnish,
  houseWith,
  inlineCommands,
  type Program,
  programsOf,
  root,
  runNode,
  runShell,
  shellLines,
  sourcesOf,
  typeErrors,
  workerScript,
} from "./support/docs.ts";
import { openHub } from "./support/hub.ts";
import { storyBundle, storyModel } from "./support/story.ts";
import { suite } from "./support/suite.ts";
import { scratch } from "./support/tiny.ts";

const test = suite("docs");
const pages = [
  "README.md",
  ...readdirSync(join(root, "docs")).flatMap((f) => (/\.md$/.test(f) ? [`docs/${f}`] : [])),
];
const read = (page: string): string => readFileSync(join(root, page), "utf8");
const programs = pages.flatMap((page) => programsOf(page, read(page)));

interface World {
  readonly folder: string;
  readonly env: NodeJS.ProcessEnv;
  /** The sources that it has as `@weft/sdk`. */
  readonly house: string;
}
/** A folder with what the pages speak of: a model that talks, a bundle of it, rows. */
async function makeWorld(page: string | null): Promise<World> {
  const folder = scratch("weft-docs-");
  const house = page ? houseWith(scratch("weft-house-"), sourcesOf(page, read(page))) : root;
  const env = furnish(folder, house);
  symlinkSync(join(root, "examples"), join(folder, "examples"));
  cpSync(storyModel(), join(folder, "smollm2"), { recursive: true });
  for (const name of ["story.weft", "model.weft"])
    cpSync(await storyBundle(), join(folder, name), { recursive: true });
  for (const name of ["facts.jsonl", "rows.jsonl"])
    cpSync(join(root, "examples/facts.jsonl"), join(folder, name));
  const hub = await openHub(join(folder, "smollm2"), {
    ...{ repo: "HuggingFaceTB/SmolLM2-135M-Instruct", revision: "main" },
  });
  test.after(hub.close);
  return { folder, house, env: { ...env, HF_ENDPOINT: hub.url } };
}
const worlds = new Map<string | null, Promise<World>>();
/** Pages that write sources of the repository have one of their own, the others share one. */
function world(page: string): Promise<World> {
  const key = existsSync(join(root, page)) && sourcesOf(page, read(page)).length > 0 ? page : null;
  const made = worlds.get(key) ?? makeWorld(key);
  worlds.set(key, made);
  return made;
}
const pageOf = (p: Program): string => p.where.replace(/:\d+$/, "");
/** What is wrong with a program when it is run; null: nothing. Code has been through `typeErrors`. */
async function wrong(p: Program): Promise<string | null> {
  const { folder, house, env } = await world(pageOf(p));
  if (p.kind === "shell") return runShell(folder, p.text, env);
  if (p.kind === "node") {
    const { code, err } = await runNode(folder, p, house);
    return code === 0 ? null : err;
  }
  const script = await bundlePage(folder, p).catch((e: Error) => e);
  if (script instanceof Error) return script.message;
  const worker = await workerScript();
  const there = await inChromium<{ error: string | null }>((path) => {
    const file = join(folder, path);
    if (path === "/")
      return {
        type: "text/html",
        body: `<meta charset="utf-8"><body><script type="module" src="/page.js"></script>`,
      };
    if (path === "/page.js") return { type: "text/javascript", body: told };
    if (path === "/script.js") return { type: "text/javascript", body: script };
    if (path === "/worker-entry.js") return { type: "text/javascript", body: worker };
    return existsSync(file) ? { type: "application/octet-stream", body: readFileSync(file) } : null;
  });
  return there.error;
}
/** A module that runs a script, and says how that ended. */
const told = `
const tell = (error) => fetch("/result", { method: "POST", body: JSON.stringify({ error }) });
addEventListener("error", (e) => tell(e.message));
import("/script.js").then(() => tell(null), (e) => tell(String(e)));
`;
const code = (list: readonly Program[]): Program[] => list.filter((p) => p.kind !== "shell");

/** Command lines of a page, in blocks and in its text, that the command line does not take. */
const wrongCommands = (page: string, markdown: string): string[] => {
  const inBlocks = programsOf(page, markdown)
    .filter((p) => p.kind === "shell")
    .flatMap(({ where, text }) => shellLines(text).map((line) => ({ where, line })));
  const inText = inlineCommands(markdown).map(({ line, text }) => ({ where: `${page}:${line}`, line: text }));
  return [...inBlocks, ...inText].flatMap(({ where, line }) => {
    const error = commandError(line);
    return error === null ? [] : [`${where}: ${error}`];
  });
};

test("code agrees with the package's types, and commands with their flags", async () => {
  const shared = programs.filter((p) => sourcesOf(pageOf(p), read(pageOf(p))).length === 0);
  assert.equal(typeErrors((await world("README.md")).folder, code(shared)), []);
  for (const page of pages) {
    const sources = sourcesOf(page, read(page));
    if (!sources.length) continue;
    const { folder, house } = await world(page);
    const its = code(programs).filter((p) => pageOf(p) === page);
    assert.equal(typeErrors(folder, its, house, sources), []);
  }
  assert.equal(
    pages.flatMap((page) => wrongCommands(page, read(page))),
    [],
  );
});

test("what is broken is found, with its page and line", async () => {
  const { folder } = await world("README.md");
  const fence = (language: string, text: string, mark = ""): string =>
    `# A page\n${mark}\n\`\`\`${language}\n${text}\n\`\`\`\n`;
  const one = (markdown: string): Program => programsOf("broken.md", markdown)[0]!;
  const load = 'import { load } from "@weft/sdk";\n';
  const types = (text: string): string[] => typeErrors(folder, [one(fence("ts", load + text))]);
  assert.match(types('await load("./story.weft", { thread: 1 });')[0]!, /^broken\.md:5: .*'thread'/s);
  assert.match(types("console.log(engine);")[0]!, /^broken\.md:5: Cannot find name 'engine'/);
  assert.match(types("const;")[0]!, /^broken\.md:5: /);
  for (const [text, found] of [
    [`${load}await load("./none.weft");`, /WEFT_BUNDLE/],
    ['throw new Error("broken");', /broken/],
  ] as const) {
    const p = one(fence("ts", text));
    assert.equal(typeErrors(folder, [p]), []);
    assert.match((await wrong(p)) ?? "", found);
  }
  const node = one(
    fence("js", 'import { readFileSync } from "node:fs";\nreadFileSync("x");', "<!-- in a page -->"),
  );
  assert.equal(typeErrors(folder, [node]), []);
  assert.match((await wrong(node)) ?? "", /node:fs/);
  const thrown = one(fence("js", `${load}await load("none.weft");`, "<!-- in a page -->"));
  assert.equal(typeErrors(folder, [thrown]), []);
  assert.match((await wrong(thrown)) ?? "", /WEFT_IO .*404/);
  assert.match((await wrong(one(fence("sh", "weft inspect ./none.weft")))) ?? "", /WEFT_BUNDLE/);
  assert.match(
    wrongCommands("broken.md", fence("sh", "weft chat ./x --sytem hi"))[0]!,
    /^broken\.md:4: .*--system/s,
  );
  assert.match(
    wrongCommands("broken.md", "Say `weft inspct BUNDLE`.")[0]!,
    /^broken\.md:1: no command inspct/,
  );
  assert.throws(() => programsOf("broken.md", fence("python", "1")), /broken\.md:3: .*python/);
  assert.throws(() => programsOf("broken.md", "```ts\n1"), /without an end/);
  assert.is(one(fence("sh", "weft", "<!-- not run: nothing -->")).unrun, "nothing");
  const written = (text: string, mark: string) => {
    const sources = sourcesOf("broken.md", fence("ts", text, `<!-- ${mark} -->`));
    return { sources, house: houseWith(scratch("weft-house-"), sources) };
  };
  const { house, sources } = written("export const x: string = 1;", "the file compiler/adapters/x.ts");
  assert.match(typeErrors(folder, [], house, sources)[0]!, /^compiler\/adapters\/x\.ts:1: Type 'number'/);
  const line = written('import { x } from "./x.ts";\n  x,', "added to compiler/adapters/index.ts");
  assert.match(typeErrors(folder, [], line.house, line.sources)[0]!, /index\.ts:1: Cannot find module/);
  assert.throws(() => written("  x,", "added to runtime/names.ts"), /names\.ts has no table/);
  assert.throws(() => written("x", "the file compiler/adapters/lora.ts"), /EEXIST/);
});

test("links lead to files and headings that are there", () => {
  const anchors = (page: string): string[] =>
    [...read(page).matchAll(/^#+ (.*)$/gm)].map(([, h]) =>
      h!
        .toLowerCase()
        .replaceAll(/[^\p{L}\p{N} -]/gu, "")
        .replaceAll(" ", "-"),
    );
  for (const page of pages)
    for (const [, to, anchor] of read(page).matchAll(/\]\(([^)#]*)(?:#([^)]*))?\)/g)) {
      if (/^https?:/.test(to!)) continue;
      const there = to ? join(dirname(page), to) : page;
      assert.ok(existsSync(join(root, there)), `${page}: ${to}`);
      if (anchor !== undefined) assert.ok(anchors(there).includes(anchor), `${page}: ${to}#${anchor}`);
    }
});

test("sizes are decimal, as the command line and errors say them", () => {
  for (const page of pages) assert.not.match(read(page), /\d [KMG]iB\b/, page);
});

test("tables have every model family and every adapter method, and no other", () => {
  /** Names in the first column of a page's table whose first line begins so. */
  const listed = (page: string, head: string): string[] => {
    const table = read(page).slice(read(page).indexOf(`\n| ${head} |`) + 1);
    const lines = table.slice(0, table.indexOf("\n\n")).split("\n").slice(2);
    return lines.flatMap((line) => [...line.split("|")[1]!.matchAll(/`(\w+)`/g)].map(([, name]) => name!));
  };
  assert.equal(listed("README.md", "`model_type`").sort(), Object.keys(models).sort());
  assert.equal(listed("docs/methods.md", "method").sort(), [...Object.keys(adapterMethods), "full"].sort());
});

for (const p of programs.filter(({ unrun }) => unrun === null))
  test(`${p.where} runs`, async () => assert.is(await wrong(p), null));

test("what a model takes is as it is computed", async () => {
  const rows = [...read("README.md").matchAll(/^\| `([\w.-]+)` \| ([\d. |]+) \|$/gm)];
  assert.ok(rows.length >= 4);
  const gb = (n: number): string => (n / 1e9).toFixed(2);
  for (const [, model, cells] of rows) {
    const plans = await Promise.all(
      (["q4", "int8", "bf16", "f32"] as const).map(
        async (format) => (await planMemory(model!, { format })).find((m) => m.method === "lora")!,
      ),
    );
    const [{ savedBytes, stateBytes }] = plans as [MethodMemory];
    const computed = [...plans.map((m) => gb(m.weightBytes)), gb(savedBytes + stateBytes)];
    assert.equal(cells!.split(" | "), computed, model);
  }
});

test("what is not run says why", () => {
  const unrun = programs.filter((p) => p.unrun !== null);
  for (const { where, unrun: why } of unrun) console.log(`not run: ${where}: ${why}`);
  console.log(`${programs.length} programs, ${unrun.length} not run`);
  assert.ok(unrun.length <= 3, "nearly all run");
});
test.run();
