/** uvu's suites with a count of what was registered, so that the runner can tell a test that never ran. */
import { suite as uvu } from "uvu";

interface Count {
  registered: number;
  narrowed: string[];
}
/** Of those tests only whose names match, to try one: `WEFT_TEST=pattern npm test -- file`. */
const wanted = new RegExp(process.env.WEFT_TEST ?? "");
const counts = ((globalThis as { weftTests?: Count }).weftTests ??= { registered: 0, narrowed: [] });

export interface Suite {
  (name: string, body: () => void | Promise<void>): void;
  readonly after: (f: () => void | Promise<void>) => void;
  readonly run: () => void;
}
export function suite(name: string): Suite {
  const inner = uvu(name);
  const test = (title: string, body: () => void | Promise<void>): void => {
    if (!wanted.test(title)) return;
    counts.registered++;
    inner(title, async () => {
      const [t0, before] = [performance.now(), process.cpuUsage()];
      await body();
      const ms = performance.now() - t0;
      const { user, system } = process.cpuUsage(before);
      const cpu = (user + system) / 1e3;
      if (process.env.WEFT_TEST_TIMES)
        console.log(`    ${ms.toFixed(0)} ms, of processors ${cpu.toFixed(0)} ms  ${name}: ${title}`);
    });
  };
  return Object.assign(test, {
    after: (f: () => void | Promise<void>) => inner.after(f),
    run: () => inner.run(),
  });
}
