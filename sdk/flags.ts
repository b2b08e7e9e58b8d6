/** Flags of the command line as values, and what it prints beside results. */
import { WeftError } from "../runtime/bundle.ts";

export type Flags = Readonly<Record<string, string | boolean | undefined>>;
/** Resolves with what to print nothing more for; a number is the exit code. */
export type Command = (positional: readonly string[], f: Flags, json: boolean) => Promise<unknown>;

export const fail = (where: string, expected: string, found: string): never => {
  throw new WeftError({ code: "WEFT_CLI", where, expected, found, hint: "weft --help" });
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
export const given = <T extends object>(o: T): Partial<{ [K in keyof T]: Exclude<T[K], undefined> }> =>
  Object.fromEntries(Object.entries(o).filter(([, v]) => v !== undefined)) as never;
export const string = (flags: Flags, name: string): string =>
  typeof flags[name] === "string" ? (flags[name] as string) : fail(`--${name}`, "a value", "nothing");
export const progress = (line: string): void =>
  void (process.stderr.isTTY ? process.stderr.write(`\r\x1b[2K${line}`) : process.stderr.write(`${line}\n`));
export const endLine = (): void => void (process.stderr.isTTY && process.stderr.write("\n"));
export const kb = (n: number): string =>
  n > 1e9
    ? `${(n / 1e9).toFixed(2)} GB`
    : n > 1e6
      ? `${(n / 1e6).toFixed(1)} MB`
      : `${(n / 1e3).toFixed(1)} kB`;
