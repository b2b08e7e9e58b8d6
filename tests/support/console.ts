/** The command line in this process: its exit code, and what it said. */
import { Readable } from "node:stream";
import { main } from "../../sdk/cli.ts";

export interface Said {
  readonly code: number;
  readonly out: string;
  readonly err: string;
}
export const weft = (...args: string[]): Promise<Said> => weftReading("", ...args);
/** With `input` on its stdin. */
export async function weftReading(input: string, ...args: string[]): Promise<Said> {
  const stdin = Object.getOwnPropertyDescriptor(process, "stdin")!;
  const given = Readable.from(input ? [Buffer.from(input)] : []);
  const said = { out: "", err: "" };
  const kept = [console.log, console.error, process.stdout.write, process.stderr.write] as const;
  const to =
    (name: "out" | "err", end: string) =>
    (...words: unknown[]): true => {
      said[name] += `${words.map(String).join(" ")}${end}`;
      return true;
    };
  console.log = to("out", "\n");
  console.error = to("err", "\n");
  process.stdout.write = ((x: unknown) => to("out", "")(x)) as never;
  process.stderr.write = ((x: unknown) => to("err", "")(x)) as never;
  Object.defineProperty(process, "stdin", { ...stdin, get: () => given });
  try {
    return { code: await main(args), ...said };
  } finally {
    Object.defineProperty(process, "stdin", stdin);
    console.log = kept[0];
    console.error = kept[1];
    process.stdout.write = kept[2];
    process.stderr.write = kept[3];
  }
}
