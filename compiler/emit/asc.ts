/**
 * AssemblyScript in memory: sources in, wasm out; what was compiled before comes from the user's cache.
 * Options are those of asconfig.json, a target for each kind of module.
 */
import asc from "assemblyscript/asc";
import { cached } from "../cache.ts";
import { readBeside } from "../files.ts";
import { finishModule, type ModuleRules } from "./module.ts";

/**
 * Targets of asconfig.json. Kernels may have no state: any number of threads instantiate them on one shared
 * memory of at most 4 GiB.
 */
const targets = {
  host: { stateless: false },
  kernels: { stateless: true },
  "kernels-relaxed": { stateless: true },
} as const satisfies Readonly<Record<string, ModuleRules>>;
type Target = keyof typeof targets;

export const compileKernels = (source: string, cache = true): Promise<Uint8Array> =>
  compileAssembly("kernels", { "kernels.ts": source }, "kernels.ts", cache);

/**
 * The same kernels with fused multiply-adds, where a machine has them: relaxed SIMD leaves it to the machine
 * whether a product is rounded before it is added, so this is a class of numerics of its own.
 */
export function compileRelaxed(source: string, cache = true): Promise<Uint8Array> {
  const exact = "return f32x4.add(f32x4.mul(a, b), c);";
  if (source.split(exact).length !== 2) throw new Error("the kernels have one multiply-add");
  const fused = source.replace(exact, "return f32x4.relaxed_madd(a, b, c);");
  return compileAssembly("kernels-relaxed", { "kernels.ts": fused }, "kernels.ts", cache);
}

/**
 * Compile `entry` of `sources` (path → text). Throws with the compiler's own diagnostics: generated text that
 * does not compile is a bug of ours.
 */
export function compileAssembly(
  target: Target,
  sources: Readonly<Record<string, string>>,
  entry: string,
  cache: boolean,
): Promise<Uint8Array> {
  const config = readBeside(import.meta.url, "../../asconfig.json");
  const make = async (): Promise<Uint8Array> =>
    finishModule(entry, await run(target, { ...sources, "asconfig.json": config }, entry), targets[target]);
  return cache ? cached(JSON.stringify([asc.version, config, target, entry, sources]), make) : make();
}
async function run(
  target: Target,
  sources: Readonly<Record<string, string>>,
  entry: string,
): Promise<Uint8Array> {
  let wasm: Uint8Array | null = null;
  const args = [entry, "--outFile", "out.wasm", "--config", "asconfig.json", "--target", target];
  const { error, stderr } = await asc.main(args, {
    readFile: (name: string) => sources[name.replace(/^\.?\//, "")] ?? null,
    writeFile: (name: string, contents: Uint8Array | string) => {
      if (name === "out.wasm") wasm = contents as Uint8Array;
    },
    listFiles: () => [],
  });
  if (error || !wasm)
    throw new Error(`assemblyscript: ${stderr.toString() || error?.message}`, { cause: error });
  return wasm;
}
