/**
 * In a page: a tab that takes too much is ended without a word, on phones at a fraction of what the device
 * has. `navigator.deviceMemory` tells 0.25 to 8 GiB, coarsely (W3C Device Memory): half of it is taken to be
 * a page's, and 8 to mean "8 or more", which sets no bound. Where a browser does not tell, phones and tablets
 * are taken to give a page 1 GiB.
 */
import type * as there from "./memory.ts";

const GiB = 2 ** 30;
function expected(): number {
  const { deviceMemory, userAgent, maxTouchPoints } = navigator as Navigator & { deviceMemory?: number };
  if (deviceMemory) return deviceMemory < 8 ? (deviceMemory / 2) * GiB : Number.POSITIVE_INFINITY;
  // iPads say that they are Macs.
  const mobile = /Mobi|Android|iPhone|iPad/.test(userAgent) || (/Mac/.test(userAgent) && maxTouchPoints > 1);
  return mobile ? GiB : Number.POSITIVE_INFINITY;
}
export const limitsHere: typeof there.limitsHere = (limits, memory) => {
  const most = expected();
  if (memory !== undefined || most >= limits.memory) return limits;
  const hint = "what a page has on this device is a guess: load({ memory }) says better; or compile smaller";
  return { ...limits, memory: most, hint };
};
