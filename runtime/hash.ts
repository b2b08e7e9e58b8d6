/** SHA-256 in hexadecimal: of what is there, and of what comes in pieces. */
import { node } from "./node.ts";

export interface Hasher {
  readonly update: (bytes: Uint8Array) => void;
  readonly digest: () => string;
}
export async function sha256(bytes: Uint8Array | string): Promise<string> {
  const hash = await hasher();
  hash.update(typeof bytes === "string" ? new TextEncoder().encode(bytes) : bytes);
  return hash.digest();
}
export async function hasher(): Promise<Hasher> {
  const hash = (await node()).crypto.createHash("sha256");
  return { update: (bytes) => void hash.update(bytes), digest: () => hash.digest("hex") };
}
