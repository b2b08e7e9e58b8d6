/**
 * The bundle format: the one contract of compiler and runtime. A directory, also served over HTTP as it is.
 */
export * from "./contract.ts";
export * from "./dtypes.ts";
export { type ErrorCode, type ErrorFields, WeftError } from "./errors.ts";
export * from "./formats.ts";
export * from "./identity.ts";
export * from "./kv.ts";
export * from "./manifest.ts";
export * from "./optimizers/index.ts";
export { classPrograms } from "./programs.ts";
export * from "./room.ts";
export { rotaryTables } from "./rotary.ts";
export * from "./safetensors.ts";
export { transpose } from "./tensors/dense.ts";
