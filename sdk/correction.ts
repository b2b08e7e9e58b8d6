/** What gives back a bundle's rounding (`weft compile --correct`), as the adapter of that name. */
import { CORRECTION } from "../runtime/bundle.ts";
import { readVerified } from "../runtime/load.ts";
import type { Engine } from "./engine.ts";
import { readAdapterFolder } from "./peft/index.ts";

export async function takeCorrection({ core, reader, manifest }: Engine): Promise<void> {
  const read = async (name: string) =>
    [name, await readVerified(reader, manifest, `${CORRECTION}/${name}`)] as const;
  const names = ["adapter_config.json", "adapter_model.safetensors"];
  const { content } = await readAdapterFolder(
    { where: `${reader.where}/${CORRECTION}`, read: async () => new Map(await Promise.all(names.map(read))) },
    manifest,
  );
  core.adapters.publish(CORRECTION, content);
}
