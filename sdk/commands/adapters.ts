/** Adapters as the command line names them: a folder, or NAME=DIR. */
import { WeftError } from "../../runtime/bundle.ts";
import { node } from "../../runtime/node.ts";
import type { Engine } from "../index.ts";
import { say } from "./progress.ts";

/**
 * Load them, each under its name or that of its folder; resolves with the names in order. Throws WEFT_CLI
 * where two have one name.
 */
export async function loadNamed(engine: Engine, list: readonly string[]): Promise<string[]> {
  const { path } = await node();
  const names: string[] = [];
  for (const said of list) {
    const [, name, dir] = /^([\w.-]+)=(.+)$/.exec(said) ?? [
      "",
      path.basename(path.resolve(said)).replace(/\.gguf$/, ""),
      said,
    ];
    if (names.includes(name!))
      throw new WeftError({
        code: "WEFT_CLI",
        where: "--adapter",
        expected: "adapters with names of their own",
        found: `'${name}' again, for ${dir}`,
        hint: `--adapter NAME=${dir}`,
      });
    const { warnings } = await engine.adapters.load(name!, dir!);
    for (const w of warnings) say(`${name}: ${w}`);
    names.push(name!);
  }
  return names;
}
