/**
 * Which requests read and fill prefixes: those that generate, where the load allows it. A score needs the
 * logits of every token, and what a job trains is nobody else's. A block is an entry from the moment its last
 * row is granted: the list that fills it writes the keys and values of all its rows before any row reads
 * them, so whoever comes to the same tokens, in the same step or later, reads them and computes what follows.
 * The last, partly filled block of a sequence is always its own.
 */
import { hold, letGo } from "./blocks";
import { BLOCK, BLOCKS_PER_SEQUENCE, C_FOUND, C_GIVEN, CONTEXT, NONE, SEQUENCES } from "./config";
import { enterPrefix, find, findChain, isEntry } from "./prefix";
import { bump, DONE, get, LENGTH_OF, set, TABLE, TOKENS, take } from "./state";

let on: bool = false;
/** A prompt that is looked up. */
const PROMPT: usize = take(CONTEXT * 4);
/** Of each sequence: how many of its blocks are entries, the first; NONE where it takes no part. */
const ENTERED: usize = take(SEQUENCES * 4);
/** Tokens of it that were found. */
const FOUND: usize = take(SEQUENCES * 4);
const OWNER: usize = take(SEQUENCES * 4);
const SALT: usize = take(SEQUENCES * 4);

/** The caller's: the tokens of a request that waits, from the first on, to `at`. */
// @ts-ignore: decorator
@external("env", "prompt")
declare function prompt(ticket: i32, at: usize): void;

/** Requests share prefixes from now on. */
export function share(): void {
  on = true;
}
/** Blocks of a prompt that are there: into CHAIN. The last token is computed in any case, for its logits. */
export function lookUp(ticket: i32, length: i32, adapter: i32, salt: i32): i32 {
  if (!on || length <= BLOCK) return 0;
  prompt(ticket, PROMPT);
  return findChain(PROMPT, (length - 1) / BLOCK, adapter, salt);
}
/** A sequence that shares nothing. */
export function keepsApart(s: i32): void {
  set(ENTERED, s, NONE);
  set(FOUND, s, 0);
}
/** A sequence reads and fills prefixes of an owner; its first `found` blocks are entries. */
export function shares(s: i32, adapter: i32, salt: i32, found: i32): void {
  if (!on) return;
  set(OWNER, s, adapter);
  set(SALT, s, salt);
  set(ENTERED, s, found);
  skipTo(s, found * BLOCK);
}
/** Tokens of a sequence that were not computed for it. */
export function foundIn(s: i32): i32 {
  return get(FOUND, s);
}
function skipTo(s: i32, done: i32): void {
  const skipped: i32 = done - get(DONE, s);
  set(DONE, s, done);
  set(FOUND, s, get(FOUND, s) + skipped);
  bump(C_FOUND, skipped);
}

/**
 * Go on along what is there: before a sequence has rows, in a step in which it has none yet (`mayRead`), take
 * the place behind what others computed meanwhile; enter what it has filled itself.
 */
function goOn(s: i32, mayRead: bool): void {
  for (let n: i32 = get(ENTERED, s); n != NONE; n++) {
    const end: i32 = (n + 1) * BLOCK;
    const filled: bool = end <= get(DONE, s);
    if (!filled && (!mayRead || end >= get(LENGTH_OF, s))) return;
    const table: i32 = s * BLOCKS_PER_SEQUENCE + n;
    const parent: i32 = n == 0 ? NONE : get(TABLE, table - 1);
    // What it holds may be void by now, and what follows it with that.
    if (n > 0 && !isEntry(parent)) return;
    const ids: usize = TOKENS + ((<usize>(s * CONTEXT + n * BLOCK)) << 2);
    const there: i32 = find(parent, get(OWNER, s), get(SALT, s), ids);
    if (there != NONE) {
      // Rows of this step may be in its own block.
      if (!mayRead) return;
      hold(there);
      letGo(get(TABLE, table));
      bump(C_GIVEN, 1);
      set(TABLE, table, there);
      if (!filled) skipTo(s, end);
    } else if (filled) enterPrefix(get(TABLE, table), parent, get(OWNER, s), get(SALT, s), ids);
    else return;
    set(ENTERED, s, n + 1);
  }
}
/** Before a sequence's rows of a step are granted. */
export function readPrefix(s: i32): void {
  goOn(s, true);
}
/** After that. */
export function fillPrefix(s: i32): void {
  goOn(s, false);
}
