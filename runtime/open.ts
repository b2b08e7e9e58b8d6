/**
 * Which device plays a bundle: WebGPU on a hardware adapter, else Wasm; a software adapter only when asked
 * for by name.
 */
import { type Manifest, WeftError } from "./bundle.ts";
import { mayHaveGpu } from "./dawn.ts";
import type { Device } from "./device.ts";
import type { WasmOptions } from "./wasm.ts";

export type DeviceChoice = "auto" | "wasm" | "webgpu" | "software";
export const deviceChoices: readonly DeviceChoice[] = ["auto", "wasm", "webgpu", "software"];

export async function openDevice(
  choice: DeviceChoice,
  manifest: Manifest,
  file: (name: string) => Promise<Uint8Array>,
  options: WasmOptions = {},
): Promise<Device> {
  if (!deviceChoices.includes(choice))
    throw new WeftError({
      code: "WEFT_OPTION",
      where: "device",
      expected: deviceChoices.join(", "),
      found: String(choice),
    });
  // Each target is loaded only where it is used.
  const wasm = async (): Promise<Device> => {
    const { hasRelaxed, openWasm } = await import("./wasm.ts");
    const name = "kernels.relaxed.wasm";
    const can = name in manifest.files && hasRelaxed();
    const relaxed = options.relaxed ?? can;
    if (relaxed && !can)
      throw new WeftError({
        code: "WEFT_DEVICE",
        where: "relaxed",
        expected: name in manifest.files ? "an engine with relaxed SIMD" : `a bundle with ${name}`,
        found: name in manifest.files ? "one without" : "none",
        hint:
          name in manifest.files
            ? "Node 20 has it behind --experimental-wasm-relaxed-simd"
            : "compile with --relaxed",
      });
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
  if (!device) throw noDevice(choice);
  return device;
}
/** What was asked for by name is not here. */
export const noDevice = (choice: "webgpu" | "software"): WeftError =>
  new WeftError({
    code: "WEFT_DEVICE",
    where: `device: ${choice}`,
    expected: choice === "webgpu" ? "a WebGPU adapter on hardware" : "a software WebGPU adapter",
    found: "none",
    hint:
      choice === "webgpu"
        ? 'use device "wasm", or "software"'
        : "install the webgpu and @sparticuz/chromium packages",
  });
