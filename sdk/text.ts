/** Text ↔ ids: tokenizer.json by @huggingface/tokenizers, chat templates by @huggingface/jinja, and a decoder that streams whole characters. */
import { Template } from "@huggingface/jinja";
import { Tokenizer } from "@huggingface/tokenizers";
import { WeftError } from "../runtime/bundle.ts";

export interface Message {
  readonly role: string;
  readonly content: string;
}
export class Text {
  private readonly tokenizer: Tokenizer;
  private readonly special: Readonly<Record<string, string>>;
  constructor(
    tokenizer: object,
    config: Readonly<Record<string, unknown>>,
    private readonly template: string | null,
  ) {
    this.tokenizer = new Tokenizer(tokenizer, config);
    const text = (v: unknown): string =>
      typeof v === "string" ? v : ((v as { content?: string } | null)?.content ?? "");
    this.special = { bos_token: text(config.bos_token), eos_token: text(config.eos_token) };
  }
  /**
   * Ids of a text. `special`: with the tokens that tokenizer.json's post_processor adds (a start token, say). It alone
   * decides, as in transformers: a bos_token_id in config.json adds nothing.
   */
  encode(text: string, special = true): number[] {
    return this.tokenizer.encode(text, { add_special_tokens: special }).ids;
  }
  decode(ids: readonly number[]): string {
    return ids.length
      ? this.tokenizer.decode([...ids], { skip_special_tokens: true, clean_up_tokenization_spaces: false })
      : "";
  }
  /** The prompt that the model's chat template makes of a conversation. */
  chat(messages: readonly Message[], generationPrompt: boolean): string {
    if (this.template === null)
      throw new WeftError({
        code: "WEFT_TOKENIZER",
        where: "messages",
        expected: "a chat template in the model folder",
        found: "none",
        hint: "use a text prompt",
      });
    try {
      return new Template(this.template).render({
        messages: messages.map((m) => ({ ...m })),
        add_generation_prompt: generationPrompt,
        ...this.special,
      });
    } catch (cause) {
      throw new WeftError({
        code: "WEFT_TOKENIZER",
        where: "chat template",
        expected: "messages it can render",
        found: (cause as Error).message,
        cause,
      });
    }
  }
  /** A decoder for one stream: text that is complete so far, characters split over tokens held back until they are whole. */
  stream(): { push: (id: number) => string; flush: () => string } {
    const ids: number[] = [];
    let start = 0; // ids before this are settled
    let said = "";
    return {
      push: (id) => {
        ids.push(id);
        const text = this.decode(ids.slice(start));
        if (text.endsWith("\ufffd")) return "";
        const piece = text.slice(said.length);
        said = text;
        // Restart from the last few tokens now and then, so that decoding stays linear.
        if (ids.length - start > 32) {
          start = ids.length - 4;
          said = this.decode(ids.slice(start));
        }
        return piece;
      },
      flush: () => this.decode(ids.slice(start)).slice(said.length),
    };
  }
}
