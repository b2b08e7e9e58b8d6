import type { Generation } from "../runtime/adapters.ts";
import type { AdapterConfig } from "../runtime/content.ts";
import type { Folder, Place } from "../runtime/folders.ts";
import { checked } from "../runtime/options.ts";
import type { Engine } from "./engine.ts";
import { isGguf } from "./files.ts";
import { CompressOptions, SaveOptions } from "./options.ts";

/** A folder that takes an adapter, asked before work starts. */
async function claimed(place: Place): Promise<Folder> {
  const { folderAt } = await import("../runtime/folders.ts");
  const folder = await folderAt(place);
  await folder.claim("adapter");
  return folder;
}
/** One adapter by name: its latest generation unless pinned. */
export class AdapterHandle {
  /** Bundlers rename classes; who looks at one in a console shall not see it. */
  static readonly name = "AdapterHandle";
  constructor(
    private readonly engine: Engine,
    readonly ref: string,
  ) {}
  private get found(): Generation {
    return this.engine.core.adapters.find(this.ref);
  }
  /**
   * Write a folder that Hugging Face peft loads; `as: "lora"` turns an S2FT adapter into the LoRA that is
   * exactly the same, `as: "target_parameters"` has experts as transformers 5 does. A path that ends in .gguf
   * becomes a LoRA that llama.cpp loads, of whatever is exactly one. Durable when it resolves, on a disk.
   * Throws WEFT_IO, before anything is written, when `place` is anything but free, an empty folder or an
   * adapter that weft wrote; WEFT_ADAPTER for what is no LoRA.
   */
  async save(place: Place, o: SaveOptions = {}): Promise<void> {
    checked(SaveOptions, o);
    if (isGguf(place)) {
      const { saveAdapterAsGguf } = await import("./gguf.ts");
      return saveAdapterAsGguf(place, this.engine, this.ref);
    }
    const folder = await claimed(place);
    await folder.write("adapter", await this.files(o));
  }
  /** The files of that folder, by name. */
  async toBlobs(o: SaveOptions = {}): Promise<Map<string, Blob>> {
    checked(SaveOptions, o);
    return new Map((await this.files(o)).map(([name, data]) => [name, new Blob([data as BlobPart])]));
  }
  /** In a page: let the user save that folder as NAME.zip. */
  async download(o: SaveOptions = {}): Promise<void> {
    const { download } = await import("./download.ts");
    await download(this.ref.replace("@", "-"), await this.toBlobs(o));
  }
  private async files(o: SaveOptions): Promise<[string, Uint8Array | string][]> {
    const { filesOf } = await import("./peft/index.ts");
    const { content, base } = this.found;
    return filesOf(content, { ...this.engine.manifest, base }, o.as);
  }
  /**
   * Write the adapter as signs of its largest numbers with one common magnitude (ComPEFT): a fraction of the
   * bytes, and not quite the same adapter. Tells how many times smaller the file is, and the relative error
   * of its numbers. Throws as `save`.
   */
  async compress(
    place: Place,
    o: CompressOptions = {},
  ): Promise<{ bytes: number; ratio: number; error: number }> {
    checked(CompressOptions, o);
    const folder = await claimed(place);
    const { compressed } = await import("./peft/index.ts");
    const { content, base } = this.found;
    const { files, ...said } = compressed(content, { ...this.engine.manifest, base }, o.density);
    await folder.write("adapter", files);
    return said;
  }
  get generation(): number {
    return this.found.number;
  }
  /** Identity of the base weights that it was trained on; requests, jobs and merges of another refuse it. */
  get base(): string {
    return this.found.base;
  }
  /** What to know before using it: that it was trained on the same weights in another format. */
  get warnings(): readonly string[] {
    return this.found.warnings;
  }
  get config(): AdapterConfig {
    return this.found.shape.config;
  }
}
