/**
 * A software Vulkan driver for Node on Linux x64, from the @sparticuz/chromium package. Its files are
 * unpacked where nobody else can write, and are what the package holds, byte for byte, before anything is
 * loaded.
 */
import { cacheFolder } from "./cache.ts";
import { WeftError } from "./errors.ts";
import { node } from "./node.ts";

const ICD = "vk_swiftshader_icd.json";
const LIBRARIES = ["libvk_swiftshader.so", "libvulkan.so.1"];

/**
 * Load Vulkan's loader into this process and point it to the driver, until what is returned is called; a
 * driver that the user named (VK_ICD_FILENAMES, VK_DRIVER_FILES) stays theirs. Null where the package or the
 * platform does not have it. Throws WEFT_DEVICE when it is there and cannot be loaded.
 */
export async function loadSoftwareDriver(): Promise<(() => void) | null> {
  const { env } = process;
  const named = Boolean(env.VK_ICD_FILENAMES || env.VK_DRIVER_FILES);
  const folder = await softwareDriver();
  if (!folder) return named ? () => {} : null;
  const { os } = await node();
  try {
    // RTLD_NODELETE (0x1000): the loader must outlive this call. Node then complains that it is no addon; it
    // stays loaded.
    process.dlopen(
      { exports: {} } as NodeJS.Module,
      `${folder}/libvulkan.so.1`,
      os.constants.dlopen.RTLD_NOW | os.constants.dlopen.RTLD_GLOBAL | 0x1000,
    );
  } catch (cause) {
    if (!String(cause).includes("did not self-register"))
      throw new WeftError({
        code: "WEFT_DEVICE",
        where: "software WebGPU driver",
        expected: "a library that loads",
        found: (cause as Error).message,
        cause,
      });
  }
  if (named) return () => {};
  env.VK_ICD_FILENAMES = `${folder}/${ICD}`;
  return () => {
    delete env.VK_ICD_FILENAMES;
  };
}

/**
 * The folder of the unpacked driver: the user's cache, or one of this process's own, removed when it exits.
 */
export async function softwareDriver(): Promise<string | null> {
  if (process.platform !== "linux" || process.arch !== "x64") return null;
  const archive = await findArchive();
  if (!archive) return null;
  const { fs, sync, crypto, os, path } = await node();
  const packed = await fs.readFile(archive);
  const files = await unpack(packed);
  const version = crypto.createHash("sha256").update(packed).digest("hex").slice(0, 16);
  const cache = await cacheFolder(`swiftshader-${version}`);
  if (cache)
    try {
      await fill(cache, files);
      return cache;
    } catch {
      // A full or read-only cache: the driver is unpacked for this process alone.
    }
  const own = await fs.mkdtemp(path.join(os.tmpdir(), "weft-swiftshader-"));
  process.on("exit", () => sync.rmSync(own, { recursive: true, force: true }));
  await fs.chmod(own, 0o700);
  await fill(own, files);
  return own;
}

/** Where the installed package keeps its drivers; null where it is not installed. */
async function findArchive(): Promise<string | null> {
  const { sync, path, module } = await node();
  let root: string;
  try {
    root = path.dirname(module.createRequire(import.meta.url).resolve("@sparticuz/chromium"));
  } catch {
    return null;
  }
  for (; root !== path.dirname(root); root = path.dirname(root)) {
    const archive = path.join(root, "bin", "swiftshader.tar.br");
    if (sync.existsSync(archive)) return archive;
  }
  return null;
}

/** The driver's libraries out of the packed archive, by name. */
async function unpack(packed: Uint8Array): Promise<Map<string, Uint8Array>> {
  const { zlib } = await node();
  const tar = zlib.brotliDecompressSync(packed);
  const field = (at: number, length: number): string =>
    tar
      .subarray(at, at + length)
      .toString("latin1")
      .replace(/\0.*$/, "");
  const out = new Map<string, Uint8Array>();
  for (let at = 0; at + 512 <= tar.length && field(at, 100); ) {
    const size = Number.parseInt(field(at + 124, 12), 8);
    if (LIBRARIES.includes(field(at, 100))) out.set(field(at, 100), tar.subarray(at + 512, at + 512 + size));
    at += 512 + Math.ceil(size / 512) * 512;
  }
  return out;
}

/**
 * Make the folder hold exactly the driver's files: what is there already is compared byte for byte, and what
 * differs is written anew.
 */
async function fill(folder: string, libraries: ReadonlyMap<string, Uint8Array>): Promise<void> {
  const { sync, crypto, path } = await node();
  // The driver's own path in its manifest is relative to the package; here it must be absolute.
  const icd = JSON.stringify({
    file_format_version: "1.0.0",
    ICD: { library_path: path.join(folder, "libvk_swiftshader.so"), api_version: "1.0.5" },
  });
  const holds = (file: string, wanted: Uint8Array): boolean => {
    let opened: number;
    try {
      const { O_RDONLY, O_NOFOLLOW, O_NONBLOCK } = sync.constants;
      opened = sync.openSync(file, O_RDONLY | O_NOFOLLOW | O_NONBLOCK);
    } catch {
      return false;
    }
    try {
      const s = sync.fstatSync(opened);
      const own = s.isFile() && s.uid === process.getuid!() && (s.mode & 0o022) === 0;
      return own && s.size === wanted.length && sync.readFileSync(opened).equals(wanted);
    } finally {
      sync.closeSync(opened);
    }
  };
  for (const [name, wanted] of [...libraries, [ICD, Buffer.from(icd)] as const]) {
    const file = path.join(folder, name);
    if (holds(file, wanted)) continue;
    const aside = `${file}.${crypto.randomUUID()}`;
    try {
      sync.writeFileSync(aside, wanted, { mode: 0o600, flag: "wx" });
      sync.renameSync(aside, file);
    } catch (e) {
      sync.rmSync(aside, { force: true });
      throw e;
    }
  }
}
