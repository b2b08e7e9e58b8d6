/** host.wasm: the scheduler's AssemblyScript with this bundle's capacities, offsets and program tables compiled in. */
import { readdirSync, readFileSync } from "node:fs";
import type { BlockEntry, CapacityEntry, GridDim, ProgramEntry } from "../../runtime/bundle.ts";
import { HEADER, headerWords, segmentsOf, unitTableWords } from "../metadata.ts";
import { compileAssembly } from "./asc.ts";

const hostFolder = new URL("../../runtime/host/", import.meta.url);
const gridCode: Readonly<Record<GridDim["count"], number>> = { one: 0, n_rows: 1, n_head: 2, n_keys: 3 };
/** Programs the host refers to by name; -1 where the bundle has none. */
const programNames: Readonly<Record<string, readonly string[]>> = {
  P_EMBED: ["embed"],
  P_FORWARD: ["forward.lora", "forward"],
  P_FORWARD_FULL: ["forward.full"],
  P_STASH: ["stash"],
  P_HEAD: ["head"],
  P_HEAD_TRAIN: ["head_train.lora"],
  P_HEAD_TRAIN_FULL: ["head_train.full"],
  P_BACKWARD_ALL: ["backward.lora.all"],
  P_BACKWARD_BOUNDARY: ["backward.lora.boundary"],
  P_BACKWARD_FULL_ALL: ["backward.full.all"],
  P_BACKWARD_FULL_BOUNDARY: ["backward.full.boundary"],
  P_EMBED_BACKWARD: ["embed_backward.full"],
  P_SUMSQ: ["sumsq.lora.layer"],
  P_SUMSQ_FULL: ["sumsq.full.layer"],
  P_SUMSQ_FULL_OUTER: ["sumsq.full.outer"],
  P_CLIP: ["clip"],
  P_STEP_ADAMW: ["adamw.lora.layer"],
  P_STEP_SGD: ["sgd.lora.layer"],
  P_STEP_FULL_ADAMW: ["adamw.full.layer"],
  P_STEP_FULL_SGD: ["sgd.full.layer"],
  P_STEP_FULL_OUTER_ADAMW: ["adamw.full.outer"],
  P_STEP_FULL_OUTER_SGD: ["sgd.full.outer"],
};

export interface HostInput {
  readonly capacities: CapacityEntry;
  readonly layers: number;
  readonly vocab: number;
  readonly policy: string;
  readonly blocks: Readonly<Record<"step" | "unit" | "update", BlockEntry>>;
  readonly programs: readonly ProgramEntry[];
  readonly kernels: readonly string[];
  readonly parametersPerLayer: number;
  readonly headParameters: number;
}

/** The generated config module. Cost of a unit's row in 1024ths of a forward row: that one runs every layer once, a backward row one layer twice. */
export function hostConfig(h: HostInput): string {
  const c = h.capacities;
  const rowCost = h.layers * h.parametersPerLayer + h.headParameters / 8;
  const constants: Record<string, number> = {
    TOKENS_PER_STEP: c.tokens,
    SEQUENCES: c.sequences,
    CONTEXT: c.context,
    HEAD_ROWS: c.headRows,
    BLOCKS: c.blocks,
    SLOTS: c.slots,
    JOBS: c.jobs,
    SAVED_ROWS: c.savedRows,
    KEPT_ROWS: c.keptRows,
    QUANTUM: c.quantum,
    UNIT_ROWS: c.unitRows,
    UNIT_TABLE_WORDS: unitTableWords(c),
    SEGMENTS: segmentsOf(c),
    UNITS: c.units,
    BLOCKS_PER_SEQUENCE: Math.ceil(c.context / 32),
    LAYERS: h.layers,
    VOCAB: h.vocab,
    UNIT_ROW_COST: Math.max(1, Math.round((1024 * 2 * h.parametersPerLayer) / rowCost)),
    HEADER_WORDS: HEADER,
    STEP_WORDS: h.blocks.step.words,
    UNIT_WORDS: h.blocks.unit.words,
    UPDATE_WORDS: h.blocks.update.words,
    META_WORDS: h.blocks.step.words + c.units * h.blocks.unit.words + c.jobs * h.blocks.update.words,
  };
  headerWords.forEach((name, i) => {
    constants[`H_${name.toUpperCase()}`] = i;
  });
  for (const kind of ["step", "unit"] as const) for (const [name, at] of Object.entries(h.blocks[kind].arrays)) constants[`A_${kind.toUpperCase()}_${name.toUpperCase()}`] = at;
  for (const [name, options] of Object.entries(programNames)) constants[name] = options.map((o) => h.programs.findIndex((p) => p.name === o)).find((i) => i >= 0) ?? -1;
  const starts = [0];
  const launches: number[] = [];
  for (const p of h.programs) {
    for (const l of p.launches) launches.push(h.kernels.indexOf(l.kernel), l.sites, ...l.grid.flatMap((g) => [gridCode[g.count], g.mul, g.div]));
    starts.push(launches.length / 11);
  }
  return [
    "// Generated from the bundle's capacities and programs.",
    ...Object.entries(constants).map(([k, v]) => `export const ${k}: i32 = ${v};`),
    "/** First launch of each program, and one past the last. */",
    `export const PROGRAM_START: StaticArray<i32> = [${starts.join(", ")}];`,
    "/** kernel, adapter sites, then (count, mul, div) of x, y, z. */",
    `export const LAUNCHES: StaticArray<i32> = [${launches.join(", ")}];`,
    "",
  ].join("\n");
}

export const policies = (): string[] => [...readFileSync(new URL("policies/index.ts", hostFolder), "utf8").matchAll(/export \{ (\w+) \}/g)].map((m) => m[1]!);

export async function emitHost(h: HostInput): Promise<{ wasm: Uint8Array; config: string }> {
  const config = hostConfig(h);
  const sources: Record<string, string> = { "config.ts": config, "policy.ts": `export { ${h.policy} as policy } from "./policies/index";\n` };
  for (const dir of ["", "policies/"])
    for (const f of readdirSync(new URL(dir || ".", hostFolder))) if (f.endsWith(".ts")) sources[dir + f] = readFileSync(new URL(dir + f, hostFolder), "utf8");
  return { wasm: await compileAssembly(sources, "index.ts", []), config };
}
