import type * as there from "./folder.ts";
import { elsewhere } from "./node.page.ts";

export const claimFolder: typeof there.claimFolder = elsewhere;
export const writeFolder: typeof there.writeFolder = elsewhere;
export const readFolder: typeof there.readFolder = elsewhere;
