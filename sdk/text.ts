/**
 * Text ↔ ids: tokenizer.json by @huggingface/tokenizers, chat templates, and a decoder that streams whole
 * characters. Imported only for bundles that have a tokenizer.
 */
import { Tokenizer } from "@huggingface/tokenizers";
import { WeftError } from "../runtime/bundle.ts";
import { didYouMean, nearest, show } from "../runtime/schema.ts";
import type { Row } from "../runtime/trainer.ts";
import { encodeChat } from "./conversation.ts";
import type { ChatTemplate, Marked } from "./template.ts";
import { decodeMarks, mendTokenizer } from "./tokenizer.ts";

/** A part of a message's content, as the OpenAI API has it; only text has a meaning here. */
export interface TextPart {
  readonly type: "text";
  readonly text: string;
}
/** A turn of a conversation. What else it has (name, tool_calls, …) is given to the template as it is. */
export interface Message {
  readonly role: string;
  readonly content?: string | readonly TextPart[] | null;
  readonly [key: string]: unknown;
}
/**
 * Has a message no content, and nothing that a template may know instead: no key, or one that is misspelt?
 */
function saysNothing(message: object): boolean {
  const more = Object.keys(message).filter((key) => !["role", "name", "weight", "content"].includes(key));
  return !more.length || nearest("content", more) !== null;
}
/** Roles that templates know: one that is nearly one of them, and that a template does not name, is none. */
const ROLES = [
  ...["system", "developer", "user", "assistant", "model"],
  ...["tool", "tools", "tool_call", "tool_response", "function", "ipython", "observation"],
];
/**
 * Messages as templates take them: parts of text joined by line ends. Throws WEFT_OPTION that names the
 * message, for images and other parts too.
 */
export function plainMessages(messages: unknown, template: ChatTemplate): Record<string, unknown>[] {
  const refuse = (where: string, expected: string, found: unknown, hint?: string | null): never => {
    throw new WeftError({ code: "WEFT_OPTION", where, expected, found: show(found), ...(hint && { hint }) });
  };
  if (!Array.isArray(messages) || !messages.length) return refuse("messages", "a list of messages", messages);
  return messages.map((m: unknown, i) => {
    const at = `messages[${i}]`;
    if (typeof m !== "object" || m === null || typeof (m as Message).role !== "string")
      return refuse(at, "an object with a role", m);
    const { role, content } = m as { role: string; content?: unknown };
    const near = ROLES.includes(role) || template.names(role) ? null : didYouMean(role, ROLES);
    if (near) refuse(`${at}.role`, "system, user, assistant or tool", role, near);
    if (!Array.isArray(content)) {
      if (content !== undefined && content !== null && typeof content !== "string")
        refuse(`${at}.content`, "text, a list of parts, or null", content);
      if (content === undefined && saysNothing(m)) refuse(at, "a message with content", m);
      return { ...m };
    }
    const texts = content.map((part: unknown, k) => {
      const { type, text } = (part ?? {}) as Partial<TextPart>;
      if (type !== "text") refuse(`${at}.content[${k}].type`, '"text"', type);
      if (typeof text !== "string") refuse(`${at}.content[${k}].text`, "text", text);
      return text;
    });
    return { ...m, content: texts.join("\n") };
  });
}

/**
 * Bytes as GPT-2's tokenizers write them: printable ones of Latin-1 as they are, the others from U+0100 on
 * (Radford et al. 2019, bytes_to_unicode).
 */
const printable = (b: number): boolean => (b > 32 && b < 127) || (b > 160 && b !== 173);
const byteOf = new Map<string, number>();
for (let b = 0, next = 256; b < 256; b++) byteOf.set(String.fromCharCode(printable(b) ? b : next++), b);
/** Null for a piece that is not written so. */
function byteLevelBytes(piece: string): Uint8Array | null {
  const bytes = [...piece].map((c) => byteOf.get(c));
  return bytes.includes(undefined) ? null : Uint8Array.from(bytes as number[]);
}

/** What else a chat template is told, by the names that it knows. */
export type TemplateArguments = Readonly<Record<string, unknown>>;

type Files = readonly [tokenizer: object, config: Readonly<Record<string, unknown>>];
/** What makes the text of a bundle; `template` is null where it has none. */
export async function openerOf(template: string | null): Promise<(...files: Files) => Text> {
  if (template === null) return (...files) => new Text(...files, null);
  const { ChatTemplate } = await import("./template.ts");
  return (...files) => new Text(...files, () => new ChatTemplate(template));
}
/** The text of a bundle, from what its files say. Throws WEFT_TOKENIZER. */
export const openText = async (...[tokenizer, config, template]: [...Files, string | null]): Promise<Text> =>
  (await openerOf(template))(tokenizer, config);

export class Text {
  private readonly tokenizer: Tokenizer;
  /** Are tokens bytes, each a printable character (GPT-2)? */
  private readonly byteLevel: boolean;
  private readonly special: Readonly<Record<string, string>>;
  private parsed: ChatTemplate | null = null;
  /** Throws WEFT_TOKENIZER for a tokenizer that is none, or of a kind that is not known. */
  constructor(
    tokenizer: object,
    config: Readonly<Record<string, unknown>>,
    /** Parsed when it is first used: a template that cannot be read stops nobody who has no use for it. */
    private readonly template: (() => ChatTemplate) | null,
  ) {
    try {
      this.tokenizer = new Tokenizer(mendTokenizer(tokenizer as Record<string, unknown>), config);
    } catch (cause) {
      throw new WeftError({
        code: "WEFT_TOKENIZER",
        where: "tokenizer.json",
        expected: "a tokenizer that can be read",
        found: (cause as Error).message,
        cause,
      });
    }
    this.byteLevel = JSON.stringify((tokenizer as { decoder?: unknown }).decoder ?? null).includes(
      '"ByteLevel"',
    );
    const special: Record<string, string> = {};
    for (const name of ["bos", "eos", "unk", "sep", "pad", "space", "mask"]) {
      const v = config[`${name}_token`] as string | { content?: unknown } | null | undefined;
      const text = typeof v === "object" ? v?.content : v;
      if (typeof text === "string") special[`${name}_token`] = text;
    }
    this.special = { bos_token: "", eos_token: "", ...special };
  }
  /**
   * Ids of a text. `special`: with the tokens that tokenizer.json's post_processor adds (a start token, say).
   * It alone decides, as in transformers: a bos_token_id in config.json adds nothing.
   */
  encode(text: string, special = true): number[] {
    return this.tokenizer.encode(text, { add_special_tokens: special }).ids;
  }
  /** `marks`: special tokens are spelled, too. */
  decode(ids: readonly number[], marks = false): string {
    if (!ids.length) return "";
    return decodeMarks(
      ids,
      (token) => this.tokenizer.token_to_id(token),
      (some) =>
        this.tokenizer.decode(some, { skip_special_tokens: !marks, clean_up_tokenization_spaces: false }),
    );
  }
  /**
   * One token alone: its bytes, and the text that these are, with U+FFFD where they are not whole characters.
   */
  token(id: number): { text: string; bytes: Uint8Array } {
    const piece = this.tokenizer.id_to_token(id) ?? "";
    const hex = /^<0x([0-9A-F]{2})>$/.exec(piece)?.[1];
    const added = this.tokenizer.get_added_tokens_decoder().has(id);
    const bytes =
      hex !== undefined
        ? Uint8Array.of(Number.parseInt(hex, 16))
        : (this.byteLevel && !added && byteLevelBytes(piece)) ||
          new TextEncoder().encode(
            added
              ? piece
              : this.tokenizer.decode([id], {
                  skip_special_tokens: false,
                  clean_up_tokenization_spaces: false,
                }),
          );
    return { text: new TextDecoder().decode(bytes), bytes };
  }
  /** Does the chat template say itself, with `{% generation %}`, what an assistant's turn is? */
  get marksTurns(): boolean {
    return this.chatTemplate().marksTurns;
  }
  /**
   * The text that the model's chat template makes of a conversation; with `generationPrompt`, up to the
   * assistant's next word. `given`: more that templates know (`tools`, `documents`, `enable_thinking`).
   * Throws WEFT_TOKENIZER without a template, and where it cannot render the messages; WEFT_OPTION for
   * messages that are none.
   */
  chat(messages: readonly Message[], generationPrompt: boolean, given: TemplateArguments = {}): string {
    const template = this.chatTemplate();
    return template.render(this.values(plainMessages(messages, template), generationPrompt, given));
  }
  /** A whole conversation, with the spans of its `{% generation %}` blocks. */
  chatMarked(messages: readonly Message[], given: TemplateArguments = {}): Marked {
    const template = this.chatTemplate();
    return template.renderMarked(this.values(plainMessages(messages, template), false, given));
  }
  /**
   * A conversation as a row: the assistant's turns are learned, with their end marks. `ends`: ids that end an
   * answer. Throws WEFT_DATA that names `where`, and the turn.
   */
  learned(
    messages: readonly Message[],
    given: TemplateArguments,
    ends: readonly number[],
    where: string,
  ): Row {
    return encodeChat(messages, given, this, ends, where);
  }
  private values(
    messages: readonly object[],
    generationPrompt: boolean,
    given: TemplateArguments,
  ): Record<string, unknown> {
    // What transformers passes to a template where nobody names tools or documents.
    return {
      tools: null,
      documents: null,
      ...this.special,
      ...given,
      messages,
      add_generation_prompt: generationPrompt,
    };
  }
  private chatTemplate(): ChatTemplate {
    if (this.template === null)
      throw new WeftError({
        code: "WEFT_TOKENIZER",
        where: "messages",
        expected: "a chat template in the model folder",
        found: "none",
        hint: "use a text prompt",
      });
    return (this.parsed ??= this.template());
  }
  /**
   * A decoder for one stream: text that is complete so far, characters split over tokens held back until they
   * are whole. `marks`: special tokens are spelled, too.
   */
  stream(marks = false): { push: (id: number) => string; flush: () => string } {
    const ids: number[] = [];
    let start = 0; // ids before this are settled
    let said = "";
    return {
      push: (id) => {
        ids.push(id);
        const text = this.decode(ids.slice(start), marks);
        if (text.endsWith("\ufffd")) return "";
        const piece = text.slice(said.length);
        said = text;
        // Restart from the last few tokens now and then, so that decoding stays linear.
        if (ids.length - start > 32) {
          start = ids.length - 4;
          said = this.decode(ids.slice(start), marks);
        }
        return piece;
      },
      flush: () => this.decode(ids.slice(start), marks).slice(said.length),
    };
  }
}
