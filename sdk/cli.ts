#!/usr/bin/env node
/**
 * The command line: `weft COMMAND …`, a command a file in commands/. Progress on stderr, results on stdout;
 * `--json` for machines; exit 1 on any error.
 */
import { existsSync, readFileSync, realpathSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { WeftError } from "../runtime/bundle.ts";
import { nearest } from "../runtime/schema.ts";
import { type Command, type Flag, type Flags, fail, toggle } from "./commands/command.ts";
import { commands } from "./commands/index.ts";
import { clearLine } from "./commands/progress.ts";

/** Flags of every command. */
const common = {
  json: toggle("results, and errors, as JSON"),
  help: toggle("what you read", { short: "h" }),
} as const;

/** The package's version: its package.json lies one folder up from the sources, two from what is built. */
function version(): string {
  const [file] = ["../package.json", "../../package.json"]
    .map((path) => new URL(path, import.meta.url))
    .filter((url) => existsSync(url));
  return (JSON.parse(readFileSync(file!, "utf8")) as { version: string }).version;
}
/** `text` in lines of at most `width` characters, the first after `head`, the others below it. */
function wrapped(head: string, text: string, width = 100): string {
  const lines: string[] = [];
  let line = head;
  for (const word of text.split(" ")) {
    if (line.length + word.length + 1 > width && line.trim()) {
      lines.push(line);
      line = " ".repeat(head.length);
    }
    line += line.length > head.length ? ` ${word}` : word;
  }
  return [...lines, line].join("\n");
}
const overview = (): string => {
  const width = Math.max(...Object.keys(commands).map((n) => n.length));
  return [
    "weft: answers with a language model and teaches it at the same time, in one process",
    "",
    ...Object.entries(commands).map(([name, c]) => `  weft ${name.padEnd(width)}  ${c.summary}`),
    "",
    "weft COMMAND --help lists a command's flags. Every command takes --json. weft --version.",
  ].join("\n");
};
/** A flag as it may be said: `-o, --output`. */
const named = (flag: string, { short }: Flag): string => `${short ? `-${short}, ` : ""}--${flag}`;
function helpOf(name: string, c: Command): string {
  const flags = Object.entries({ ...c.flags, ...common });
  const said = ([flag, o]: [string, Flag]): string => `${named(flag, o)}${o.value && ` ${o.value}`}`;
  const width = Math.max(...flags.map((f) => said(f).length));
  return [
    `weft ${name} ${c.synopsis}`.trimEnd(),
    "",
    wrapped("", `${c.summary[0]!.toUpperCase()}${c.summary.slice(1)}.`),
    ...(c.details ? ["", ...c.details.split("\n").map((line) => wrapped("", line))] : []),
    "",
    ...flags.map((f) => wrapped(`  ${said(f).padEnd(width)}  `, f[1].help)),
  ].join("\n");
}

/** Flags and other words of a command. Throws WEFT_CLI naming what is nearest to a flag that there is not. */
export function parsed(
  name: string,
  command: Command,
  args: string[],
): { values: Flags; positionals: string[] } {
  const options = Object.fromEntries(
    Object.entries({ ...command.flags, ...common }).map(([flag, { type, short, multiple }]) => [
      flag,
      { type, ...(short && { short }), ...(multiple && { multiple }) },
    ]),
  );
  try {
    return parseArgs({ args, options, allowPositionals: true, strict: true }) as never;
  } catch (e) {
    const known = Object.keys(options).map((flag) => `--${flag}`);
    const unknown = /Unknown option '(--?[^' ]+)/.exec((e as Error).message)?.[1];
    const near = unknown && nearest(unknown, known);
    throw new WeftError({
      code: "WEFT_CLI",
      where: `weft ${name}`,
      expected: known.join(", "),
      found: (e as Error).message.split(". ")[0]!,
      ...(near && { hint: `did you mean ${near}? weft ${name} --help` }),
    });
  }
}
/** An error of a command's words: it names a flag as the help does, and the help where it has no hint. */
function helped(name: string, e: WeftError): WeftError {
  if (e.code !== "WEFT_CLI") return e;
  const flags: Record<string, Flag> = { ...commands[name]?.flags, ...common };
  const flag = e.where.replace(/^--/, "");
  const where = Object.hasOwn(flags, flag) ? `weft ${name} ${named(flag, flags[flag]!)}` : e.where;
  return new WeftError({ hint: `weft ${name} --help`, ...e.cause, where });
}

export async function main(argv: readonly string[]): Promise<number> {
  const [name, ...rest] = argv;
  const json = rest.includes("--json");
  try {
    if (!name || name === "--help" || name === "-h" || name === "help") {
      console.log(overview());
      return 0;
    }
    if (name === "--version" || name === "version") {
      console.log(version());
      return 0;
    }
    const known = Object.keys(commands);
    if (!Object.hasOwn(commands, name)) {
      const near = nearest(name, known);
      fail("command", known.join(", "), name, near ? `did you mean weft ${near}?` : "weft --help");
    }
    const command = commands[name]!;
    if (rest.includes("--help") || rest.includes("-h")) {
      console.log(helpOf(name, command));
      return 0;
    }
    const { values, positionals } = parsed(name, command, rest);
    if (positionals.length > 1) fail(`weft ${name}`, command.synopsis, positionals.join(" "));
    const code = await command.run(positionals, values, json);
    return typeof code === "number" ? code : 0;
  } catch (e) {
    clearLine();
    const own = WeftError.from(e);
    const error = own && name && Object.hasOwn(commands, name) ? helped(name, own) : own;
    if (json)
      console.log(
        JSON.stringify({
          error: error?.toJSON() ?? {
            code: "WEFT_UNKNOWN",
            where: name,
            found: String((e as Error)?.message ?? e),
          },
        }),
      );
    else console.error(error?.message ?? (e as Error)?.stack ?? String(e));
    return 1;
  }
}
// Installed, `weft` is a link to this file.
if (process.argv[1] && realpathSync(process.argv[1]) === fileURLToPath(import.meta.url)) {
  // Whoever reads has what they wanted: `weft generate … | head -c 20`.
  process.stdout.on("error", (e: NodeJS.ErrnoException) => {
    if (e.code !== "EPIPE") throw e;
    process.exit(0);
  });
  process.exitCode = await main(process.argv.slice(2));
}
