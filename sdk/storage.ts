/** What a page keeps under `storage:NAME`: adapters, models and checkpoints that were written there. */
import type { StoredFolder } from "../runtime/storage/stored.ts";

export type { StoredFolder };

const stored = () => import("../runtime/storage/stored.ts");
export const storage = {
  /**
   * Each folder: its name, what it is, how much it takes. In Node, where a folder is a path, there are none.
   */
  list: async (): Promise<StoredFolder[]> => (await stored()).listStored(),
  /** Remove a folder, by its name in `list`; false where there is none of that name. */
  delete: async (name: string): Promise<boolean> => (await stored()).deleteStored(name),
};
