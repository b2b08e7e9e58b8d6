/** SHA-256 of what comes in pieces, in JavaScript: a chunk that is fetched where it is needed. */
import { sha256 } from "@noble/hashes/sha2.js";

export const startSha256 = (): { update: (bytes: Uint8Array) => unknown; digest: () => Uint8Array } =>
  sha256.create();
