/**
 * Threads of Node, and the line between them. In a bundle for pages transport.page.ts stands in its place.
 */
import { node } from "../../runtime/node.ts";
import type { Port, WorkerPort } from "./protocol.ts";

/** What the caller may start itself: a thread that plays this package's worker. */
export type OwnWorker = () => unknown;

export async function startWorker(own: OwnWorker | undefined): Promise<WorkerPort> {
  const { threads } = await node();
  const w = own
    ? (own() as InstanceType<typeof threads.Worker>)
    : new threads.Worker(new URL("./entry.js", import.meta.url));
  const lost = new Promise<string>((resolve) => {
    w.on("error", (e) => resolve(e.message));
    w.on("messageerror", (e) => resolve(e.message));
    w.on("exit", (code) => resolve(`a thread that ended with code ${code}`));
  });
  return {
    post: (message, memory = []) => w.postMessage(message, memory),
    hear: (f) => void w.on("message", f),
    lost,
    thawed: () => {},
    end: async () => void (await w.terminate()),
  };
}
/** In a thread that was started so: the line to who did. */
export async function ownPort(): Promise<Port> {
  const { threads } = await node();
  const port = threads.parentPort!;
  return {
    post: (message, memory = []) => port.postMessage(message, memory),
    hear: (f) => void port.on("message", f),
  };
}
/** What addresses are relative to here: paths of a process are so already. */
export const here = (): string | null => null;
export const setHere = (_: string | null): void => {};
