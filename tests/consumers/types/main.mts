// TypeScript as Node resolves it, with all checks; the package's own declarations are checked too.
import { type CompileOptions, compile, type Engine, load, type Piece, WeftError } from "@weft/sdk";
import { type Compiled, compile as inMemory } from "@weft/sdk/compiler";
import { handler } from "@weft/sdk/openai";
import { type GenerateIds, openEngine, type TokenEvent } from "@weft/sdk/runtime";
import { createWorkerEngine } from "@weft/sdk/worker";

const options: CompileOptions = { train: ["lora"], format: "f16", capacities: { context: 128 } };
export async function all(): Promise<string> {
  const manifest = await compile("model", "model.weft", options);
  const engine: Engine = await load("model.weft", { device: "wasm", memory: "512MB" });
  for await (const piece of engine.generate({ prompt: "Once", maxTokens: 4 })) {
    const { text, id }: Piece = piece;
    console.log(text.toUpperCase(), id.toFixed());
  }
  const job = await engine.finetune({ name: "notes", data: [{ text: "Once" }], epochs: 1 });
  const { losses } = await job.done;
  await engine.dispose();
  // @ts-expect-error: an option that does not exist
  engine.generate({ prompt: "Once", maxToken: 4 });
  return `${manifest.base} ${losses.length}`;
}
export async function ids(o: GenerateIds): Promise<TokenEvent[]> {
  const engine = await openEngine("model.weft");
  const out: TokenEvent[] = [];
  for await (const e of engine.generate(o)) out.push(e);
  return out;
}
export const compiled: Promise<Compiled> = inMemory("model");
export const code = (e: unknown): string => (e instanceof WeftError ? e.code : "");
export const answered = async (request: Request): Promise<Response> =>
  handler(await load("model.weft"))(request);
export const apart = async (): Promise<string> =>
  (await (await createWorkerEngine("model.weft")).complete({ prompt: "Once" })).text;
