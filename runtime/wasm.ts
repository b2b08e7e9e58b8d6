/** The Wasm target: every chamber in one linear memory, kernels called one after another. */
import { type Manifest, WeftError } from "./bundle.ts";
import { chamberWords, type Device, isShared, type MemoryClass, memoryClasses, type Range } from "./device.ts";

type Kernel = (bind: number, meta: number) => void;
const PAGE = 65536;

/** Start a device for the bundle's `wasm` plan. Throws WEFT_CAPACITY when the memory plan passes 4 GiB. */
export async function openWasm(manifest: Manifest, module: BufferSource): Promise<Device> {
  const plan = manifest.targets.wasm;
  if (!plan) throw new WeftError({ code: "WEFT_DEVICE", where: "target", expected: "a bundle compiled for wasm", found: Object.keys(manifest.targets).join(", ") });
  const layers = manifest.model.layers;
  // [bind records, one of eight words a group][shared chambers][chambers of each group]
  let at = Math.ceil(((layers + 1) * 32) / 256) * 256;
  const base = new Map<string, number>();
  const bytes: Record<string, number> = {};
  const place = (cls: MemoryClass, group: number): void => {
    const size = chamberWords(plan, layers, cls, group) * 4;
    base.set(`${cls}.${group}`, at);
    bytes[cls] = (bytes[cls] ?? 0) + size;
    at += Math.ceil(size / 256) * 256;
  };
  for (const cls of memoryClasses) if (isShared(cls)) place(cls, 0);
  for (let g = 0; g <= layers; g++) for (const cls of memoryClasses) if (!isShared(cls)) place(cls, g);
  const pages = Math.ceil(at / PAGE) + 1;
  if (pages > 65536)
    throw new WeftError({ code: "WEFT_CAPACITY", where: "wasm memory", expected: "at most 4 GiB", found: `${at} bytes`, hint: "compile with --format f16 or smaller capacities" });
  let memory: WebAssembly.Memory;
  try {
    memory = new WebAssembly.Memory({ initial: pages, maximum: pages });
  } catch (cause) {
    throw new WeftError({ code: "WEFT_DEVICE", where: "wasm memory", expected: `${pages * PAGE} bytes`, found: (cause as Error).message, cause });
  }
  const { instance } = (await WebAssembly.instantiate(module, { env: { memory } })) as unknown as { instance: WebAssembly.Instance };
  const names = Object.keys(plan.kernels);
  const kernels = names.map((n) => instance.exports[n] as Kernel);
  const missing = names.filter((_, i) => typeof kernels[i] !== "function");
  if (missing.length) throw new WeftError({ code: "WEFT_BUNDLE", where: "kernels.wasm", expected: `exports ${missing.join(", ")}`, found: "none" });
  const words = new Uint32Array(memory.buffer);
  const floats = new Float32Array(memory.buffer);
  const addressOf = (cls: MemoryClass, group: number): number => base.get(`${cls}.${isShared(cls) ? 0 : group}`)!;
  for (let g = 0; g <= layers; g++) for (const [i, cls] of memoryClasses.entries()) words[g * 8 + i] = addressOf(cls, g);
  const metaBase = addressOf("meta", 0);
  const slice = (r: Range): Float32Array => floats.slice(addressOf(r.cls, r.group) / 4 + r.offset, addressOf(r.cls, r.group) / 4 + r.offset + r.words);

  const stats = { launches: 0, encodeMs: 0 };
  return {
    stats,
    info: { target: "wasm", name: "CPU (SIMD WebAssembly, 1 thread)", software: false },
    plan,
    manyRows: 2 ** 30,
    memory: bytes,
    write: (where, data) => {
      words.set(new Uint32Array(data.buffer, data.byteOffset, data.length), addressOf(where.cls, where.group) / 4 + where.offset);
    },
    clear: (r) => {
      words.fill(0, addressOf(r.cls, r.group) / 4 + r.offset, addressOf(r.cls, r.group) / 4 + r.offset + r.words);
    },
    run: async (commands, meta, reads) => {
      stats.launches += commands.length / 6;
      words.set(meta, metaBase / 4);
      for (let i = 0; i < commands.length; i += 6) kernels[commands[i]!]!(commands[i + 1]! * 32, metaBase + commands[i + 2]!);
      return reads.map(slice);
    },
    read: async (r) => slice(r),
    dispose: () => {},
  };
}
