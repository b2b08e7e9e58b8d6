/**
 * Imported first by programs that tests start: what they compile is optimised little, which takes a quarter
 * of the time and gives the same bits, and is kept apart from what users compile.
 */
import { join } from "node:path";
import { Assembler, assembleBy } from "../../compiler/emit/asc.ts";
import { root } from "./program.ts";

const assembler = new Assembler();
assembleBy((ask) => assembler.compile({ ...ask, quick: true }));
process.env.WEFT_CACHE = join(root, ".weft/quick");
