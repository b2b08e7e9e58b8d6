/**
 * A thread that compiles AssemblyScript and checks what came out. Plain JavaScript, and apart from the rest:
 * the compiler and binaryen are fifteen megabytes, which a loader of TypeScript would read through in every
 * process, and their memory goes with the thread.
 */
import { parentPort } from "node:worker_threads";
import asc, { libraryFiles } from "assemblyscript/asc";
import binaryen from "binaryen";

/** Standard libraries: all of it, for the host. */
const whole = { ...libraryFiles };
const classes = (names) => names.map((name) => `export abstract class ${name} {}`).join("\n");
const numbers = "I8 I16 I32 I64 Isize U8 U16 U32 U64 Usize Bool Boolean F32 F64".split(" ");
const parsers = ["strtol", "strtod", "strtob"].map((name) => `export declare function ${name}(): void;`);
/**
 * And for kernels, which call builtins alone; of the rest the compiler asks for the names. Parsing it takes
 * longer than their own text.
 */
const bare = {
  ...Object.fromEntries(
    ["builtins", "memory", "util/memory", "util/error", "vector"].map((name) => [name, whole[name]]),
  ),
  number: `${classes(numbers)}
@builtin @inline export const NaN: f64 = 0 / 0;
@builtin @inline export const Infinity: f64 = 1 / 0;`,
  object: classes(["Object"]),
  string: classes(["String"]),
  arraybuffer: classes(["ArrayBuffer", "ArrayBufferView"]),
  math: "export namespace NativeMath {}\nexport namespace NativeMathf {}",
  "util/string": parsers.join("\n"),
  "rt/index-stub": "",
};
function useLibrary(files) {
  for (const name of Object.keys(libraryFiles)) delete libraryFiles[name];
  Object.assign(libraryFiles, files);
}

/**
 * `sources`: path → text, asconfig.json among them. Throws with the compiler's own diagnostics.
 * @param {import("./asc.ts").Ask} ask
 */
async function assemble({ target, entry, sources, quick, stateless }) {
  let wasm = null;
  const args = [entry, "--outFile", "out.wasm", "--config", "asconfig.json", "--target", target];
  if (quick) args.push("--optimizeLevel", "0");
  useLibrary(stateless ? bare : whole);
  const { error, stderr } = await asc.main(args, {
    readFile: (name) => sources[name.replace(/^\.?\//, "")] ?? null,
    writeFile: (name, contents) => {
      if (name === "out.wasm") wasm = contents;
    },
    listFiles: () => [],
  });
  if (error || !wasm) throw new Error(`assemblyscript: ${stderr.toString() || error?.message}`);
  return finish(entry, wasm, stateless);
}

/**
 * Throws when the module breaks its rules, which generated text never may. Returns its bytes with duplicate
 * functions merged.
 */
function finish(name, bytes, stateless) {
  const module = binaryen.readBinary(bytes);
  try {
    module.setFeatures(binaryen.Features.All);
    if (!module.validate()) throw new Error(`${name}: not a valid module`);
    // asc without its optimiser leaves an empty table, which is a state.
    module.runPasses(["duplicate-function-elimination", "remove-unused-module-elements"]);
    if (stateless) {
      const globals = Array.from({ length: module.getNumGlobals() }, (_, i) =>
        binaryen.getGlobalInfo(module.getGlobalByIndex(i)),
      );
      const has = {
        "a data section": module.getNumDataSegments() > 0,
        "a start function": module.getStart() !== 0,
        "a table": module.getNumTables() > 0,
        "a mutable global": globals.some((g) => g.mutable),
        "a memory of its own": module.hasMemory() && !module.getMemoryInfo().module,
      };
      for (const [what, there] of Object.entries(has)) if (there) throw new Error(`${name} has ${what}`);
    }
    const out = module.emitBinary();
    return out.length < bytes.length ? out : bytes;
  } finally {
    module.dispose();
  }
}

// One at a time: the library is the compiler's own.
let last = Promise.resolve();
parentPort.on("message", ({ id, ask }) => {
  last = last.then(async () => {
    try {
      parentPort.postMessage({ id, wasm: await assemble(ask) });
    } catch (e) {
      parentPort.postMessage({ id, error: e instanceof Error ? e.message : String(e) });
    }
  });
});
