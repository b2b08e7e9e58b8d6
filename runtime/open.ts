/**
 * Which device plays a bundle: WebGPU on a hardware adapter, else Wasm; a software adapter only when asked
 * for by name.
 */
import type { Manifest } from "./bundle.ts";
import { mayHaveGpu } from "./dawn.ts";
import type { Device } from "./device.ts";
import type { WasmOptions } from "./wasm.ts";

export type DeviceChoice = "auto" | "wasm" | "webgpu" | "software";
export const deviceChoices: readonly DeviceChoice[] = ["auto", "wasm", "webgpu", "software"];

export async function openDevice(
  choice: DeviceChoice,
  manifest: Manifest,
  file: (name: string) => Promise<Uint8Array>,
  options: WasmOptions & { readonly timestamps?: boolean | undefined } = {},
): Promise<Device> {
  // Each target is loaded only where it is used.
  const wasm = async (): Promise<Device> => {
    if (options.timestamps) throw (await import("./refused.ts")).untimed("wasm");
    const { hasRelaxed, openWasm } = await import("./wasm.ts");
    const name = "kernels.relaxed.wasm";
    const can = name in manifest.files && hasRelaxed();
    const relaxed = options.relaxed ?? can;
    if (relaxed && !can) throw (await import("./refused.ts")).notRelaxed(name in manifest.files);
    return openWasm(manifest, await file(relaxed ? name : "kernels.wasm"), { ...options, relaxed });
  };
  const webgpu = async (kind: "hardware" | "software"): Promise<Device | null> =>
    (await import("./webgpu.ts")).openWebGpu(manifest, file, kind, options);
  if (choice === "wasm") return wasm();
  if (choice === "auto") {
    const look = manifest.targets.webgpu && (await mayHaveGpu());
    const device = look ? await webgpu("hardware") : null;
    return device ?? wasm();
  }
  const device = await webgpu(choice === "webgpu" ? "hardware" : "software");
  if (!device) throw (await import("./refused.ts")).noDevice(choice);
  return device;
}
