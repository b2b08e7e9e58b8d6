/**
 * In a page: WebCrypto, which is fast and takes whole texts only; pieces, and pages over plain http, which
 * have no WebCrypto, are hashed in JavaScript.
 */
import type * as there from "./hash.ts";

const asBytes = (bytes: Uint8Array | string): Uint8Array =>
  typeof bytes === "string" ? new TextEncoder().encode(bytes) : bytes;
const hex = (digest: Uint8Array): string => [...digest].map((b) => b.toString(16).padStart(2, "0")).join("");

export const sha256: typeof there.sha256 = async (bytes) => {
  const { subtle } = crypto as Partial<Crypto>;
  if (subtle) return hex(new Uint8Array(await subtle.digest("SHA-256", asBytes(bytes) as BufferSource)));
  const hash = await hasher();
  hash.update(asBytes(bytes));
  return hash.digest();
};
export const hasher: typeof there.hasher = async () => {
  const hash = (await import("./hashing.page.ts")).startSha256();
  return { update: (bytes) => void hash.update(bytes), digest: () => hex(hash.digest()) };
};
