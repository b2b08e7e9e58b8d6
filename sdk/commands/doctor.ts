/** weft doctor: what this machine has. */
import { openAdapter } from "../../runtime/dawn.ts";
import { readManifest } from "../../runtime/load.ts";
import { openReader } from "../../runtime/reader.ts";
import { wasmLimits } from "../../runtime/wasm.ts";
import { webGpuLimits } from "../../runtime/webgpu.ts";
import { checkBundle } from "./bundle.ts";
import { type Command, text } from "./command.ts";
import { roomOf } from "./inspect.ts";

export const doctor: Command = {
  summary: "what this machine has, and what a load of a bundle would choose on it",
  synopsis: "[BUNDLE]",
  flags: { for: text("SIZE", "choose as a load of so much memory would, as 512MB") },
  run: async ([bundle], f, json) => {
    const report: Record<string, unknown> = {
      node: process.version,
      platform: `${process.platform} ${process.arch}`,
      simd: WebAssembly.validate(
        new Uint8Array([
          0, 97, 115, 109, 1, 0, 0, 0, 1, 5, 1, 96, 0, 1, 123, 3, 2, 1, 0, 10, 10, 1, 8, 0, 65, 0, 253, 15,
          253, 98, 11,
        ]),
      ),
    };
    const adapter = await openAdapter("hardware").catch(() => null);
    report.webgpu = adapter
      ? {
          name: adapter.info.description || adapter.info.device,
          vendor: adapter.info.vendor,
          storageBinding: adapter.limits.maxStorageBufferBindingSize,
          bufferSize: adapter.limits.maxBufferSize,
          features: [...adapter.features],
        }
      : "no adapter: weft runs on Wasm (device: software needs the webgpu and @sparticuz/chromium packages)";
    if (bundle !== undefined) {
      await checkBundle("doctor", bundle);
      const m = await readManifest(await openReader(bundle));
      const has = {
        wasm: wasmLimits,
        webgpu: adapter && { ...webGpuLimits, chamber: adapter.limits.maxStorageBufferBindingSize },
      };
      for (const target of ["wasm", "webgpu"] as const) {
        const limits = has[target];
        if (!m.targets[target] || !limits) continue;
        const { sizes, bytes } = roomOf(m, target, f, limits);
        report[`a load on ${target}`] = { bytes, ...sizes };
      }
    }
    console.log(
      json
        ? JSON.stringify(report)
        : Object.entries(report)
            .map(([k, v]) => `${k}: ${typeof v === "object" ? JSON.stringify(v) : v}`)
            .join("\n"),
    );
  },
};
