/** Programs of a bundle by name: what compiler, host and runtime call them. */
import type { ProgramEntry } from "./manifest.ts";

/** What serving plays; a bundle has some. */
const serving = ["embed", "forward", "head", "row_norms"];
/** Of a class that is trained, and its steps by an optimizer. */
export const classPrograms = {
  head: (cls: string) => (cls === "full" ? "head_train.full" : "head_train"),
  copy: (cls: string) => `copy.${cls}`,
  rerun: (cls: string) => `rerun.${cls}`,
  backward: (cls: string) => `backward.${cls}`,
  embedding: (cls: string) => `embed_backward.${cls}`,
  squares: (cls: string) => `sumsq.${cls}.layer`,
  outerSquares: (cls: string) => `sumsq.${cls}.outer`,
  update: (cls: string, optimizer: string) => `${optimizer}.${cls}.layer`,
  outerUpdate: (cls: string, optimizer: string) => `${optimizer}.${cls}.outer`,
} as const;

type Named = readonly ProgramEntry[] | undefined;
const named = (programs: Named, names: readonly string[]): ProgramEntry[] =>
  (programs ?? []).filter((p) => names.includes(p.name));
export const servingPrograms = (programs: Named): ProgramEntry[] => named(programs, serving);
/** What a job of a class plays beside what serving does. */
export const trainingPrograms = (programs: Named, cls: string, optimizer: string): ProgramEntry[] =>
  named(programs, ["stash", "clip", ...Object.values(classPrograms).map((name) => name(cls, optimizer))]);
