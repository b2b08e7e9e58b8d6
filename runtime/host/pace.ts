/**
 * How many row-equivalents a step with requests may have, where time is wanted and not a number of rows. What
 * a step of decoding alone takes, and what a row-equivalent adds to it, are measured as steps come: many rows
 * cost a device with idle units next to nothing, and one without a lot. A step takes no longer than was
 * wanted; where decoding alone takes most of that, half as long again, so that prompts and jobs go on.
 */
import { C_HEAD, C_SPENT, TOKENS_PER_STEP } from "./config";
import { counter } from "./state";

/** Before anything was measured, and in any case. */
const FIRST: f64 = 18;
const LEAST: f64 = 8;
/** Of what was measured before, the part that still counts; of decoding, the part that is new. */
const KEPT: f64 = 0.875;
const NEW: f64 = 0.125;

/** Microseconds that a step should take at most. */
let wanted: f64 = 0;
/** Microseconds of a step of decoding alone, rows that decoded last; 0: none was seen. */
let bare: f64 = 0;
let decoded: f64 = 0;
/** Row-equivalents beside decoding, and the microseconds that they added. */
let rows: f64 = 0;
let added: f64 = 0;

export function want(micros: i32): void {
  wanted = <f64>micros;
}
/** Row-equivalents of the next step with requests, decoding among them. */
export function paced(): i32 {
  if (rows == 0) return min(<i32>FIRST, TOKENS_PER_STEP);
  const room: f64 = max(wanted - bare, bare / 2);
  const most: f64 = decoded + (added > 0 ? (room * rows) / added : <f64>TOKENS_PER_STEP);
  return <i32>min(max(most, LEAST), <f64>TOKENS_PER_STEP);
}
/** The step that was scheduled last took so long. */
export function took(micros: i32): void {
  const heads: f64 = <f64>counter(C_HEAD);
  const others: f64 = <f64>counter(C_SPENT) - heads;
  const time: f64 = <f64>micros;
  if (heads > 0) decoded = heads;
  if (others > 0) {
    rows = rows * KEPT + others;
    added = added * KEPT + max(0, time - bare);
  } else if (heads > 0) bare += (time - bare) * (bare == 0 ? 1 : NEW);
}
