import { elsewhere } from "./node.page.ts";
import type * as there from "./versions.ts";

export const claimVersions: typeof there.claimVersions = elsewhere;
export const writeVersion: typeof there.writeVersion = elsewhere;
export const readVersion: typeof there.readVersion = elsewhere;
