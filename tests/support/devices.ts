/** GPU devices that a test wants to know of. */
import { openAdapter } from "../../runtime/dawn.ts";

let sharing = false;
let patched = false;
/**
 * From here on the engines of this process have one GPU device, on which a kernel is compiled once for all:
 * what SwiftShader makes of some takes a second. A device that an engine lets go loses its buffers.
 */
export async function shareDevice(): Promise<void> {
  sharing = true;
  if (patched) return;
  const adapter = await openAdapter("software");
  if (!adapter) return;
  patched = true;
  const prototype = Object.getPrototypeOf(adapter) as GPUAdapter;
  const { requestDevice } = prototype;
  let one: Promise<GPUDevice> | undefined;
  prototype.requestDevice = async function (this: GPUAdapter, d?: GPUDeviceDescriptor) {
    if (!sharing) return requestDevice.call(this, d);
    // With what some engines ask for and others do not.
    const requiredFeatures = (["subgroups"] as const).filter((f) => this.features.has(f));
    one ??= requestDevice.call(this, { ...d, requiredFeatures }).then((device) => {
      process.on("exit", () => device.destroy());
      return device;
    });
    const device = await one;
    return [...(d?.requiredFeatures ?? [])].every((f) => device.features.has(f))
      ? share(device)
      : requestDevice.call(this, d);
  };
}
/** To the end of this file every engine has a device of its own: for tests of what compiles, and of loss. */
export function ownDevices(): void {
  sharing = false;
}
/** Every GPU device that `body` opens, each of an engine's own. */
export async function devicesOf<T>(body: (devices: GPUDevice[]) => Promise<T>): Promise<T> {
  const adapter = (await openAdapter("software"))!;
  const prototype = Object.getPrototypeOf(adapter) as GPUAdapter;
  const { requestDevice } = prototype;
  const devices: GPUDevice[] = [];
  prototype.requestDevice = async function (this: GPUAdapter, d?: GPUDeviceDescriptor) {
    const device = await requestDevice.call(this, d);
    devices.push(device);
    return device;
  };
  const before = sharing;
  sharing = false;
  try {
    return await body(devices);
  } finally {
    prototype.requestDevice = requestDevice;
    sharing = before;
  }
}
type Made = GPUBindGroupLayout | GPUPipelineLayout | GPUShaderModule | Promise<GPUComputePipeline>;
/** What was made of the same before; objects in a descriptor are the same when they are one. */
const made = new Map<string, Made>();
const numbers = new Map<object, number>();
function once<T extends Made>(kind: string, descriptor: object, make: () => T): T {
  const key = `${kind} ${JSON.stringify(descriptor, (name, x: unknown) =>
    name !== "label" && numbers.has(x as object) ? numbers.get(x as object) : name === "label" ? null : x,
  )}`;
  let it = made.get(key) as T | undefined;
  if (!it) {
    it = make();
    made.set(key, it);
    numbers.set(it, numbers.size);
    // What is refused is refused anew, and told.
    if (it instanceof Promise) it.catch(() => made.clear());
  }
  return it;
}
function share(device: GPUDevice): GPUDevice {
  const buffers: GPUBuffer[] = [];
  let lose: (info: GPUDeviceLostInfo) => void;
  const lost = new Promise<GPUDeviceLostInfo>((resolve) => {
    lose = resolve;
  });
  const own: Partial<GPUDevice> = {
    lost,
    createBuffer: (d) => {
      const buffer = device.createBuffer(d);
      buffers.push(buffer);
      return buffer;
    },
    createBindGroupLayout: (d) => once("layout", d, () => device.createBindGroupLayout(d)),
    createPipelineLayout: (d) => once("layouts", d, () => device.createPipelineLayout(d)),
    createShaderModule: (d) => once("module", d, () => device.createShaderModule(d)),
    createComputePipelineAsync: (d) => once("pipeline", d, () => device.createComputePipelineAsync(d)),
    destroy: () => {
      for (const buffer of buffers) buffer.destroy();
      lose({ reason: "destroyed", message: "" } as GPUDeviceLostInfo);
      return undefined;
    },
  };
  return new Proxy(device, {
    get: (it, name) => {
      if (name in own) return own[name as keyof GPUDevice];
      const value: unknown = Reflect.get(it, name, it);
      return typeof value === "function" ? (value.bind(it) as unknown) : value;
    },
  });
}
