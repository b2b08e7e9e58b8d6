/**
 * In a process of its own, whose stderr is RADV's: say what the chip is, and compile each text that comes in,
 * with a mark before and after. Texts, features, the shim and Dawn are named by `radv.ts`.
 */
import { readFileSync, writeSync } from "node:fs";
import { constants } from "node:os";

const { texts, features } = JSON.parse(readFileSync(0, "utf8"));
const say = (x) => writeSync(2, `\n@@@weft ${JSON.stringify(x)}\n`);
try {
  const flags = constants.dlopen.RTLD_NOW | constants.dlopen.RTLD_GLOBAL | 0x1000;
  process.dlopen({ exports: {} }, process.env.WEFT_ISA_SHIM, flags);
} catch (e) {
  // It is no addon; being loaded is all that is asked of it.
  if (!String(e).includes("self-register")) throw e;
}
const { create, globals } = await import("webgpu");
Object.assign(globalThis, globals);
// Held for as long as the process lives: Dawn ends with it.
globalThis.dawn = create(["backend=vulkan", "enable-dawn-features=allow_unsafe_apis"]);
const adapter = await globalThis.dawn.requestAdapter();
if (!adapter) {
  say({ none: true });
  process.exit(1);
}
const { subgroupMinSize, subgroupMaxSize, subgroupMatrixConfigs } = adapter.info;
const configs = [...(subgroupMatrixConfigs ?? [])].map(({ componentType, resultComponentType, M, N, K }) => ({
  ...{ componentType, resultComponentType, M, N, K },
}));
const info = { subgroupMinSize, subgroupMaxSize, subgroupMatrixConfigs: configs };
say({ features: [...adapter.features], info });
const device = await adapter.requestDevice({ requiredFeatures: features });
for (const [i, text] of texts.entries()) {
  // The comment at the end makes each text one of its own: nothing comes from Dawn's cache.
  const code = `${text}\n// ${i}`;
  say({ start: i });
  const t0 = performance.now();
  device.pushErrorScope("validation");
  const module = device.createShaderModule({ code });
  try {
    await device.createComputePipelineAsync({ layout: "auto", compute: { module } });
    say({ end: i, ms: performance.now() - t0 });
  } catch (e) {
    const { messages } = await module.getCompilationInfo();
    const found = messages.map((m) => `line ${m.lineNum}: ${m.message}`).join("; ");
    say({ end: i, error: found || e.message });
  }
  await device.popErrorScope();
}
process.exit(0);
