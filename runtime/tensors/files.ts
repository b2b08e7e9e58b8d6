/** How files have each kind of adapter tensor, one line each. */
import { besideInFiles } from "./beside.ts";
import { denseInFiles } from "./dense.ts";
import { entriesInFiles } from "./entries.ts";
import type { TensorKindName } from "./index.ts";
import { selectionInFiles } from "./selection_files.ts";
import { sharedInFiles } from "./shared.ts";
import type { KindInFiles } from "./tensor.ts";

export const kindsInFiles: Readonly<Record<TensorKindName, KindInFiles>> = {
  dense: denseInFiles,
  beside: besideInFiles,
  shared: sharedInFiles,
  selection: selectionInFiles,
  entries: entriesInFiles,
};
