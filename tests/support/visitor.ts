/** The example page as a visitor uses it: by keys and clicks, and by what is to be seen. */
import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import * as assert from "uvu/assert";
import { buildPage, serving } from "../../examples/browser/serve.ts";
import { type Browser, openChromium } from "./chromium.ts";
import { root } from "./docs.ts";
import { storyBundle } from "./story.ts";

/** Where pictures of it are put. */
const pictures = join(root, ".weft/app");
export interface Seen {
  readonly longest: number;
  readonly delay: number;
  readonly moved: readonly string[];
  readonly errors: readonly string[];
}

/** A visitor of the example page, in a browser of their own. */
export class Page {
  /** Requests for the bundle. */
  readonly asked: string[] = [];
  /** No network: nothing but the page itself is answered. */
  down = false;
  browser!: Browser;
  /** `turns`: with a model that has a chat template. */
  static async run(f: (page: Page) => Promise<void>, { turns = true } = {}): Promise<void> {
    const it = new Page();
    const answer = serving(await (built ??= buildPage()), await storyBundle(turns));
    it.browser = await openChromium((path, request, response) => {
      if (path.startsWith("/story.weft/")) {
        it.asked.push(path);
        if (it.down) {
          response.destroy();
          return "answered";
        }
      }
      answer(request, response);
      return "answered";
    });
    try {
      await it.send("Page.enable");
      await it.send("Page.addScriptToEvaluateOnNewDocument", { source: watching });
      await f(it);
    } finally {
      it.browser.close();
    }
  }
  send(method: string, params: object = {}): Promise<Record<string, unknown>> {
    return this.browser.send(method, params);
  }
  async open(query = ""): Promise<void> {
    await this.send("Page.navigate", { url: `${this.browser.origin}/${query}` });
    await this.until("document.readyState === 'complete'");
  }
  async get<T>(expression: string): Promise<T> {
    const { result, exceptionDetails } = (await this.send("Runtime.evaluate", {
      ...{ expression, returnByValue: true, awaitPromise: true },
    })) as { result: { value: T }; exceptionDetails?: object };
    if (exceptionDetails) throw new Error(`${expression}: ${JSON.stringify(exceptionDetails)}`);
    return result.value;
  }
  /** Waits in the page for what `expression` says; what went wrong there ends the wait. */
  async until(expression: string): Promise<void> {
    const said = await this.get<string>(`new Promise((resolve) => {
      let looks = 0;
      const look = () => {
        const notice = document.getElementById("notice");
        if (${expression}) resolve("");
        else if (notice && !notice.hidden) resolve(notice.innerText);
        else if (looks++ > 5000) resolve(JSON.stringify(seen.errors) + document.body.innerText);
        else setTimeout(look, 20);
      };
      look();
    })`);
    assert.is(said, "", `${expression}: ${said}`);
  }
  click(id: string): Promise<unknown> {
    return this.get(`document.getElementById(${JSON.stringify(id)}).click()`);
  }
  type(id: string, text: string): Promise<unknown> {
    return this.get(
      `document.getElementById(${JSON.stringify(id)}).focus(), document.activeElement.value = ${JSON.stringify(text)}`,
    );
  }
  /** A button of the list of what is kept, once it is there. */
  async press(text: string): Promise<void> {
    const found = `[...document.querySelectorAll("#things button")].find((b) => b.textContent === ${JSON.stringify(text)})`;
    await this.until(found);
    await this.get(`${found}.click()`);
  }
  size(width: number, height: number): Promise<unknown> {
    const mobile = width < 600;
    return this.send("Emulation.setDeviceMetricsOverride", { width, height, deviceScaleFactor: 1, mobile });
  }
  /** Pictures to look at, at two sizes, light and dark. */
  async shoot(name: string): Promise<void> {
    mkdirSync(pictures, { recursive: true });
    const settled = "new Promise((go) => requestAnimationFrame(() => requestAnimationFrame(go)))";
    const moved = await this.get(`${settled}.then(() => seen.moved.length)`);
    for (const [width, height] of [
      [360, 740],
      [1280, 800],
    ] as const)
      for (const scheme of ["light", "dark"]) {
        await this.size(width, height);
        await this.send("Emulation.setEmulatedMedia", {
          features: [{ name: "prefers-color-scheme", value: scheme }],
        });
        for (const panel of width < 600 ? ["chat", "teach", "kept"] : ["chat"]) {
          await this.get(`document.querySelector("[data-shows=${panel}]").click()`);
          await this.get(settled);
          const { data } = await this.send("Page.captureScreenshot");
          const file = `${name}-${width < 600 ? panel : "wide"}-${scheme}.png`;
          writeFileSync(join(pictures, file), Buffer.from(String(data), "base64"));
        }
      }
    await this.size(1280, 800);
    // What another size moved, did not move by itself.
    await this.get(`${settled}.then(() => { seen.moved.length = ${moved}; })`);
  }
  async key(key: string, more: object = {}): Promise<void> {
    const codes: Record<string, number> = { Tab: 9, Enter: 13, Escape: 27, " ": 32 };
    const event = { key, code: key === " " ? "Space" : key, windowsVirtualKeyCode: codes[key], ...more };
    const text = key === "Enter" ? "\r" : key === " " ? " " : undefined;
    await this.send("Input.dispatchKeyEvent", { type: "keyDown", ...event, ...(text && { text }) });
    await this.send("Input.dispatchKeyEvent", { type: "keyUp", ...event });
  }
  /** A file, let go over the page. */
  drop(name: string, text: string): Promise<unknown> {
    return this.get(`(() => {
      const dataTransfer = new DataTransfer();
      dataTransfer.items.add(new File([${JSON.stringify(text)}], ${JSON.stringify(name)}));
      dispatchEvent(new DragEvent("drop", { dataTransfer, cancelable: true }));
    })()`);
  }
  /** The page says that something went wrong; it is closed. */
  async refusal(says: RegExp): Promise<void> {
    const notice = "document.getElementById('notice')";
    await this.get(`new Promise((r) => {
      const look = () => (${notice}.hidden ? setTimeout(look, 20) : r());
      look();
    })`);
    assert.match(await this.get(`${notice}.innerText`), says);
    await this.click("dismiss");
  }
  /** Ask, and wait for the answer: its words, and who said it. */
  async ask(text: string): Promise<{ said: string; by: string }> {
    await this.type("message", text);
    await this.key("Enter");
    return this.answer();
  }
  async answer(): Promise<{ said: string; by: string }> {
    await this.until("document.querySelector('article.it:last-of-type footer button')");
    return this.get(`(() => {
      const last = [...document.querySelectorAll("article.it")].at(-1);
      return { said: last.querySelector("p").textContent, by: last.querySelector("footer").firstChild.textContent };
    })()`);
  }
}
let built: ReturnType<typeof buildPage> | undefined;
/** Counts, from the page's first moment, what keeps a visitor waiting or moves what they look at. */
const watching = `
window.seen = { longest: 0, delay: 0, moved: [], errors: [] };
addEventListener("error", (e) => seen.errors.push(e.message ?? String(e.target.src)), true);
addEventListener("unhandledrejection", (e) => seen.errors.push(String(e.reason?.stack ?? e.reason)));
const watch = (type, f, more) => new PerformanceObserver((l) => l.getEntries().forEach(f)).observe({ type, buffered: true, ...more });
watch("longtask", (e) => { seen.longest = Math.max(seen.longest, e.duration); });
watch("event", (e) => { seen.delay = Math.max(seen.delay, e.processingEnd - e.startTime); }, { durationThreshold: 16 });
watch("layout-shift", (e) => { if (!e.hadRecentInput) seen.moved.push(...e.sources.map((s) => s.node?.id || s.node?.parentElement?.id)); });
`;
