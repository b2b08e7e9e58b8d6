/** Dawn in Node: the optional `webgpu` package, and a software Vulkan driver from the @sparticuz/chromium package, loaded into this process. */
import { WeftError } from "./bundle.ts";

type Gpu = Pick<GPU, "requestAdapter">;
let gpu: { readonly kind: "hardware" | "software"; readonly gpu: Gpu } | null = null;

/** navigator.gpu of a browser, or Dawn's in Node; null where there is none. Kept alive for the life of the process: Dawn needs that. */
export async function openGpu(kind: "hardware" | "software"): Promise<Gpu | null> {
  if (typeof navigator !== "undefined" && (navigator as Partial<Navigator>).gpu) return navigator.gpu;
  if (typeof process === "undefined" || !process.versions?.node) return null;
  if (gpu) {
    if (gpu.kind !== kind && kind === "software")
      throw new WeftError({
        code: "WEFT_DEVICE",
        where: "device: software",
        expected: "a process that has not opened hardware WebGPU",
        found: "one that has",
        hint: "use one kind of device a process",
      });
    return gpu.gpu;
  }
  if (kind === "software") {
    const folder = await softwareDriver();
    if (!folder) return null;
    process.env.VK_ICD_FILENAMES = `${folder}/vk_swiftshader_icd.json`;
    const { constants } = await import("node:os");
    try {
      // RTLD_NODELETE (0x1000): the loader must outlive this call. Node then complains that it is no addon; it stays loaded.
      process.dlopen(
        { exports: {} } as NodeJS.Module,
        `${folder}/libvulkan.so.1`,
        constants.dlopen.RTLD_NOW | constants.dlopen.RTLD_GLOBAL | 0x1000,
      );
    } catch (e) {
      if (!String(e).includes("did not self-register")) return null;
    }
  }
  // A name the bundler does not follow: the package is an optional peer.
  const name = "webgpu";
  const dawn = (await import(name).catch(() => null)) as {
    create: (flags: string[]) => Gpu;
    globals: object;
  } | null;
  if (!dawn) return null;
  Object.assign(globalThis, dawn.globals);
  gpu = { kind, gpu: dawn.create([]) };
  return gpu.gpu;
}

/**
 * Wait for the device. Dawn in Node asks whether work has finished on every turn of the event loop, with garbage and a finalizer each time: that takes a
 * core from a software driver, and collections of half a second. So turns are slowed down, by a twentieth of the time waited and at most a millisecond.
 */
export async function settled<T>(work: Promise<T>): Promise<T> {
  if (!gpu) return work;
  const still = new Int32Array(new SharedArrayBuffer(4));
  let pending = true;
  const end = (): void => {
    pending = false;
  };
  work.then(end, end);
  for (const t0 = performance.now(); pending; ) {
    Atomics.wait(still, 0, 0, Math.min(1, (performance.now() - t0) / 20));
    await new Promise((resolve) => setImmediate(resolve));
  }
  return work;
}

/** Unpack the driver once into a cache folder; null where the package or the platform does not have it. */
async function softwareDriver(): Promise<string | null> {
  if (process.platform !== "linux" || process.arch !== "x64") return null;
  const { createRequire } = await import("node:module");
  const { existsSync, mkdirSync, readFileSync, renameSync, writeFileSync } = await import("node:fs");
  const { dirname, join } = await import("node:path");
  const { tmpdir, userInfo } = await import("node:os");
  let archive: string;
  let version: string;
  try {
    const entry = createRequire(import.meta.url).resolve("@sparticuz/chromium");
    let root = dirname(entry);
    while (!existsSync(join(root, "bin", "swiftshader.tar.br"))) {
      if (root === dirname(root)) return null;
      root = dirname(root);
    }
    archive = join(root, "bin", "swiftshader.tar.br");
    version = (JSON.parse(readFileSync(join(root, "package.json"), "utf8")) as { version: string }).version;
  } catch {
    return null;
  }
  const folder = join(tmpdir(), `weft-swiftshader-${version}-${userInfo().uid}`);
  if (existsSync(join(folder, "vk_swiftshader_icd.json"))) return folder;
  const { brotliDecompressSync } = await import("node:zlib");
  const tar = brotliDecompressSync(readFileSync(archive));
  const partial = `${folder}.${process.pid}`;
  mkdirSync(partial, { recursive: true });
  for (let at = 0; at + 512 <= tar.length; ) {
    const name = tar
      .subarray(at, at + 100)
      .toString("latin1")
      .replace(/\0.*$/, "");
    if (!name) break;
    const size = Number.parseInt(tar.subarray(at + 124, at + 136).toString("latin1"), 8);
    if (["libvk_swiftshader.so", "libvulkan.so.1"].includes(name))
      writeFileSync(join(partial, name), tar.subarray(at + 512, at + 512 + size));
    at += 512 + Math.ceil(size / 512) * 512;
  }
  // The driver's own path in its manifest is relative to the package; here it must be absolute.
  writeFileSync(
    join(partial, "vk_swiftshader_icd.json"),
    JSON.stringify({
      file_format_version: "1.0.0",
      ICD: { library_path: join(folder, "libvk_swiftshader.so"), api_version: "1.0.5" },
    }),
  );
  try {
    renameSync(partial, folder);
  } catch {
    if (!existsSync(join(folder, "vk_swiftshader_icd.json"))) return null;
  }
  return folder;
}
