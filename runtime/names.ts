import { WeftError } from "./errors.ts";

/** Names inside a bundle stay inside it. */
export function checkName(name: string): void {
  if (
    name.startsWith("/") ||
    name.includes("\\") ||
    name.split("/").some((p) => p === "" || p === "." || p === "..") ||
    /^[a-z]+:/i.test(name)
  )
    throw new WeftError({
      code: "WEFT_BUNDLE",
      where: `manifest file ${JSON.stringify(name)}`,
      expected: "a path inside the bundle",
      found: "a path that leaves it",
    });
}
