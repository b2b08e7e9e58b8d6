/**
 * Ops of adapters and of training, which need slots, tables and jobs around them: both targets against f64.
 */

import * as assert from "uvu/assert";
import { vjp } from "../compiler/autodiff.ts";
import { PLAIN_ROWS } from "../compiler/kernels/text/wgsl_plain.ts";
import {
  add,
  dropout,
  embed,
  expand,
  gatherRows,
  inputName,
  interpret,
  leading,
  mul,
  overlay,
  place,
  scaleBySlot,
  select,
  shrink,
  slotVector,
  sparse,
  sparseIndex,
  type Value,
  valueKey,
  widen,
} from "../ops/index.ts";
import { writeEntries } from "../runtime/tensors/entries.ts";
import { type Batch, batch, context, inputData, runOn } from "./support/graphs.ts";
import { checkGradients, close, graph, next, rows, targets } from "./support/ops.ts";
import { suite } from "./support/suite.ts";

const test = suite("adapting");
test("rows, embedding, dropout, adapters: ops that need surroundings, on both targets", async () => {
  const name = `together${next()}`;
  const b = batch("together", 17, 6, "step", 11);
  const x = graph.input(name, "x", rows(12));
  const w = graph.input(name, "table", { kind: "weight", n: 11, k: 12, format: "f32" });
  const fa = graph.input(name, "fa", { kind: "factor", rows: 8, cols: 12, branch: 2 });
  const fb = graph.input(name, "fb", { kind: "factor", rows: 8, cols: 9, branch: 2 });
  const u = scaleBySlot(shrink(dropout(x, 2), fa), 2);
  const roots = [expand(u, fb), dropout(x, 5), add(x, embed(w, "T")), gatherRows(x, "head_row", "R")];
  const data = inputData(roots, b, "together");
  const want = interpret(roots, data, context(b));
  for (const target of targets)
    for (const fuse of [true, false]) {
      const { outputs } = await runOn(target, roots, data, b, { fuse, plainRows: PLAIN_ROWS });
      outputs.forEach((out, i) => close(out, want[i]!, `root ${i} on ${target}, fuse ${fuse}`));
    }
});

test("adapters' first products: a lane all chunks, a lane a chunk, tiles of rows: same bits", async () => {
  const b = batch("chunks", 13, 6, "step", 11);
  const [short, long] = [300, 600];
  const of = (cols: number) => {
    const name = `chunks${next()}`;
    const x = graph.input(name, "x", rows(cols));
    const f = graph.input(name, "f", { kind: "factor", rows: 8, cols, branch: 2 });
    const root = shrink(x, f);
    const data = inputData([root], b, "chunks");
    return { root, data, x: data[inputName(x)]!, f: data[inputName(f)]! };
  };
  const [few, many] = [of(short), of(long)];
  // What is behind the first columns adds nothing.
  for (const key of ["x", "f"] as const)
    many[key].forEach((_, i) => {
      const [row, col] = [Math.floor(i / long), i % long];
      many[key][i] = col < short ? few[key][row * short + col]! : 0;
    });
  const run = async ({ root, data }: typeof few, variant: "any" | "plain"): Promise<Float64Array> => {
    const [out] = (await runOn("webgpu", [root], data, b, { variant })).outputs;
    close(out!, interpret([root], data, context(b))[0]!, `shrink ${variant}`);
    return Float64Array.from(out!);
  };
  const want = [...(await run(few, "any"))];
  for (const of of [few, many])
    for (const variant of ["any", "plain"] as const) assert.equal([...(await run(of, variant))], want);
});

test("selections, slot vectors: gathered, scattered, broadcast by slot, on both targets", async () => {
  const name = `selection${next()}`;
  const b = batch("selection", 19, 6, "step", 11);
  const [channels, rank] = [21, 8];
  const x = graph.input(name, "x", rows(channels));
  const index = graph.input(name, "index", { kind: "factor", rows: 1, cols: rank + channels, branch: 3 });
  const gain = graph.input(name, "gain", { kind: "factor", rows: 1, cols: channels, branch: 3 });
  const u = select(x, index);
  const delta = graph.input(name, "delta", { kind: "factor", rows: rank, cols: 5, branch: 3 });
  const first = leading(x, delta);
  const roots = [
    u,
    place(u, index, channels),
    mul(x, slotVector(gain, "T", 1)),
    first,
    widen(first, 3, channels),
  ];
  const data = inputData(roots, b, "selection");
  // Each slot has its own channels: as many as its rank.
  const words = rank + channels;
  const at = data.index!.fill(0);
  for (let s = 0; s < 4; s++)
    for (let r = 0; r < b.ranks[s]!; r++) {
      const c = (5 * r + 3 * s) % channels;
      at[s * words + r] = c;
      at[s * words + rank + c] = r + 1;
    }
  const want = interpret(roots, data, context(b));
  assert.ok(want[1]!.some((v) => v !== 0) && want[1]!.some((v) => v === 0));
  for (const target of targets)
    for (const fuse of [true, false]) {
      const { outputs } = await runOn(target, roots, data, b, { fuse, plainRows: PLAIN_ROWS });
      outputs.forEach((out, i) => close(out, want[i]!, `root ${i} on ${target}, fuse ${fuse}`));
    }
  // Transposes of one another: their gradients are each other.
  const cot = graph.input(name, "cot", rows(channels));
  const few = { ...data, ...inputData([cot], b, "cot") };
  checkGradients("place of select", roots[1]!, cot, [x], vjp([[roots[1]!, cot]], [x]), few, b);
  checkGradients("widen of leading", roots[4]!, cot, [x], vjp([[roots[4]!, cot]], [x]), few, b);
});

test("sparse entries and virtual tokens: rows of several slots, gradients of the job's", async () => {
  const name = `sparse${next()}`;
  const [outs, ins, entries] = [13, 9, 8];
  const at = sparseIndex(entries, outs, ins);
  const build = (domain: "T" | "W") => {
    const x = graph.input(`${name}${domain}`, "x", rows(ins, domain));
    const values = graph.input(`${name}${domain}`, "values", {
      kind: "factor",
      rows: entries,
      cols: 1,
      branch: 1,
    });
    const index = graph.input(`${name}${domain}`, "index", {
      kind: "factor",
      rows: 1,
      cols: at.words,
      branch: 1,
    });
    const tokens = graph.input(`${name}${domain}`, "tokens", {
      kind: "factor",
      rows: 8,
      cols: outs,
      branch: 4,
    });
    const y = overlay(sparse(x, values, index, outs), tokens);
    const cot = graph.input(`${name}${domain}`, "cot", rows(outs, domain));
    return { x, values, tokens, y, cot, grads: vjp([[y, cot]], [x, values, tokens]) };
  };
  const dataOf = (roots: readonly Value[], b: Batch): Record<string, Float64Array> => {
    const data = inputData(roots, b, "sparse");
    for (let s = 0; s < 4; s++) {
      const slot = new Float32Array(at.words);
      const places = [...new Set(Array.from({ length: 40 }, (_, i) => (i * 29 + s * 7) % (outs * ins)))]
        .slice(0, b.ranks[s])
        .sort((p, q) => p - q);
      writeEntries(slot, entries, outs, ins, places);
      data.index!.set(slot, s * at.words);
    }
    return data;
  };
  // Rows at positions below and beyond every slot's rank.
  const near = (b: Batch): Batch => ({ ...b, arrays: { ...b.arrays, pos: b.arrays.pos!.map((_, r) => r) } });
  const step = near(batch("sparse", 19, 6, "step", 11));
  const forward = build("T");
  const data = dataOf([forward.y, forward.cot], step);
  const [want] = interpret([forward.y], data, context(step));
  for (const target of targets)
    for (const fuse of [true, false])
      close(
        (await runOn(target, [forward.y], data, step, { fuse })).outputs[0]!,
        want!,
        `sparse on ${target}, fuse ${fuse}`,
      );
  checkGradients("sparse", forward.y, forward.cot, [forward.x], forward.grads, data, step);

  const unit = near(batch("sparse unit", 17, 6, "unit", 11));
  const back = build("W");
  const roots = [back.x, back.values, back.tokens].map((v) => back.grads.get(valueKey(v))!);
  const given = dataOf([back.y, back.cot], unit);
  const gradients = interpret(roots, given, context(unit));
  const loss = (d: Record<string, Float64Array>): number =>
    interpret([back.y], d, context(unit))[0]!.reduce((s, v, i) => s + v * d.cot![i]!, 0);
  const [slot, rank] = [2, unit.ranks[2]!];
  for (const [key, words, cols, root] of [
    ["values", entries, 1, 1],
    ["tokens", 8 * outs, outs, 2],
  ] as const)
    for (let i = 0; i < rank * cols; i++) {
      const moved = (by: number): number =>
        loss({ ...given, [key]: given[key]!.map((v, j) => (j === slot * words + i ? v + by : v)) });
      const numeric = (moved(1e-5) - moved(-1e-5)) / 2e-5;
      assert.ok(
        Math.abs(numeric - gradients[root]![i]!) <= 1e-6 * (1 + Math.abs(numeric)),
        `d/d${key}[${i}] is ${gradients[root]![i]}, differences say ${numeric}`,
      );
    }
  for (const target of targets)
    (await runOn(target, roots, given, unit)).outputs.forEach((out, i) =>
      close(out, gradients[i]!, `gradient ${i} on ${target}`),
    );
});
test.run();
