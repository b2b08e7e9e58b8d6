/** weft eval: how well a model and its adapters know rows. */
import { type Evaluation, evaluate } from "../evaluate.ts";
import { loadNamed } from "./adapters.ts";
import { loadFlags, openBundle } from "./bundle.ts";
import { type Command, needed, string, strings, text } from "./command.ts";
import { clearLine, progress, table } from "./progress.ts";

export const evalCommand: Command = {
  summary: "loss, perplexity and exact answers of the base and of adapters, on rows of data",
  synopsis: "BUNDLE --data FILE.jsonl [--adapter DIR …]",
  details:
    "An answer is exact where the model says it greedily, end mark and all, behind what stands " +
    "before it in its row.",
  flags: {
    data: text("FILE", "rows to evaluate on, JSONL"),
    adapter: text("DIR", "an adapter folder, or NAME=DIR; may be given again", { multiple: true }),
    ...loadFlags,
  },
  run: async (positional, f, json) => {
    const data = string(f, "data");
    await using engine = await openBundle("eval", needed(positional, "eval", "a bundle"), f);
    const names = await loadNamed(engine, strings(f, "adapter"));
    const found: [string, Evaluation][] = [];
    for (const name of ["base", ...names]) {
      const onRow = (done: number, of: number): void =>
        void (process.stderr.isTTY && progress(`${name} ${done} of ${of}`));
      const adapter = found.length ? { adapter: name } : {};
      found.push([name, await evaluate(engine, data, { ...adapter, onRow })]);
      clearLine();
    }
    if (json) return console.log(JSON.stringify(Object.fromEntries(found)));
    console.log(
      table([
        ["", "rows", "tokens", "loss", "perplexity", "exact"],
        ...found.map(([name, e]) => [
          name,
          String(e.rows),
          String(e.tokens),
          e.loss.toFixed(4),
          e.perplexity.toFixed(3),
          e.exact.of ? `${e.exact.right}/${e.exact.of}` : "-",
        ]),
      ]),
    );
  },
};
