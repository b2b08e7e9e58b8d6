/**
 * The runtime alone: ids in, ids out, for who brings their own text. No tokenizer, no templates, no adapter
 * folders.
 */
export type { Availability } from "./availability.ts";
export { type ErrorCode, type Manifest, WeftError } from "./bundle.ts";
export type { DeviceInfo, LoadProgress } from "./device.ts";
export { Engine, type Finish, type GenerateIds, type Score, type TokenEvent } from "./engine.ts";
export { availability, LoadOptions, openEngine, readEntries, remoteEntries } from "./loading.ts";
export type { DeviceChoice } from "./open.ts";
export type { BundleReader, Place } from "./reader.ts";
export { Job, type Row, startJob, type TrainEvent, type TrainOptions, type TrainResult } from "./trainer.ts";
