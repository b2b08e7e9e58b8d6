import type { Manifest } from "./bundle.ts";
import type { Device } from "./device.ts";
export async function openWebGpu(_m: Manifest, _file: (name: string) => Promise<Uint8Array>, _kind: "hardware" | "software"): Promise<Device | null> {
  return null;
}
