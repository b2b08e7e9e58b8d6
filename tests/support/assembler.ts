/**
 * One thread compiles AssemblyScript for all that a run of tests starts: the compiler's own code is fast only
 * after some modules, and each process would warm it up anew.
 */
import { createServer, request } from "node:http";
import type { AddressInfo } from "node:net";
import { buffer } from "node:stream/consumers";
import { deserialize, serialize } from "node:v8";
import { type Ask, Assembler, assembleBy } from "../../compiler/emit/asc.ts";

/** Compile for processes that have this environment, while this one lives. */
export async function serveAssembler(): Promise<{ readonly WEFT_ASSEMBLER: string }> {
  const assembler = new Assembler(true);
  const server = createServer((asked, answer) => {
    void (async () => {
      try {
        answer.end(await assembler.compile(deserialize(await buffer(asked)) as Ask));
      } catch (e) {
        answer.statusCode = 500;
        answer.end((e as Error).message);
      }
    })();
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  server.unref();
  return { WEFT_ASSEMBLER: String((server.address() as AddressInfo).port) };
}
/**
 * Ask the runner, where there is one, or a thread of this process: modules optimised as little as `quick`
 * says, where it says it.
 */
export function askRunner(quick?: true): void {
  const { WEFT_ASSEMBLER: port } = process.env;
  const own = new Assembler();
  assembleBy((asked) => {
    const ask = quick ? { ...asked, quick } : asked;
    return port ? askedAt(port, ask) : own.compile(ask);
  });
}
const askedAt = (port: string, ask: Ask): Promise<Uint8Array> =>
  new Promise((resolve, reject) => {
    const asked = request({ host: "127.0.0.1", port, method: "POST" }, (answer) => {
      buffer(answer).then((bytes) => {
        if (answer.statusCode === 200) resolve(new Uint8Array(bytes));
        else reject(new Error(bytes.toString()));
      }, reject);
    });
    asked.on("error", reject);
    asked.end(serialize(ask));
  });
