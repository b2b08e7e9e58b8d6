/**
 * The bundle format: the one contract of compiler and runtime. A directory, also served over HTTP as it is.
 */
export * from "./identity.ts";
export { unitHeads, withHead } from "./matrix.ts";
export * from "./played.ts";
export * from "./safetensors.ts";
export * from "./values.ts";
