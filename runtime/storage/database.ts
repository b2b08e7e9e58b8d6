/**
 * A page's IndexedDB as a drive, where files cannot be written otherwise: over plain http, and in browsers
 * whose OPFS cannot be written from where the engine is. A file is a value under its path. A transaction is
 * durable when it resolves, where the browser keeps to `durability: "strict"`.
 */
import { byName, type Entry, inTurn, limited, onDrive, type WritableDrive } from "./drive.ts";

const STORE = "files";
const done = <T>(request: IDBRequest<T>): Promise<T> =>
  new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
/** All keys below a path: "0" comes right behind "/". */
const below = (path: string): IDBKeyRange => IDBKeyRange.bound(`${path}/`, `${path}0`, false, true);

let opened: Promise<IDBDatabase> | undefined;
const database = (): Promise<IDBDatabase> =>
  (opened ??= new Promise((resolve, reject) => {
    const request = indexedDB.open("weft", 1);
    request.onupgradeneeded = () => request.result.createObjectStore(STORE);
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => {
      opened = undefined;
      reject(request.error);
    };
  }));

export function databaseDrive(root: string, where: string, room: WritableDrive["room"]): WritableDrive {
  const key = (path: string): string => (path === "" ? root : `${root}/${path}`);
  const at = (path: string): string => `${where}/${path}`;
  const reading = async (): Promise<IDBObjectStore> =>
    (await database()).transaction(STORE, "readonly").objectStore(STORE);
  const writing = async (change: (store: IDBObjectStore) => void): Promise<void> => {
    const transaction = (await database()).transaction(STORE, "readwrite", { durability: "strict" });
    await new Promise<void>((resolve, reject) => {
      transaction.oncomplete = () => resolve();
      transaction.onabort = () => reject(transaction.error);
      change(transaction.objectStore(STORE));
    });
  };
  return {
    where,
    get: (path, limit) =>
      onDrive(at(path), "a readable file", async () => {
        const value: unknown = await done((await reading()).get(key(path)));
        return value === undefined ? null : limited(new Blob([value as ArrayBuffer]), limit, at(path));
      }),
    put: (path, data) =>
      onDrive(at(path), `${data.length} bytes that can be written`, () =>
        writing((store) => void store.put(data.slice().buffer, key(path))),
      ),
    remove: (path) =>
      onDrive(at(path), "a file that can be removed", () =>
        writing((store) => {
          store.delete(key(path));
          store.delete(below(key(path)));
        }),
      ),
    list: (path) =>
      onDrive(at(path), "a readable folder", async () => {
        const start = `${key(path)}/`;
        const keys = (await done((await reading()).getAllKeys(below(key(path))))) as string[];
        const found = new Map<string, Entry>();
        for (const k of keys) {
          const [name, ...more] = k.slice(start.length).split("/");
          found.set(name!, { name: name!, isFolder: more.length > 0 });
        }
        return [...found.values()].sort(byName);
      }),
    alone: (path, work, signal) => inTurn(`weft ${at(path)}`, work, signal),
    room,
  };
}
