/** How much memory a load may take where nobody says. In a page memory.page.ts stands in its place. */
import type { Limits } from "./bundle.ts";

/**
 * Of what a target can address, what this machine can be expected to have: in Node all, the system says no.
 */
export const limitsHere = (limits: Limits, _memory: number | undefined): Limits => limits;
