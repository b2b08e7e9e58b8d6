/** What a page hands to its user: a zip of files as they are, since numbers hardly shrink. */
import { Zip, ZipPassThrough } from "fflate";
import type * as there from "./download.ts";

export async function zip(files: ReadonlyMap<string, Blob>): Promise<Blob> {
  const pieces: BlobPart[] = [];
  const archive = new Zip((error, data) => {
    if (error) throw error;
    pieces.push(data as BlobPart);
  });
  for (const [name, blob] of files) {
    const file = new ZipPassThrough(name);
    archive.add(file);
    file.push(new Uint8Array(await blob.arrayBuffer()), true);
  }
  archive.end();
  return new Blob(pieces, { type: "application/zip" });
}
export const download: typeof there.download = async (name, files) => {
  if (typeof document === "undefined")
    throw (await import("./nobody.ts")).nobodyTo("a worker", "send toBlobs() to the page");
  const link = document.createElement("a");
  link.href = URL.createObjectURL(await zip(files));
  link.download = `${name}.zip`;
  link.click();
  // The browser reads it by itself from here on; a while later it has.
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
};
