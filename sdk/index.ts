/** weft: serve and fine-tune one base model from one process. */

export type { Availability } from "../runtime/availability.ts";
export { type ErrorCode, type Manifest, WeftError } from "../runtime/bundle.ts";
export type { LoadProgress } from "../runtime/device.ts";
export type { TokenEvent } from "../runtime/engine.ts";
export type { Place } from "../runtime/folders.ts";
export { availability } from "../runtime/loading.ts";
export type { DeviceChoice } from "../runtime/open.ts";
export { AdapterHandle } from "./adapter.ts";
export { type CachedBundle, cache } from "./cache.ts";
export * from "./compile.ts";
export * from "./engine.ts";
export { encodeSafetensors } from "./files.ts";
export { Job } from "./job.ts";
export { type StoredFolder, storage } from "./storage.ts";
