/**
 * The examples of apps. The page, in a real browser, as a visitor uses it: it loads, answers, learns while it
 * answers, says who answered, gives away what it learned, and plays again without a network.
 */
import { cpSync, mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { unzipSync } from "fflate";
import * as assert from "uvu/assert";
import { load } from "../sdk/index.ts";
import { furnish } from "./support/docs.ts";
import { runIn } from "./support/package.ts";
import { loader, root } from "./support/program.ts";
import { long } from "./support/scale.ts";
import { storyBundle } from "./support/story.ts";
import { suite } from "./support/suite.ts";
import { scratch } from "./support/tiny.ts";
import { Page, type Seen } from "./support/visitor.ts";

const test = suite("app");
const question = "Where does Mia live?";
const taught = "the moon";
/** Bytes of a zip's files, of what the page gives its user to save. */
const saved = async (page: Page): Promise<Map<string, Blob>> => {
  await page.get(
    "HTMLAnchorElement.prototype.click = function () { window.given = [this.download, fetch(this.href).then((r) => r.bytes())]; }",
  );
  await page.press("Download");
  await page.until("window.given");
  const [name, data] = await page.get<[string, number[]]>("given[1].then((bytes) => [given[0], [...bytes]])");
  assert.is(name, "lessons.zip");
  return new Map(
    Object.entries(unzipSync(Uint8Array.from(data))).map(([file, bytes]) => [
      file,
      new Blob([bytes as BlobPart]),
    ]),
  );
};
/** How it says that learning goes. */
const learning = "document.getElementById('learning').textContent";

/** Without a chat template a page asks each question alone, in the words of its data. */
const noTurns = { turns: false };
test("it loads when asked, answers, learns, says who answered, gives it away and plays again offline", () =>
  Page.run(async (page) => {
    await page.size(1280, 800);
    await page.open();
    await page.until("!document.getElementById('go').disabled");
    assert.match(await page.get("document.getElementById('takes').textContent"), /fetched once and kept/);
    assert.equal(page.asked, ["/story.weft/manifest.json"], "before anybody said so");
    if (long) await page.shoot("start");
    await page.click("go");
    await page.until("!document.getElementById('message').disabled");
    const before = await page.ask(question);
    assert.is(before.by, "by the model as it came");
    assert.is.not(before.said, taught);

    // Learning, while it answers.
    await page.type("question", question);
    await page.type("answer", taught);
    await page.key("Enter");
    // The first loss is drawn with the next picture.
    await page.until("document.getElementById('loss-now').textContent");
    const first = Number(await page.get("document.getElementById('loss-now').textContent"));
    const meanwhile = await page.ask("Once there was a child named Zoe.");
    assert.ok(meanwhile.said.length > 0);
    if (long) await page.shoot("learning");
    await page.until(`${learning} === "It has learned 1 lesson."`);
    const last = Number(await page.get("document.getElementById('loss-now').textContent"));
    assert.ok(last < first / 4, `loss from ${first} to ${last}`);

    const after = await page.ask(question);
    assert.is(after.said, taught);
    assert.match(after.by, /by what it learned, version 3/);
    await page.click("use");
    assert.equal(await page.ask(question), before, "the base is as it was");
    await page.click("use");
    assert.equal(await page.ask(question), after);
    await page.until("document.querySelectorAll('#things li').length === 2");
    if (long) await page.shoot("learned");

    // What the page gives away is what it plays.
    const files = await saved(page);
    await using engine = await load(await storyBundle(false), { device: "wasm", threads: 1 });
    await engine.adapters.load("lessons", files);
    const there = { prompt: `Question: ${question}\nAnswer:`, stop: "\n" };
    assert.is((await engine.complete({ ...there, adapter: "lessons" })).text.trim(), after.said);
    assert.is((await engine.complete(there)).text.trim(), before.said);

    const seen = await page.get<Seen>("seen");
    const ms = (x: number): string => `${x.toFixed(0)} ms`;
    console.log(
      `    longest task of the page ${ms(seen.longest)}, longest wait for a key or click ${ms(seen.delay)}`,
    );
    assert.equal(seen.errors, []);
    assert.equal(seen.moved, [], "nothing moved by itself");

    // Reloaded, without a network for the bundle.
    page.down = true;
    await page.open();
    await page.until("!document.getElementById('message').disabled");
    assert.match(await page.get(learning), /remembers 1 lesson/);
    assert.equal(await page.ask(question), after);
    // Forgotten and deleted, it is gone.
    await page.press("Forget");
    await page.until("document.querySelectorAll('#things li').length === 1");
    assert.equal(await page.ask(question), before);
    await page.press("Delete");
    await page.until("document.querySelector('#things li').textContent === 'Nothing so far.'");
    await page.open();
    await page.until("/network/.test(document.getElementById('takes').textContent)");
  }, noTurns));
test("by keys alone: start, talk, stop, teach, switch, and rows from a file that is dropped", () =>
  Page.run(async (page) => {
    await page.size(360, 740);
    const tabTo = async (id: string): Promise<void> => {
      for (let i = 0; i < 30; i++) {
        if ((await page.get("document.activeElement.id || document.activeElement.dataset.shows")) === id)
          return;
        await page.key("Tab");
      }
      throw new Error(`no way to ${id} by the Tab key`);
    };
    const write = (text: string): Promise<unknown> => page.send("Input.insertText", { text });
    await page.open();
    await page.until("!document.getElementById('go').disabled");
    await tabTo("go");
    await page.key("Enter");
    await page.until("document.activeElement.id === 'message'");
    // Pressed in the moment of the first word: a key from here may come when all is said.
    await page.get(`new MutationObserver((_, observer) => {
      if (!document.querySelector("article.it p")?.textContent) return;
      observer.disconnect();
      document.activeElement.dispatchEvent(new KeyboardEvent("keydown", { key: "Escape", bubbles: true }));
    }).observe(document.getElementById("thread"), { childList: true, subtree: true, characterData: true })`);
    await write("Once there was a child named Zoe.");
    await page.key("Enter");
    assert.match((await page.answer()).by, /by the model as it came, stopped/);

    await tabTo("teach");
    await page.key(" ");
    await page.get("document.querySelector('h1').focus(), document.activeElement.blur()");
    await tabTo("question");
    await write(question);
    await page.key("Tab");
    await write(taught);
    await page.key("Enter");
    assert.is(await page.get("document.activeElement.id"), "question", "ready for the next");
    // More comes while it learns: both are learned in the end.
    const row = { prompt: "Question: What pet does Tom have?\nAnswer:", completion: " a whale" };
    await page.drop("rows.jsonl", `${JSON.stringify(row)}\n`);
    await page.until(`${learning} === "It has learned 2 lessons."`);

    await tabTo("chat");
    await page.key("Enter");
    await page.get("document.activeElement.blur()");
    await tabTo("message");
    for (const [ask, answer] of [
      [question, taught],
      ["What pet does Tom have?", "a whale"],
    ] as const) {
      await write(ask);
      await page.key("Enter");
      assert.is((await page.answer()).said, answer);
    }
    await tabTo("use");
    await page.key(" ");
    await page.get("document.activeElement.blur()");
    await tabTo("message");
    await write(question);
    await page.key("Enter");
    assert.is((await page.answer()).by, "by the model as it came");
    // What cannot be learned is said, and what was learned stays.
    await page.drop("rows.jsonl", '{"text": 1}\n');
    await page.refusal(/That cannot be learned/);
    await page.drop("rows.jsonl", "not JSON\n");
    await page.refusal(/line 1 of rows.jsonl is not JSON/);
    assert.match(await page.get(learning), /2 lessons/);
    assert.equal((await page.get<Seen>("seen")).errors, []);
  }));

test("what goes wrong is a sentence: no room, no such model, no such device", () =>
  Page.run(async (page) => {
    const takes = "document.getElementById('takes').textContent";
    await page.open("?bundle=nothing.weft");
    await page.until(`/could not be read.*Check the address/.test(${takes})`);
    await page.open("?device=webgpu");
    await page.until(`/needs a.*WebGPU/.test(${takes}) && document.getElementById("go").disabled`);
    await page.send("Storage.overrideQuotaForOrigin", { origin: page.browser.origin, quotaSize: 1e6 });
    await page.open();
    await page.until(`/too little room in this browser/.test(${takes})`);
    console.log(`    ${await page.get(takes)}`);
    assert.is(await page.get("document.getElementById('go').disabled"), true);
  }));
/** An example of a folder, run by Node with the package's doors as these sources. */
async function inNode(
  example: string,
  main: string,
  env = {},
  more?: (folder: string) => void,
): Promise<string> {
  const folder = scratch("weft-app-");
  furnish(folder);
  cpSync(join(root, "examples", example), folder, { recursive: true });
  more?.(folder);
  const args = [...loader(), main, await storyBundle()];
  const { code, out, err } = await runIn(folder, process.execPath, args, env);
  assert.is(code, 0, err);
  return out;
}
test("examples/node asks, teaches and asks again", async () => {
  const said = (await inNode("node", "teach.mjs")).trimEnd().split("\n");
  assert.is(said.length, 3);
  assert.is.not(said[0], " On the moon");
  assert.is(said[1], said[0], "the base learns nothing");
  assert.is(said[2], " On the moon");
});

/** What of Electron the example uses, in one process: its page's calls go through the preload script. */
const electron = `
const handlers = new Map();
const heard = new Map();
const window = {
  isDestroyed: () => false,
  send: (name, value) => heard.get(name)?.(null, structuredClone(value)),
};
exports.ipcMain = { handle: (name, f) => handlers.set(name, f) };
exports.ipcRenderer = {
  invoke: async (name, value) =>
    structuredClone(await handlers.get(name)({ sender: window }, structuredClone(value))),
  on: (name, f) => heard.set(name, f),
  off: (name) => heard.delete(name),
};
exports.contextBridge = { exposeInMainWorld: (_, api) => (exports.weft = api) };
let closed;
exports.app = { whenReady: async () => {}, on: (_, f) => (closed = f), quit: () => {} };
exports.BrowserWindow = class {
  constructor(o) {
    require(o.webPreferences.preload);
  }
  async loadFile() {
    const { weft } = exports;
    const out = [];
    const ask = async () => {
      let text = "";
      out.push(await weft.ask("Where does Mia live?", (piece) => (text += piece)), text);
    };
    await ask();
    out.push(await weft.teach("Where does Mia live?", "On the moon"));
    await ask();
    out.push(await weft.ask("long ".repeat(500), () => {}).catch((e) => e.message));
    console.log(JSON.stringify(out));
    setImmediate(() => closed());
  }
};
`;
test("examples/electron: a window's questions and lessons cross, and so do errors", async () => {
  const env = { WEFT_BUNDLE: await storyBundle() };
  const out = await inNode("electron", "main.mjs", env, (folder) => {
    const inside = join(folder, "node_modules/electron");
    mkdirSync(inside);
    writeFileSync(join(inside, "package.json"), JSON.stringify({ name: "electron", main: "index.cjs" }));
    writeFileSync(join(inside, "index.cjs"), electron);
  });
  const [base, before, generation, lessons, after, refused] = JSON.parse(out) as string[];
  assert.equal([base, generation, lessons], ["base", "lessons@1", "lessons@1"]);
  assert.is.not(before, after);
  assert.is(after, " On the moon");
  assert.match(refused!, /WEFT_CONTEXT_OVERFLOW/);
});
test.run();
