/** Bundles as the command line takes them: loaded, and what to do where something else was named. */
import { node } from "../../runtime/node.ts";
import type { DeviceChoice } from "../../runtime/open.ts";
import { type Engine, type LoadOptions, load } from "../index.ts";
import { type Flags, fail, given, number, optional, text } from "./command.ts";
import { clearLine, phases } from "./progress.ts";

/** Flags of all that loads a bundle. */
export const loadFlags = {
  device: text("D", "auto (WebGPU on hardware, else Wasm), wasm, webgpu or software; default auto"),
  threads: text("N", "threads of the CPU; default: its cores"),
  memory: text("SIZE", "bytes that loading may take, as 512MB; default: what the bundle is meant for"),
} as const;

/** Is there a folder with something of this name? */
async function has(folder: string, name: string): Promise<boolean> {
  const { fs, path } = await node();
  return fs.stat(path.join(folder, name)).then(
    () => true,
    () => false,
  );
}
/**
 * Throws WEFT_CLI, with the command that makes a bundle of it, where `location` is a model or the name of
 * one.
 */
export async function checkBundle(where: string, location: string): Promise<void> {
  const wrong = (found: string, hint: string): never => fail(`weft ${where}`, "a bundle", found, hint);
  if (/^[a-z][a-z\d+.-]+:\/\//i.test(location)) return;
  const out = `./${location
    .replace(/[\\/]+$/, "")
    .replace(/^.*[\\/]/, "")
    .replace(/\.gguf$/i, "")}.weft`;
  const compile = `make one with: weft compile ${location} -o ${out}`;
  if (/\.gguf$/i.test(location)) wrong(`a GGUF file, ${location}`, compile);
  if (await has(location, "manifest.json")) return;
  if (await has(location, "config.json")) wrong(`a model folder, ${location}`, compile);
  if (await has(location, "adapter_config.json"))
    wrong(
      `an adapter, ${location}`,
      `name its bundle; the adapter goes behind --adapter, where a command takes one`,
    );
  if (/^[\w-][\w.-]*\/[\w.-]+(@[\w./-]+)?$/.test(location))
    wrong(`no folder ${location}`, `of the Hugging Face Hub: weft pull ${location} -o ${out}`);
}
/** Load a bundle, saying how far it is. */
export async function openBundle(
  where: string,
  location: string,
  f: Flags,
  more: LoadOptions = {},
): Promise<Engine> {
  await checkBundle(where, location);
  const engine = await load(location, {
    device: (optional(f, "device") ?? "auto") as DeviceChoice,
    ...given({ memory: optional(f, "memory"), threads: number(f, "threads") }),
    // A log has no use for how far a load is.
    ...(process.stderr.isTTY && { onProgress: phases() }),
    ...more,
  });
  clearLine();
  return engine;
}
