/**
 * What is done to a module that asc made: checked against what its place allows, and stripped of functions
 * that are there twice.
 */
import binaryen from "binaryen";

/** What binaryen's declarations leave out. */
type Module = ReturnType<typeof binaryen.readBinary> & { getNumDataSegments(): number };

/**
 * A module that any number of threads instantiate on one memory: no data section that would be written again,
 * no start function, no table, no mutable global, no memory of its own.
 */
export interface ModuleRules {
  readonly stateless: boolean;
}

/**
 * Throws when the module breaks its rules, which generated text never may. Returns its bytes with duplicate
 * functions merged.
 */
export function finishModule(name: string, bytes: Uint8Array, rules: ModuleRules): Uint8Array {
  const module = binaryen.readBinary(bytes) as Module;
  try {
    module.setFeatures(binaryen.Features.All);
    if (!module.validate()) throw new Error(`${name}: not a valid module`);
    if (rules.stateless) {
      const has: Readonly<Record<string, boolean>> = {
        "a data section": module.getNumDataSegments() > 0,
        "a start function": module.getStart() !== 0,
        "a table": module.getNumTables() > 0,
        "a mutable global": Array.from({ length: module.getNumGlobals() }, (_, i) =>
          binaryen.getGlobalInfo(module.getGlobalByIndex(i)),
        ).some((g) => g.mutable),
        "a memory of its own": module.hasMemory() && !module.getMemoryInfo().module,
      };
      for (const [what, there] of Object.entries(has)) if (there) throw new Error(`${name} has ${what}`);
    }
    module.runPasses(["duplicate-function-elimination"]);
    const out = module.emitBinary();
    return out.length < bytes.length ? out : bytes;
  } finally {
    module.dispose();
  }
}
