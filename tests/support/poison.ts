/** NaN in every cache block with nothing in it: whoever reads what is stale, or not there yet, answers so. */
import type { Engine } from "../../runtime/engine.ts";

/** From now on, before what comes in has rows. Returns how many blocks were poisoned so far. */
export function poison({ host, device, manifest }: Engine): () => { free: number; evicted: number } {
  const { layers } = manifest.model;
  // Of such a word the whole is NaN, and each half.
  const nan = new Uint32Array(device.plan.room.block).fill(0xffffffff);
  const counts = { free: 0, evicted: 0 };
  const fill = (blocks: Iterable<number>, lane: number, what: keyof typeof counts): void => {
    for (const id of blocks) {
      for (let group = 0; group < layers; group++)
        device.write({ space: "kv", group, offset: id * nan.length, lane }, nan);
      counts[what]++;
    }
  };
  const { exports } = host;
  const decide = (lane: number): number => {
    fill(host.freeBlockIds(), lane, "free");
    const holders = host.holders();
    const idle = [...holders.keys()].filter((b) => !holders[b] && exports.isPrefix(b));
    const decided = exports.decide(lane);
    fill(
      idle.filter((b) => !exports.isPrefix(b)),
      lane,
      "evicted",
    );
    return decided;
  };
  Object.assign(host, { exports: { ...exports, decide } });
  return () => counts;
}
