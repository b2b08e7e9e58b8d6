/** AssemblyScript in memory: sources in, wasm out. */
import asc from "assemblyscript/asc";

/** Kernels: one module that any number of threads instantiate on one memory, which must be shared and of at most 4 GiB. */
export const compileKernels = (source: string): Promise<Uint8Array> =>
  compileAssembly({ "kernels.ts": source }, "kernels.ts", [
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

/** Compile `entry` of `sources` (path → text). Throws with the compiler's own diagnostics: generated text that does not compile is a bug of ours. */
export async function compileAssembly(sources: Readonly<Record<string, string>>, entry: string, flags: readonly string[]): Promise<Uint8Array> {
  let wasm: Uint8Array | null = null;
  const { error, stderr } = await asc.main([entry, "--outFile", "out.wasm", "--runtime", "stub", "--noAssert", "-O3", "--enable", "simd", ...flags], {
    readFile: (name: string) => sources[name.replace(/^\.?\//, "")] ?? null,
    writeFile: (name: string, contents: Uint8Array | string) => {
      if (name === "out.wasm") wasm = contents as Uint8Array;
    },
    listFiles: () => [],
  });
  if (error || !wasm) throw new Error(`assemblyscript: ${stderr.toString() || error?.message}`, { cause: error });
  return wasm;
}
