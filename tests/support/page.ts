/** What tests run inside a page, beside the SDK. */
import { folderAt } from "../../runtime/folders.ts";
import { handleDrive } from "../../runtime/storage/handle.ts";
import { ownDrive } from "../../runtime/storage/own.ts";
import { killed, type Laid, laws } from "./folders.ts";

let next = 0;
/** Places that a page can write to. */
export const places: Readonly<Record<string, () => Promise<Laid>>> = {
  "storage of the page": async () => {
    const name = `laws-${next++}`;
    return { folder: await folderAt(`storage:${name}`), raw: (await ownDrive(`folders/${name}`))! };
  },
  "directory handle": async () => {
    const root = await navigator.storage.getDirectory();
    const handle = await root.getDirectoryHandle(`picked-${next++}`, { create: true });
    return { folder: await folderAt(handle), raw: handleDrive(handle, "picked") };
  },
};
/** Names of the laws that hold. Throws the first that does not. */
export async function tryLaws(place: string): Promise<string[]> {
  const held: string[] = [];
  const all = { ...laws, "a writer killed at any change leaves one whole version": killed };
  for (const [name, law] of Object.entries(all)) {
    await law(places[place]!).catch((e: Error) => {
      throw new Error(`${place}, ${name}: ${e.stack}`);
    });
    held.push(name);
  }
  return held;
}
