/** Workers of a page. */
import { setHere as stand } from "../../runtime/disk.page.ts";
import type { Port } from "./protocol.ts";
import type * as there from "./transport.ts";

export const startWorker: typeof there.startWorker = async (own) => {
  // As bundlers know it: they find the script, and give it a place of its own.
  const w = own
    ? (own() as Worker)
    : new Worker(new URL("./worker-entry.js", import.meta.url), { type: "module", name: "weft" });
  const lost = new Promise<string>((resolve) => {
    w.onerror = (e) => resolve(e.message || "a worker whose script does not load");
    w.onmessageerror = () => resolve("a message that cannot be read");
  });
  return {
    post: (message, memory = []) => w.postMessage(message, memory),
    hear: (f) => {
      w.onmessage = (e: MessageEvent<unknown>) => f(e.data);
    },
    lost,
    thawed: (f) => {
      // https://wicg.github.io/page-lifecycle/, and pages that come back out of a cache.
      document.addEventListener("resume", f);
      addEventListener("pageshow", (e) => e.persisted && f());
    },
    end: async () => w.terminate(),
  };
};
export const ownPort: typeof there.ownPort = async (): Promise<Port> => {
  const scope = self as unknown as Worker;
  return {
    post: (message, memory = []) => scope.postMessage(message, memory),
    hear: (f) => {
      scope.onmessage = (e: MessageEvent<unknown>) => f(e.data);
    },
  };
};
export const here: typeof there.here = () =>
  typeof document === "undefined" ? location.href : document.baseURI;
export const setHere: typeof there.setHere = (address) => stand(address);
