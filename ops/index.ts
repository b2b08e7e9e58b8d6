/** The language: every op file, one line each. */
export * from "./attention.ts";
export * from "./elementwise.ts";
export * from "./experts.ts";
export * from "./expr.ts";
export * from "./graph.ts";
export * from "./heads.ts";
export * from "./interpret.ts";
export * from "./linear.ts";
export * from "./loss.ts";
export * from "./reduce.ts";
export * from "./rope.ts";
export * from "./rows.ts";
export * from "./segmented.ts";
export * from "./sparse.ts";
