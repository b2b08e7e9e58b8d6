/**
 * One thread compiles AssemblyScript for all test files: the compiler's own code is fast only after some
 * modules, and each process would warm it up anew.
 */
import type { ChildProcess } from "node:child_process";
import { type Ask, Assembler, assembleBy } from "../../compiler/emit/asc.ts";

type Question = { readonly assemble: number; readonly ask: Ask };
type Answer = { readonly assembled: number; readonly wasm?: Uint8Array; readonly error?: string };

let assembler: Assembler | undefined;
/** Compile what a test file's process asks for. */
export function assembleFor(child: ChildProcess): void {
  assembler ??= new Assembler(true);
  const { compile } = assembler;
  const tell = (answer: Answer): void => {
    if (child.connected) child.send(answer, () => {});
  };
  child.on("message", ({ assemble: assembled, ask }: Question) => {
    compile.call(assembler, ask).then(
      (wasm) => tell({ assembled, wasm }),
      (e: Error) => tell({ assembled, error: e.message }),
    );
  });
}
/** Ask the runner, where there is one. */
export function askRunner(): void {
  const { channel } = process;
  if (!channel) return;
  const waiting = new Map<number, (answer: Answer) => void>();
  let asked = 0;
  process.on("message", (answer: Answer) => {
    // Other messages say which file to play.
    if (!waiting.has(answer.assembled)) return;
    waiting.get(answer.assembled)!(answer);
    waiting.delete(answer.assembled);
    // Only what is asked for keeps the process.
    if (!waiting.size) channel.unref();
  });
  assembleBy(
    (ask) =>
      new Promise((resolve, reject) => {
        const question: Question = { assemble: asked++, ask };
        channel.ref();
        waiting.set(question.assemble, ({ wasm, error }) =>
          wasm ? resolve(wasm) : reject(new Error(error)),
        );
        process.send!(question);
      }),
  );
}
