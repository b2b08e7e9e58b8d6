/** Adapters as the command line names them: a folder, or NAME=DIR. */
import { node } from "../../runtime/node.ts";
import type { Engine } from "../index.ts";
import { say } from "./progress.ts";

/** Load them, each under its name or that of its folder; resolves with the names in order. */
export async function loadNamed(engine: Engine, list: readonly string[]): Promise<string[]> {
  const { path } = await node();
  const names: string[] = [];
  for (const said of list) {
    const [, name, dir] = /^([\w.-]+)=(.+)$/.exec(said) ?? [
      "",
      path.basename(path.resolve(said)).replace(/\.gguf$/, ""),
      said,
    ];
    const { warnings } = await engine.adapters.load(name!, dir!);
    for (const w of warnings) say(`${name}: ${w}`);
    names.push(name!);
  }
  return names;
}
