/** An answer, whole or as a stream: what chats and completions have in common. */
import type { Piece } from "../index.ts";
import type { Api } from "./api.ts";
import { Choices } from "./choices.ts";
import { events, json } from "./http.ts";
import { type ChatBody, type common, drawnAs } from "./request.ts";

/** What a choice said: all of it, or with one token more. */
export interface Spoken {
  readonly index: number;
  readonly text: string;
  readonly pieces: readonly Piece[];
}
type Choice = Record<string, unknown>;
/** What chats and completions do not have in common. */
export interface Shape {
  /** How ids of answers begin. */
  readonly id: string;
  readonly prompts: readonly (readonly number[])[];
  readonly maxTokens: number;
  /** Special tokens are text: calls of tools begin with some. */
  readonly marks?: true;
  /** Alternatives a token; null where nothing is asked. */
  readonly logprobs: number | null;
  readonly object: { readonly whole: string; readonly part: string };
  /** What a stream begins each choice with. */
  readonly first: Choice | null;
  /** They may say better why a choice ended. */
  readonly whole: (s: Spoken) => Choice;
  readonly part: (s: Spoken) => Choice;
}
const finishOf = ({ finish }: Piece): "stop" | "length" | null =>
  finish === null || finish === "stop" ? finish : "length";

export async function answered(
  api: Api,
  request: Request,
  b: Pick<ChatBody, keyof typeof common>,
  shape: Shape,
): Promise<Response> {
  const { engine, models } = api;
  const adapter = models.adapter(b.model);
  const n = b.n ?? 1;
  const head = {
    id: `${shape.id}-${crypto.randomUUID().replaceAll("-", "")}`,
    created: Math.floor(Date.now() / 1000),
    system_fingerprint: `weft_${engine.base.slice(0, 12)}_${engine.device.numerics}`,
  };
  const choices = new Choices(engine, shape.prompts, n, {
    ...drawnAs(engine, b),
    maxTokens: shape.maxTokens,
    ...(shape.marks && { marks: true }),
    ...(adapter !== undefined && { adapter }),
    ...(shape.logprobs !== null && { logprobs: shape.logprobs }),
    signal: request.signal,
  });
  try {
    // What cannot run is told with a status, also to who wants a stream.
    await choices.begun();
    if (b.stream) return streamed(api, choices, head, b.stream_options?.include_usage ?? false, shape);
    const all: Piece[][] = Array.from({ length: choices.count }, () => []);
    for (let told = await choices.next(); told; told = await choices.next())
      all[told.index]!.push(told.piece);
    return json({
      ...head,
      object: shape.object.whole,
      model: models.idOf(all.flat()[0]?.adapter ?? adapter ?? "base"),
      choices: all.map((pieces, index) => ({
        index,
        finish_reason: pieces.length ? finishOf(pieces.at(-1)!) : "length",
        ...shape.whole({ index, pieces, text: pieces.map((p) => p.text).join("") }),
      })),
      usage: choices.usage,
    });
  } catch (e) {
    choices.close();
    throw e;
  }
}

function streamed(
  api: Api,
  choices: Choices,
  {
    id,
    created,
    system_fingerprint,
  }: Readonly<Record<"id" | "system_fingerprint", string>> & {
    readonly created: number;
  },
  usage: boolean,
  { object, first, part }: Shape,
): Response {
  let model: string | null = null;
  const chunk = (list: Choice[], more: object = usage ? { usage: null } : {}): object => ({
    ...{ id, object: object.part, created, model, system_fingerprint },
    choices: list,
    ...more,
  });
  const waiting: object[] = [];
  const begun = new Set<number>();
  let over = false;
  const say = (index: number, piece: Piece): void => {
    model ??= api.models.idOf(piece.adapter);
    if (first && !begun.has(index)) waiting.push(chunk([{ index, ...first, finish_reason: null }]));
    begun.add(index);
    const said = part({ index, text: piece.text, pieces: [piece] });
    // What ends a choice may be no text.
    const finish_reason = finishOf(piece);
    if (piece.text || said.logprobs || finish_reason)
      waiting.push(chunk([{ index, finish_reason, ...said }]));
  };
  return events(
    async () => {
      while (!waiting.length && !over) {
        const told = await choices.next();
        if (told) say(told.index, told.piece);
        else {
          over = true;
          if (usage) waiting.push(chunk([], { usage: choices.usage }));
        }
      }
      return waiting.shift() ?? null;
    },
    { close: () => choices.close(), failed: (e) => api.failed(e).toJSON() },
  );
}
