/**
 * Do rows say a prompt as a chat does? Prompts are learned as they stand; `chat` and `generate` ask by the
 * template.
 */
import { WeftError } from "../../runtime/bundle.ts";
import { numbered } from "../data.ts";
import { readFileOr } from "../files.ts";
import type { Engine } from "../index.ts";

/** Rows that are looked at. */
const LOOKED_AT = 1000;

/** What the model's chat template writes between what a user says and the answer; null where it cannot. */
function turn(engine: Engine): string | null {
  if (!engine.text || !engine.manifest.chatTemplate) return null;
  const said = "weft";
  try {
    const text = engine.text.chat([{ role: "user", content: said }], true);
    return text.slice(text.lastIndexOf(said) + said.length).trim();
  } catch (e) {
    // A template that wants more than a user's turn: nobody can ask by it alone either.
    if (e instanceof WeftError) return null;
    throw e;
  }
}
/**
 * Tells where a prompt lacks what the template writes behind it; null where all have it. Throws WEFT_DATA.
 */
export async function asked(engine: Engine, file: string): Promise<string | null> {
  const behind = turn(engine);
  if (!behind) return null;
  let left = LOOKED_AT;
  for (const { row, at } of numbered(await readFileOr(file, "WEFT_DATA"), file)) {
    if ("prompt" in row && typeof row.prompt === "string" && !row.prompt.trimEnd().endsWith(behind))
      return (
        `${at}: the prompt is learned as it stands, without the chat template; ask with ` +
        '`weft generate --raw`, or teach {"messages": […]} to ask by `weft chat`'
      );
    if (!--left) return null;
  }
  return null;
}
