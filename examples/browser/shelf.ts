/**
 * What this page keeps of what was learned, beside the bundles that weft keeps: a folder of the page's own
 * file system for each model, with the adapter and the lessons that made it.
 */
import type { DataRow } from "../../sdk/index.ts";
import type { AsyncAdapter } from "../../sdk/worker/index.ts";

export interface Lessons {
  readonly rows: readonly DataRow[];
  /** Generations of all visits. */
  readonly generation: number;
}
const ROOT = "weft-example";

export class Shelf {
  private busy: Promise<void> = Promise.resolve();
  private constructor(
    private readonly root: FileSystemDirectoryHandle,
    private readonly name: string,
  ) {}
  /** Null where a page may not keep files: plain http, some private windows. `base`: of which model. */
  static async open(base: string): Promise<Shelf | null> {
    try {
      const root = await (await navigator.storage.getDirectory()).getDirectoryHandle(ROOT, { create: true });
      return "createWritable" in FileSystemFileHandle.prototype ? new Shelf(root, base.slice(0, 16)) : null;
    } catch {
      return null;
    }
  }
  private async folder(): Promise<FileSystemDirectoryHandle> {
    return this.root.getDirectoryHandle(this.name, { create: true });
  }
  /** A folder that weft reads and writes. */
  async adapter(): Promise<FileSystemDirectoryHandle> {
    return (await this.folder()).getDirectoryHandle("adapter", { create: true });
  }
  async lessons(): Promise<Lessons | null> {
    const file = await (await this.folder()).getFileHandle("lessons.json").then(
      (h) => h.getFile(),
      () => null,
    );
    return file && (JSON.parse(await file.text()) as Lessons);
  }
  /** One after another; the adapter first, so that lessons without one are never found. */
  keep(adapter: AsyncAdapter, lessons: Lessons): Promise<void> {
    return this.turn(async () => {
      await adapter.save(await this.adapter());
      const file = await (await this.folder()).getFileHandle("lessons.json", { create: true });
      const to = await file.createWritable();
      await to.write(JSON.stringify(lessons));
      await to.close();
    });
  }
  forget(): Promise<void> {
    return this.turn(() => this.root.removeEntry(this.name, { recursive: true }).catch(() => {}));
  }
  private turn(work: () => Promise<void>): Promise<void> {
    const done = this.busy.then(work);
    this.busy = done.catch(() => {});
    return done;
  }
}
