/** weft doctor: what this machine has. */
import { showBytes } from "../../runtime/bundle.ts";
import { openAdapter } from "../../runtime/dawn.ts";
import { readManifest } from "../../runtime/load.ts";
import { openReader } from "../../runtime/reader.ts";
import { wasmLimits } from "../../runtime/wasm.ts";
import { webGpuLimits } from "../../runtime/webgpu.ts";
import { checkBundle } from "./bundle.ts";
import { type Command, text } from "./command.ts";
import { described, partsIn, purposes, roomIn, roomOf } from "./inspect.ts";

const NO_ADAPTER =
  "no adapter: weft runs on Wasm (device: software needs the webgpu and @sparticuz/chromium packages)";

export const doctor: Command = {
  summary: "what this machine has, and what a load of a bundle would choose on it",
  synopsis: "[BUNDLE]",
  flags: { for: text("SIZE", "choose as a load of so much memory would, as 512MB") },
  run: async ([bundle], f, json) => {
    const adapter = await openAdapter("hardware").catch(() => null);
    const machine = {
      node: process.version,
      platform: `${process.platform} ${process.arch}`,
      simd: WebAssembly.validate(
        new Uint8Array([
          0, 97, 115, 109, 1, 0, 0, 0, 1, 5, 1, 96, 0, 1, 123, 3, 2, 1, 0, 10, 10, 1, 8, 0, 65, 0, 253, 15,
          253, 98, 11,
        ]),
      ),
      webgpu: adapter && {
        name: adapter.info.description || adapter.info.device,
        vendor: adapter.info.vendor,
        storageBinding: adapter.limits.maxStorageBufferBindingSize,
        bufferSize: adapter.limits.maxBufferSize,
        features: [...adapter.features],
      },
    };
    const { webgpu } = machine;
    const report: Record<string, unknown> = { ...machine, webgpu: webgpu ?? NO_ADAPTER };
    const rows: [string, ...string[]][] = [
      ["Node", `${machine.node} on ${machine.platform}`],
      ["CPU", machine.simd ? "has SIMD: the wasm target runs" : "has no SIMD: the wasm target cannot run"],
      webgpu
        ? [
            "GPU",
            `${webgpu.name} (${webgpu.vendor})`,
            `bindings of ${showBytes(webgpu.storageBinding, Math.floor)}, buffers of ` +
              showBytes(webgpu.bufferSize, Math.floor),
            `features: ${webgpu.features.join(", ") || "none"}`,
          ]
        : ["GPU", NO_ADAPTER],
    ];
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
        const room = roomOf(m, target, f, limits);
        const { sizes, bytes, byPurpose, shards } = room;
        report[`a load on ${target}`] = { bytes, ...sizes, shards };
        rows.push([
          `a load on ${target}`,
          `takes ${showBytes(bytes)}: ${purposes(byPurpose)}`,
          `with room for ${roomIn(sizes, m)}`,
          ...partsIn(room),
        ]);
      }
    }
    console.log(json ? JSON.stringify(report) : described(rows));
  },
};
