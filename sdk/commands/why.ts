/** Why an answer has nothing to show, in words. */
import type { Engine, Finish } from "../index.ts";

export function whyEmpty(
  engine: Engine,
  { finish, ids }: { readonly finish: Finish | null; readonly ids: readonly number[] },
  raw: boolean,
): string {
  const mark = ids.at(-1);
  const name = mark === undefined ? "" : ` ${engine.text?.token(mark).text || mark}`;
  if (finish === "context") return "no answer: the prompt fills the context";
  if (finish === "length") return "no answer that can be shown: its tokens are no whole characters";
  if (mark !== undefined && !engine.manifest.model.eos.includes(mark))
    return "no answer: it begins with a --stop";
  const hint = raw && engine.manifest.chatTemplate ? "; without --raw its chat template is used" : "";
  return `no answer: the model ended it at once, with${name}${hint}`;
}
