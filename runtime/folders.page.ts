/** In a page: an address, relative to the page, or a folder of its own storage. */
import { hereof } from "./disk.page.ts";
import { WeftError } from "./errors.ts";
import type * as there from "./folders.ts";
import { addressDrive } from "./storage/address.ts";
import { driveFolder } from "./storage/folder.ts";
import { ownDrive } from "./storage/own.page.ts";
import { driveOf } from "./storage/places.ts";

const OWN = /^storage:\/*/i;

export const folderAt: typeof there.folderAt = async (place, o = {}) => {
  if (typeof place !== "string" && !(place instanceof URL)) return driveFolder(driveOf(place));
  const text = String(place);
  if (OWN.test(text)) {
    const drive = await ownDrive(`folders/${text.replace(OWN, "")}`);
    if (drive) return driveFolder(drive);
    const found = "a page that the browser lets keep nothing";
    throw new WeftError({ code: "WEFT_IO", where: text, expected: "storage of the page", found });
  }
  return driveFolder(addressDrive(hereof(text), o));
};
