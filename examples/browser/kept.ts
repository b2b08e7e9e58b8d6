/** The list of what this page stored, each with what can be done with it. */
import { cache } from "../../sdk/index.ts";
import type { AsyncEngine } from "../../sdk/worker/index.ts";
import { NAME, type Teacher } from "./teacher.ts";
import { $, element, notice } from "./ui.ts";
import { bytes, sentence } from "./words.ts";

type Act = readonly [what: string, label: string, act: () => Promise<unknown>];

export class Kept {
  private drawing: Promise<void> = Promise.resolve();
  constructor(
    private readonly engine: () => AsyncEngine | null,
    private readonly teacher: () => Teacher | null,
    /** Can what it learned be kept here? */
    private readonly keeps: () => boolean,
  ) {}
  draw(): Promise<void> {
    return this.turn(() => this.list());
  }
  /** One after another: what is being listed is not forgotten meanwhile. */
  private turn(work: () => Promise<void>): Promise<void> {
    this.drawing = this.drawing.then(work).catch((e) => notice(sentence(e)));
    return this.drawing;
  }
  private async list(): Promise<void> {
    const items: HTMLElement[] = [];
    const teacher = this.teacher();
    if (teacher?.generation) {
      const adapter = await this.engine()!.adapters.get(NAME);
      const size = [...(await adapter.toBlobs()).values()].reduce((n, b) => n + b.size, 0);
      const where = this.keeps() ? "" : ", until the page is closed";
      const about = `version ${teacher.generation}, ${bytes(size)}${where}`;
      items.push(
        item("What it learned", about, [
          ["Download", "Download what it learned, as a zip", () => adapter.download()],
          ["Forget", "Forget what it learned", () => this.turn(() => teacher.forget())],
        ]),
      );
    }
    for (const { name, bytes: n, total, complete } of await cache.list()) {
      const size = complete ? bytes(n) : `${bytes(n)} of ${bytes(total)}`;
      const short = name.replace(location.origin, "").replace(/^\//, "");
      items.push(
        item(short, size, [["Delete", `Delete ${short}`, () => cache.delete(name).then(() => this.draw())]]),
      );
    }
    if (!items.length) items.push(element("li", { className: "small", textContent: "Nothing so far." }));
    const within = $("things").contains(document.activeElement);
    $("things").replaceChildren(...items);
    if (within) ($("things").querySelector("button") ?? $("kept-title")).focus();
  }
}
function item(name: string, size: string, acts: readonly Act[]): HTMLElement {
  const buttons = acts.map(([what, label, act]) =>
    element("button", {
      ...{ type: "button", textContent: what, ariaLabel: label },
      onclick: () => void act().catch((e) => notice(sentence(e))),
    }),
  );
  const text = element("div", {}, name, element("span", { className: "small", textContent: size }));
  return element("li", {}, text, ...buttons);
}
