/** The command line in this process: its exit code, and what it said. */
import { main } from "../../sdk/cli.ts";

export async function weft(...args: string[]): Promise<{ code: number; out: string; err: string }> {
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
  try {
    return { code: await main(args), ...said };
  } finally {
    console.log = kept[0];
    console.error = kept[1];
    process.stdout.write = kept[2];
    process.stderr.write = kept[3];
  }
}
