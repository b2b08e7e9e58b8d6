/** What a command of the command line is: its words, its flags, and what it does. */
import { WeftError } from "../../runtime/bundle.ts";

export interface Flag {
  readonly type: "string" | "boolean";
  readonly short?: string;
  readonly multiple?: true;
  /** What stands for its value in the help; empty for a switch. */
  readonly value: string;
  /** What it means, with its default. */
  readonly help: string;
}
/** Values of flags, as they were said. */
export type Flags = Readonly<Record<string, string | boolean | readonly string[] | undefined>>;
export interface Command {
  /** In a few words, for the list of commands. */
  readonly summary: string;
  /** What stands behind the command's name: "BUNDLE --data FILE". */
  readonly synopsis: string;
  /** What else is to know before one uses it. */
  readonly details?: string;
  readonly flags: Readonly<Record<string, Flag>>;
  /** Resolves with nothing, or with the exit code. */
  readonly run: (positional: readonly string[], f: Flags, json: boolean) => Promise<unknown>;
}

/** A flag with a value. */
export const text = (value: string, help: string, more: Pick<Flag, "short" | "multiple"> = {}): Flag => ({
  type: "string",
  value,
  help,
  ...more,
});
/** A flag without one. */
export const toggle = (help: string, more: Pick<Flag, "short"> = {}): Flag => ({
  type: "boolean",
  value: "",
  help,
  ...more,
});

/** Where no hint is given, the command line names the command's help. */
export const fail = (where: string, expected: string, found: string, hint?: string): never => {
  throw new WeftError({ code: "WEFT_CLI", where, expected, found, ...(hint !== undefined && { hint }) });
};
export const number = (flags: Flags, name: string): number | undefined => {
  const v = flags[name];
  if (v === undefined) return undefined;
  const n = Number(v);
  return v === "" || !Number.isFinite(n) ? fail(`--${name}`, "a number", String(v)) : n;
};
export const tokenIds = (said: string): number[] =>
  said
    .split(",")
    .map((id) => (/^\s*\d+\s*$/.test(id) ? Number(id) : fail("--ids", "token ids, 1,2,3", said)));
/** Of an object, what is not undefined. */
export const given = <T extends object>(o: T): Partial<{ [K in keyof T]: Exclude<T[K], undefined> }> =>
  Object.fromEntries(Object.entries(o).filter(([, v]) => v !== undefined)) as never;
/** The value of a flag that must be there. */
export const string = (flags: Flags, name: string): string =>
  optional(flags, name) ?? fail(`--${name}`, "a value", "nothing");
export const optional = (flags: Flags, name: string): string | undefined => {
  const v = flags[name];
  return typeof v === "string" ? v : undefined;
};
/** All values of a flag that may be said again and again. */
export const strings = (flags: Flags, name: string): readonly string[] => {
  const v = flags[name];
  return Array.isArray(v) ? (v as readonly string[]) : [];
};
/** What stands behind a command's name and is needed. */
export const needed = (positional: readonly string[], where: string, what: string): string =>
  positional[0] ?? fail(`weft ${where}`, what, "nothing");

/** The words of a command line as a shell takes them. */
export const shellWords = (words: readonly string[]): string =>
  words.map((w) => (/^[\w./:=,@+-]+$/.test(w) ? w : `'${w.replaceAll("'", "'\\''")}'`)).join(" ");
