/** Lists of an engine that are held while they run, and what they touch meanwhile. */
import type { Engine } from "../../sdk/index.ts";
import { generator } from "./random.ts";

export const pause = (ms: number): Promise<void> => new Promise((f) => setTimeout(f, ms));

/**
 * Holds every list for a while before it is played, and sees that nothing it touches is another's: blocks of
 * the lists under way, slots that are filled.
 */
export function watch(engine: Engine): { readonly wrong: string[]; lists: number } {
  const { device, manifest } = engine.core;
  const { plan } = device;
  const { step, unit } = plan.blocks;
  const { host } = engine.core;
  const slotOf = (word: number): number => {
    const page = Math.floor(word / plan.slots.page);
    return Array.from({ length: engine.manifest.capacities.slots + 1 }, (_, s) => s).findIndex((s) =>
      host.pages(s).includes(page),
    );
  };
  const next = generator("held");
  const held: { lane: number; blocks: Set<number>; slots: Set<number> }[] = [];
  const seen = { wrong: [] as string[], lists: 0 };
  const [run, write] = [device.run.bind(device), device.write.bind(device)];
  const units = step.words + manifest.capacities.units * unit.words;
  (device as { run: typeof run }).run = async (lane, commands, meta, reads) => {
    const list = { lane, blocks: new Set<number>(), slots: new Set<number>() };
    for (const at of new Set(commands.filter((_, i) => i % 6 === 2).map((offset) => offset / 4))) {
      if (at >= units) {
        list.slots.add(meta[at + plan.header.indexOf("slot")]!);
        continue;
      }
      const { arrays } = at === 0 ? step : unit;
      for (let r = 0; r < meta[at + plan.header.indexOf("n_rows")]!; r++) {
        list.slots.add(meta[at + arrays.slot! + r]!);
        for (let b = 0; b <= meta[at + arrays.pos! + r]! >> 5; b++)
          list.blocks.add(meta[at + meta[at + arrays.table! + r]! + b]!);
      }
    }
    const free = new Set(engine.core.host.freeBlockIds());
    for (const other of held)
      for (const b of list.blocks) if (other.blocks.has(b)) seen.wrong.push(`block ${b} in two lists`);
    for (const b of list.blocks) if (free.has(b)) seen.wrong.push(`block ${b} is free`);
    held.push(list);
    seen.lists++;
    await pause(next() % 4);
    return run(lane, commands, meta, reads).finally(() => {
      held.splice(held.indexOf(list), 1);
    });
  };
  (device as { write: typeof write }).write = (to, data) => {
    if (to.space === "adapters")
      for (const { slots } of held)
        if (slots.has(slotOf(to.offset))) seen.wrong.push(`slot ${slotOf(to.offset)} filled under a list`);
    write(to, data);
  };
  return seen;
}
