/** Errors and numbers as messages carry them between threads. */
import { type ErrorFields, WeftError } from "../../runtime/errors.ts";

/** What was thrown: an error of ours with its fields, of others with its name, or a value. */
export type Thrown =
  | {
      readonly kind: "weft";
      readonly fields: Omit<ErrorFields, "cause">;
      readonly stack: string;
      readonly cause?: Thrown;
    }
  | { readonly kind: "dom"; readonly name: string; readonly message: string }
  | {
      readonly kind: "error";
      readonly name: string;
      readonly message: string;
      readonly stack: string;
      readonly cause?: Thrown;
    }
  | { readonly kind: "value"; readonly value: unknown };

export function toWire(e: unknown): Thrown {
  if (e instanceof WeftError) {
    const { cause, ...fields } = e.cause;
    const because = cause === undefined ? {} : { cause: toWire(cause) };
    return { kind: "weft", fields, stack: e.stack ?? "", ...because };
  }
  if (typeof DOMException === "function" && e instanceof DOMException)
    return { kind: "dom", name: e.name, message: e.message };
  if (e instanceof Error) {
    const because = e.cause === undefined ? {} : { cause: toWire(e.cause) };
    return { kind: "error", name: e.name, message: e.message, stack: e.stack ?? "", ...because };
  }
  const plain = (typeof e !== "object" || e === null) && typeof e !== "function" && typeof e !== "symbol";
  return { kind: "value", value: plain ? e : String(e) };
}
export function fromWire(t: Thrown): unknown {
  if (t.kind === "value") return t.value;
  if (t.kind === "dom") return new DOMException(t.message, t.name);
  const cause = t.cause === undefined ? undefined : fromWire(t.cause);
  if (t.kind === "weft") {
    const e = new WeftError(cause === undefined ? t.fields : { ...t.fields, cause });
    e.stack = t.stack;
    return e;
  }
  const e = new Error(t.message, cause === undefined ? {} : { cause });
  e.name = t.name;
  e.stack = t.stack;
  return e;
}

/** A value whose arrays of numbers are copies, and the memory of those, to be handed over. */
export function handedOver<T>(value: T): { readonly value: T; readonly memory: ArrayBuffer[] } {
  const memory: ArrayBuffer[] = [];
  const copy = (x: unknown): unknown => {
    if (typeof x !== "object" || x === null || x instanceof Error) return x;
    if (ArrayBuffer.isView(x)) {
      const own = (x as Float32Array).slice();
      memory.push(own.buffer);
      return own;
    }
    if (Array.isArray(x)) return typeof x[0] === "object" ? x.map(copy) : x;
    if (x instanceof Map) return new Map([...x].map(([k, v]) => [k, copy(v)]));
    if (Object.getPrototypeOf(x) !== Object.prototype) return x;
    return Object.fromEntries(Object.entries(x).map(([k, v]) => [k, copy(v)]));
  };
  return { value: copy(value) as T, memory };
}
