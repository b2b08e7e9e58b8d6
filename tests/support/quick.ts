/**
 * Imported first by programs that tests start: what they compile is optimised little, which takes a quarter
 * of the time and gives the same bits, and is kept apart from what users compile.
 */
import { join } from "node:path";
import { askRunner } from "./assembler.ts";
import { root } from "./program.ts";

askRunner(true);
process.env.WEFT_CACHE = join(root, ".weft/quick");
