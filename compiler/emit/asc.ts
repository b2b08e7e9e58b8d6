/** AssemblyScript in memory: sources in, wasm out; what was compiled before comes from the user's cache. */
import asc from "assemblyscript/asc";
import { cached } from "../cache.ts";

/** Kernels: one module that any number of threads instantiate on one memory, which must be shared and of at most 4 GiB. */
export const compileKernels = (
  source: string,
  { flags = [], cache = true }: { flags?: readonly string[]; cache?: boolean } = {},
): Promise<Uint8Array> =>
  compileAssembly({ "kernels.ts": source }, "kernels.ts", cache, [
    ...flags,
    "--importMemory",
    "--noExportMemory",
    "--memoryBase",
    "0",
    "--sharedMemory",
    "--initialMemory",
    "1",
    "--maximumMemory",
    "65536",
    "--enable",
    "threads",
  ]);

/**
 * The same kernels with fused multiply-adds, where a machine has them: relaxed SIMD leaves it to the machine whether a product is rounded before it is
 * added, so this is a class of numerics of its own.
 */
export function compileRelaxed(source: string, cache = true): Promise<Uint8Array> {
  const exact = "return f32x4.add(f32x4.mul(a, b), c);";
  if (source.split(exact).length !== 2) throw new Error("the kernels have one multiply-add");
  return compileKernels(source.replace(exact, "return f32x4.relaxed_madd(a, b, c);"), {
    flags: ["--enable", "relaxed-simd"],
    cache,
  });
}

/**
 * Compile `entry` of `sources` (path → text). Throws with the compiler's own diagnostics: generated text that does not compile is a bug
 * of ours.
 */
export function compileAssembly(
  sources: Readonly<Record<string, string>>,
  entry: string,
  cache: boolean,
  more: readonly string[],
): Promise<Uint8Array> {
  const flags = ["--runtime", "stub", "--noAssert", "-O3", "--enable", "simd", ...more];
  const make = (): Promise<Uint8Array> => run(sources, [entry, "--outFile", "out.wasm", ...flags]);
  return cache ? cached(JSON.stringify([asc.version, entry, flags, sources]), make) : make();
}
async function run(sources: Readonly<Record<string, string>>, args: readonly string[]): Promise<Uint8Array> {
  let wasm: Uint8Array | null = null;
  const { error, stderr } = await asc.main([...args], {
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
