/** The conversation: what was said by whom, and by which generation of what it learned. */
import { WeftError } from "../../sdk/index.ts";
import type { AsyncEngine } from "../../sdk/worker/index.ts";
import { asked, type Turn } from "./lessons.ts";
import type { Rates } from "./plots.ts";
import { $, aloud, button, element, input, notice, show } from "./ui.ts";
import { sentence } from "./words.ts";

interface Ways {
  readonly engine: AsyncEngine;
  readonly rates: Rates;
  /** The adapter that answers, or null for the model as it came. */
  readonly adapter: () => string | null;
  /** Who answered, in words, of what a piece says: `base`, `lessons@3`. */
  readonly answeredBy: (adapter: string) => string;
}

export class Chat {
  private turns: Turn[] = [];
  private running: AbortController | null = null;
  /** Does the visitor look at the end? Then the end is what they see next. */
  private following = true;
  private readonly thread = $("thread");
  private readonly message = $<HTMLTextAreaElement>("message");

  constructor(private readonly ways: Ways) {
    // Not every browser lets keys scroll what scrolls.
    this.thread.tabIndex = 0;
    let size = "";
    const sized = (): string => `${this.thread.clientWidth} ${this.thread.clientHeight}`;
    this.thread.addEventListener("scroll", () => {
      // A window that changes scrolls by itself.
      if (sized() !== size) return;
      const { scrollHeight, scrollTop, clientHeight } = this.thread;
      this.following = scrollHeight - scrollTop - clientHeight < 40;
    });
    new ResizeObserver(() => {
      size = sized();
      this.toEnd();
    }).observe(this.thread);
    $("compose").addEventListener("submit", (e) => {
      e.preventDefault();
      this.send();
    });
    this.message.addEventListener("keydown", (e) => {
      if (e.key === "Enter" && !e.shiftKey && !e.isComposing) {
        e.preventDefault();
        this.send();
      } else if (e.key === "Escape") this.running?.abort();
    });
    button("stop").addEventListener("click", () => this.running?.abort());
    this.message.disabled = button("send").disabled = input("use").disabled = false;
  }

  private send(): void {
    const text = this.message.value.trim();
    if (!text || this.running) return;
    this.message.value = "";
    void this.ask(text);
  }
  /** Ask, unless an answer is on its way. */
  async ask(text: string): Promise<void> {
    if (this.running) return;
    this.running = new AbortController();
    notice(null);
    this.busy(true);
    this.thread.append(turn("you", "You", text));
    const said = element("p");
    const by = element("footer", { className: "small", textContent: "thinking…" });
    const article = turn("it", "The model");
    article.append(said, by);
    article.setAttribute("aria-busy", "true");
    this.thread.append(article);
    this.following = true;
    this.toEnd();
    this.turns.push({ who: "user", text });
    let answer = "";
    try {
      answer = await this.answer(said, by, this.running.signal);
    } catch (e) {
      by.textContent = "no answer";
      notice(sentence(e));
    }
    article.removeAttribute("aria-busy");
    if (answer) this.turns.push({ who: "assistant", text: answer });
    else this.turns.pop();
    by.append(
      element("button", { type: "button", textContent: "Ask again", onclick: () => void this.ask(text) }),
    );
    this.toEnd();
    this.running = null;
    this.busy(false);
  }
  private async answer(said: HTMLElement, by: HTMLElement, signal: AbortSignal): Promise<string> {
    const { engine, rates, adapter, answeredBy } = this.ways;
    const using = adapter();
    for (;;) {
      let [text, spoken] = ["", 0];
      try {
        const request = { ...asked(engine.manifest, this.turns), ...(using && { adapter: using }) };
        for await (const piece of engine.generate({ ...request, signal })) {
          if (!text) by.textContent = answeredBy(piece.adapter);
          text += piece.text;
          said.textContent = text.trim();
          rates.answered(1);
          const end = text.search(/[.!?\n][^.!?\n]*$/) + 1;
          if (end > spoken) {
            aloud(text.slice(spoken, end));
            spoken = end;
          }
          this.toEnd();
        }
        if (!text.trim()) said.textContent = "(It had nothing to say.)";
        aloud(text.slice(spoken) || (text ? "" : said.textContent!));
        return text.trim();
      } catch (e) {
        if ((e as Error).name === "AbortError") {
          by.textContent += text ? ", stopped" : "";
          if (!text) by.textContent = "stopped";
          return text.trim();
        }
        // A long conversation loses its oldest turns.
        if (WeftError.from(e)?.code !== "WEFT_CONTEXT_OVERFLOW" || this.turns.length < 3) throw e;
        this.turns.splice(0, 2);
      }
    }
  }

  private busy(on: boolean): void {
    const within = document.activeElement;
    show("stop", on);
    show("send", !on);
    // What has the focus went away: the place that is used next has it.
    if (on && within === button("send")) button("stop").focus();
    if (!on && within === button("stop")) this.message.focus();
  }
  private toEnd(): void {
    if (this.following) this.thread.scrollTop = this.thread.scrollHeight;
  }
}
function turn(className: string, who: string, text?: string): HTMLElement {
  const article = element("article", { className }, element("h3", { className: "unseen", textContent: who }));
  if (text !== undefined) article.append(element("p", { textContent: text }));
  return article;
}
