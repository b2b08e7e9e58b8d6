/**
 * Chat templates, within bounds. @huggingface/jinja parses them, and interprets them through `evaluate`,
 * which bounded.ts makes pay for its work.
 */
import { Environment, type Interpreter, parse, tokenize } from "@huggingface/jinja";
import { WeftError } from "../runtime/bundle.ts";
import { BLANKS, Bounded, GENERATION, markPrints, range, SOURCE, strftimeNow } from "./bounded.ts";

export interface Marked {
  readonly text: string;
  /** Where in the text the template's `{% generation %}` blocks are: [start, end), in order. */
  readonly spans: readonly (readonly [number, number])[];
}
const failed = (cause: unknown, expected: string): WeftError =>
  new WeftError({
    code: "WEFT_TOKENIZER",
    where: "chat template",
    expected,
    found: ((cause as Error).message || (cause as Error).name).slice(0, 300),
    cause,
  });

export class ChatTemplate {
  private readonly program: Parameters<Interpreter["run"]>[0];
  /** Does it say itself, with `{% generation %}`, what an assistant's turn is? */
  readonly marksTurns: boolean;
  /** Throws WEFT_TOKENIZER for a template that cannot be parsed, or is out of all proportion. */
  constructor(private readonly source: string) {
    try {
      if (source.length > SOURCE) throw new Error(`${source.length} characters, of at most ${SOURCE}`);
      let blanks = 0;
      for (let i = 0; i < source.length; i++) {
        blanks = source[i]!.trim() ? 0 : blanks + 1;
        if (blanks > BLANKS) throw new Error(`more than ${BLANKS} blanks in a row`);
      }
      const tag = (name: string): RegExp => new RegExp(`\\{%(-?)\\s*${name}\\s*(-?)%\\}`, "g");
      this.marksTurns = tag("generation").test(source);
      const blocks = source
        .replace(tag("generation"), `{%$1 filter ${GENERATION} $2%}`)
        .replace(tag("endgeneration"), "{%$1 endfilter $2%}");
      this.program = parse(tokenize(blocks, { lstrip_blocks: true, trim_blocks: true }));
      markPrints(this.program);
    } catch (cause) {
      throw failed(cause, "a Jinja template");
    }
  }
  /** Does it name this role? */
  names(role: string): boolean {
    return [`'${role}'`, `"${role}"`].some((quoted) => this.source.includes(quoted));
  }
  /**
   * The text that the template makes. Throws WEFT_TOKENIZER with the template's own complaint, or with the
   * bound it passed.
   */
  render(values: Readonly<Record<string, unknown>>): string {
    return this.run(values, null);
  }
  /**
   * The same text, and where its generation blocks are. Throws also where the template changes what is in a
   * block.
   */
  renderMarked(values: Readonly<Record<string, unknown>>): Marked {
    const text = this.run(values, null);
    // Two of Unicode's noncharacters, which the text does not have.
    const free = Array.from({ length: 32 }, (_, i) => String.fromCharCode(0xfdd0 + i)).filter(
      (c) => !text.includes(c),
    );
    const [open, close] = free as [string?, string?];
    if (open === undefined || close === undefined)
      throw failed(new Error("a text that uses all of U+FDD0 to U+FDEF"), "a text without noncharacters");
    const spans: [number, number][] = [];
    let plain = "";
    let start: number | null = null;
    let nested = false;
    for (const part of this.run(values, [open, close]).split(new RegExp(`([${open}${close}])`))) {
      if (part === open) {
        nested ||= start !== null;
        start = plain.length;
      } else if (part === close) {
        nested ||= start === null;
        spans.push([start ?? 0, plain.length]);
        start = null;
      } else plain += part;
    }
    if (nested || start !== null || plain !== text)
      throw failed(
        new Error("text that depends on the marks at their ends"),
        "generation blocks that are printed as they are",
      );
    return { text, spans };
  }
  private run(values: Readonly<Record<string, unknown>>, marks: readonly [string, string] | null): string {
    try {
      const env = new Environment();
      const interpreter = new Bounded(env, marks);
      const globals = {
        true: true,
        True: true,
        false: false,
        False: false,
        none: null,
        None: null,
        raise_exception: (message: unknown) => {
          throw new Error(String(message));
        },
        range: range((work) => interpreter.charge(work)),
        strftime_now: strftimeNow,
      };
      for (const [name, value] of Object.entries({ ...globals, ...values })) env.set(name, value);
      return String(interpreter.run(this.program).value);
    } catch (cause) {
      throw failed(cause, "messages it can render, within its bounds");
    }
  }
}
