/** GPU devices that a test wants to know of. */
import { openAdapter } from "../../runtime/dawn.ts";

/** Every GPU device that `body` opens. */
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
  try {
    return await body(devices);
  } finally {
    prototype.requestDevice = requestDevice;
  }
}
