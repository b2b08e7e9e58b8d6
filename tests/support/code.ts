import * as assert from "uvu/assert";
import { WeftError } from "../../sdk/index.ts";

/** `f` throws, or rejects with, a WeftError of this code whose message says so; returns it. */
export async function code(want: string, f: () => unknown, says: RegExp = /./): Promise<WeftError> {
  try {
    await f();
  } catch (e) {
    assert.instance(e, WeftError, String(e));
    const error = e as WeftError;
    assert.is(error.code, want, error.message);
    assert.match(error.message, says);
    return error;
  }
  return assert.unreachable(`expected ${want}`) as never;
}
