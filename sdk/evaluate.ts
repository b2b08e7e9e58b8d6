/** How well the base, or an adapter, knows rows: loss, perplexity, and how many answers it gives exactly. */
import { IGNORE, WeftError } from "../runtime/bundle.ts";
import { onAbort } from "../runtime/signals.ts";
import type { DataRow } from "./data.ts";
import type { Engine } from "./engine.ts";

export interface Evaluation {
  readonly rows: number;
  /** Tokens with labels, which the loss is a mean over. */
  readonly tokens: number;
  /** Mean negative log-likelihood of the labels, in nats, each given those before it. */
  readonly loss: number;
  /** e to the loss. */
  readonly perplexity: number;
  /**
   * Rows whose last answer, end mark and all, is what the model says greedily behind what stands before it,
   * and rows that have a last answer: not those that are learned from their first token on.
   */
  readonly exact: { readonly right: number; readonly of: number };
}
/** Rows at once: the engine has its own bounds. */
const AT_ONCE = 32;

/**
 * Evaluate on a JSONL file or rows, as jobs take them. Throws WEFT_DATA for a row that is none, or where no
 * row has a label.
 */
export async function evaluate(
  engine: Engine,
  data: string | readonly DataRow[],
  o: {
    readonly adapter?: string;
    readonly signal?: AbortSignal;
    readonly onRow?: (done: number, of: number) => void;
  } = {},
): Promise<Evaluation> {
  const rows = await engine.rows(data, "data");
  const controller = new AbortController();
  const forget = onAbort(o.signal, (reason) => controller.abort(reason));
  const about = { signal: controller.signal, ...(o.adapter !== undefined && { adapter: o.adapter }) };
  let [nll, tokens, right, of, done] = [0, 0, 0, 0, 0];
  const row = async ({ input_ids, labels }: (typeof rows)[number]): Promise<void> => {
    // The label of a token is told where the one before it stands.
    const next = labels.slice(1);
    const known = next.filter((id) => id !== IGNORE).length;
    if (known) {
      const { logprobs } = await engine.core.score(input_ids, { ...about, next });
      nll -= logprobs.reduce((a, b) => a + b, 0);
      tokens += known;
    }
    const end = labels.findLastIndex((id) => id !== IGNORE) + 1;
    let start = end;
    while (start > 0 && labels[start - 1] === input_ids[start - 1]) start--;
    if (start > 0 && start < end) {
      of++;
      const answer = input_ids.slice(start, end);
      const said: number[] = [];
      for await (const { id } of engine.core.generate({
        ...{ ...about, prompt: input_ids.slice(0, start), maxTokens: answer.length },
        stopIds: [...engine.manifest.model.eos],
      }))
        said.push(id);
      if (said.length === answer.length && said.every((id, i) => id === answer[i])) right++;
    }
    o.onRow?.(++done, rows.length);
  };
  try {
    let at = 0;
    const worker = async (): Promise<void> => {
      while (at < rows.length) await row(rows[at++]!);
    };
    await Promise.all(Array.from({ length: Math.min(AT_ONCE, rows.length) }, worker));
  } catch (e) {
    controller.abort(e);
    throw e;
  } finally {
    forget();
  }
  if (!tokens)
    throw new WeftError({
      code: "WEFT_DATA",
      where: "data",
      expected: "a row with something to know",
      found: "labels of nothing",
    });
  const loss = nll / tokens;
  return { rows: rows.length, tokens, loss, perplexity: Math.exp(loss), exact: { right, of } };
}
