/** Of the bundle format, what it takes to play one. A file that is named here is a part of every page. */
export * from "./contract.ts";
export * from "./dtypes.ts";
export { disposed, type ErrorCode, type ErrorFields, WeftError } from "./errors.ts";
export * from "./formats.ts";
export * from "./kinds.ts";
export * from "./kv.ts";
export * from "./manifest.ts";
export * from "./optimizers/index.ts";
export * from "./products.ts";
export { classPrograms } from "./programs.ts";
export * from "./room.ts";
export { rotaryTables } from "./rotary.ts";
export * from "./shards.ts";
export { transpose } from "./tensors/dense.ts";
export { bytesOf, showBytes } from "./units.ts";
