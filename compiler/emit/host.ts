/**
 * The host: the scheduler's AssemblyScript, compiled once for all bundles, and what each bundle tells it at
 * load: capacities, offsets and program tables.
 */
import { readdirSync, readFileSync } from "node:fs";
import {
  BLOCK,
  type BlockEntry,
  CANDIDATE_WORDS,
  CANDIDATES,
  type CapacityEntry,
  COMMAND_WORDS,
  COUNTER,
  cacheBlocks,
  classPrograms,
  DROPOUT_BIT,
  EVENT,
  EVENT_WORDS,
  FINISH,
  FREE,
  type GridDim,
  HEADER,
  type HostConfig,
  headerWords,
  IGNORE,
  KIND,
  LANES,
  MASK_WORDS,
  MAX_BIASES,
  MAX_RAISED,
  MAX_STOPS,
  type Manifest,
  MOST_PARTS,
  MOST_SUMS,
  NONE,
  optimizerNames,
  type ProgramEntry,
  ROW_TILE,
  SPLIT,
  sizeNames,
  TRAIN_BIT,
  updateWords,
} from "../../runtime/bundle.ts";
import { extArray, segmentsOf, splitsOf, unitTableWords } from "../metadata.ts";
import { CALIBRATE, CALIBRATE_GRADIENT } from "../programs/index.ts";
import { compileAssembly, type Making } from "./asc.ts";

const hostFolder = new URL("../../runtime/host/", import.meta.url);
const gridCode: Readonly<Record<GridDim["count"], number>> = {
  one: 0,
  n_rows: 1,
  n_head: 2,
  plain_keys: 3,
  few_splits: 4,
  few_merges: 5,
  tile_rows: 6,
  rest_rows: 7,
  plain_rows: 8,
  tile_head: 9,
  rest_head: 10,
  plain_head: 11,
  tile_groups: 12,
  candidate_head: 13,
  tile_keys: 14,
  lone_row: 15,
  more_rows: 16,
  wide_rows: 17,
  wide_head: 18,
  tile_spans: 19,
};
/** A launch: kernel, mask words, then (count, mul, div) of x, y, z; and a bit for each kind of layers. */
const LAUNCH_WORDS = 1 + MASK_WORDS + 9 + 1;
/** Programs the host refers to by name, and those of each training class; -1 where the bundle has none. */
const programNames: Readonly<Record<string, string>> = {
  P_EMBED: "embed",
  P_FORWARD: "forward",
  P_FORWARD_FULL: "forward.full",
  P_STASH: "stash",
  P_HEAD: "head",
  P_CLIP: "clip",
  P_ROW_NORMS: "row_norms",
};
const ofClass: Readonly<Record<string, (cls: string) => string>> = {
  CLASS_HEAD: (cls) => (cls === CALIBRATE ? "" : classPrograms.head(cls)),
  CLASS_COPY: classPrograms.copy,
  CLASS_RERUN: classPrograms.rerun,
  CLASS_BACKWARD: classPrograms.backward,
  CLASS_EMBED_BACKWARD: classPrograms.embedding,
  CLASS_SUMSQ: classPrograms.squares,
  CLASS_SUMSQ_OUTER: classPrograms.outerSquares,
};
/** Programs of each training class and optimizer: of a class, all optimizers'. */
const updatePrograms: Readonly<Record<string, (cls: string, optimizer: string) => string>> = {
  CLASS_UPDATE: classPrograms.update,
  CLASS_UPDATE_OUTER: classPrograms.outerUpdate,
};

export interface HostInput {
  readonly capacities: CapacityEntry;
  readonly layers: number;
  /** Of each layer. */
  readonly kinds: readonly number[];
  readonly vocab: number;
  readonly policy: string;
  readonly train: readonly string[];
  readonly saved: Manifest["saved"];
  readonly blocks: Readonly<Record<"step" | "unit" | "update", BlockEntry>>;
  readonly programs: readonly ProgramEntry[];
  readonly kernels: readonly string[];
  /** Pages of the largest adapter. */
  readonly pagesPerSlot: number;
  /** Rows of a sequence that a tile of attention takes on WebGPU. */
  readonly tileRows: number;
  readonly parametersPerLayer: number;
  readonly headParameters: number;
}

/**
 * The longest command list of a step, as if every mask bit were set: all slots filled anew, all units
 * granted, every job's update, and a forward. Kernels for tiles and for the rest may both run, plain ones
 * beside neither.
 */
function longestLists(h: HostInput): Record<string, number> {
  const { units } = h.capacities;
  const launches = (name: string): number => {
    const list = h.programs.find((p) => p.name === name)?.launches ?? [];
    const without = (counts: RegExp): number =>
      list.filter((l) => l.grid.every((g) => !counts.test(g.count))).length;
    return Math.max(without(/^plain_/), without(/^(tile|rest|few|lone|more|wide)_/));
  };
  const most = (of: (program: (key: string) => number, cls: string) => number): number =>
    Math.max(0, ...classesOf(h).map((cls) => of((key) => launches(ofClass[key]!(cls)), cls)));
  const rowNorms = h.layers * launches("row_norms");
  const unit = most((p) =>
    Math.max(
      p("CLASS_HEAD"),
      Math.max(p("CLASS_COPY"), p("CLASS_RERUN")) + p("CLASS_BACKWARD") + p("CLASS_EMBED_BACKWARD"),
    ),
  );
  const longest = (key: string, cls: string): number =>
    Math.max(...optimizerNames.map((o) => launches(updatePrograms[key]!(cls, o))));
  const update = most(
    (p, cls) =>
      h.layers * (p("CLASS_SUMSQ") + longest("CLASS_UPDATE", cls)) +
      p("CLASS_SUMSQ_OUTER") +
      longest("CLASS_UPDATE_OUTER", cls),
  );
  const forward =
    launches("embed") +
    h.layers * Math.max(launches("forward"), launches("forward.full")) +
    launches("stash") +
    launches("head");
  return {
    COMMANDS_OF_SLOT: rowNorms,
    COMMANDS_OF_JOB: update + launches("clip") + rowNorms,
    COMMANDS_OF_STEP: units * unit + forward,
  };
}
const constant = (name: string): string => name.replace(/[A-Z]/g, "_$&").toUpperCase();
/** The runtime's contract under the host's names: MICRO_DONE, C_TRAIN_ROWS, H_N_ROWS. */
function contract(): Record<string, number> {
  const flag = (bit: number): number => 1 << (bit & 31);
  const out: Record<string, number> = {
    BLOCK,
    ROW_TILE,
    SPLIT,
    NONE,
    IGNORE,
    FREE,
    STOPS_PER_SEQUENCE: MAX_STOPS,
    BIASES_PER_SEQUENCE: MAX_BIASES,
    MAX_RAISED,
    MOST_SUMS,
    MOST_PARTS,
    MAX_LANES: LANES,
    CANDIDATES,
    CANDIDATE_WORDS,
    COMMAND_WORDS,
    EVENT_WORDS,
    HEADER_WORDS: HEADER,
    HYPERS: updateWords.length,
    MASK_WORDS,
    LAUNCH_WORDS,
    OPTIMIZERS: optimizerNames.length,
    DROPOUT: flag(DROPOUT_BIT),
    TRAINED: flag(TRAIN_BIT),
  };
  const named = (prefix: string, table: Readonly<Record<string, number>>): void => {
    for (const [name, n] of Object.entries(table)) out[prefix + constant(name)] = n;
  };
  for (const table of [KIND, EVENT, FINISH]) named("", table);
  named("C_", COUNTER);
  named("H_", Object.fromEntries(headerWords.map((name, i) => [name, i])));
  return out;
}
/** What a job may be of: the bundle's classes, then those that only look. */
const classesOf = (h: HostInput): string[] => [...h.train, CALIBRATE, CALIBRATE_GRADIENT];

/**
 * What a bundle tells the host. Cost of a unit's row in 1024ths of a forward row: that one runs every layer
 * once, a backward row one layer twice.
 */
function told(h: HostInput): { numbers: Record<string, number>; tables: Record<string, number[]> } {
  const c = h.capacities;
  const rowCost = h.layers * h.parametersPerLayer + h.headParameters / 8;
  const programOf = (name: string): number => h.programs.findIndex((p) => p.name === name);
  const numbers: Record<string, number> = {
    TOKENS_PER_STEP: c.tokens,
    CONTEXT: c.context,
    HEAD_ROWS: c.headRows,
    QUANTUM: c.quantum,
    UNIT_ROWS: c.unitRows,
    UNIT_TABLE_WORDS: unitTableWords(c),
    SEGMENTS: segmentsOf(c),
    UNITS: c.units,
    BLOCKS_PER_SEQUENCE: cacheBlocks(c.context),
    PAGES_PER_SLOT: h.pagesPerSlot,
    SPLITS: splitsOf(c),
    TILE_ROWS: h.tileRows,
    LAYERS: h.layers,
    VOCAB: h.vocab,
    UNIT_ROW_COST: Math.max(1, Math.round((1024 * 2 * h.parametersPerLayer) / rowCost)),
    STEP_FIELDS: h.blocks.step.words,
    UNIT_WORDS: h.blocks.unit.words,
    UPDATE_WORDS: h.blocks.update.words,
    MOST_KEPT_WORDS: Math.max(0, ...Object.values(h.saved).map((s) => s.words.kept)),
    CLASSES: h.train.length,
    ...longestLists(h),
    ...Object.fromEntries(Object.entries(programNames).map(([name, program]) => [name, programOf(program)])),
  };
  const ofClasses = new Set(h.train.map(extArray));
  for (const kind of ["step", "unit"] as const)
    for (const [name, at] of Object.entries(h.blocks[kind].arrays))
      if (!ofClasses.has(name)) numbers[`A_${kind.toUpperCase()}_${name.toUpperCase()}`] = at;
  const classes = classesOf(h);
  const tables: Record<string, number[]> = {
    CLASS_FULL: classes.map((cls) => (cls === "full" ? 1 : 0)),
    CLASS_EXT: h.train.map((cls) => h.blocks.step.arrays[extArray(cls)]!),
    CLASS_BOUNDARY_WORDS: classes.map((cls) => h.saved[cls]?.words.boundary ?? 0),
    CLASS_KEPT_WORDS: classes.map((cls) => h.saved[cls]?.words.kept ?? 0),
    // By group; the outer one is behind the layers.
    GROUP_KIND: [...h.kinds.map((kind) => 1 << kind), -1],
  };
  for (const [name, program] of Object.entries(ofClass))
    tables[name] = classes.map((cls) => programOf(program(cls)));
  for (const [name, program] of Object.entries(updatePrograms))
    tables[name] = classes.flatMap((cls) => optimizerNames.map((o) => programOf(program(cls, o))));
  // First launch of each program, and one past the last.
  const starts = [0];
  const launches: number[] = [];
  for (const p of h.programs) {
    for (const l of p.launches) {
      const mask = Array.from({ length: MASK_WORDS }, (_, w) =>
        l.bits.reduce((m, bit) => (bit >> 5 === w ? m | (1 << (bit & 31)) : m), 0),
      );
      launches.push(
        h.kernels.indexOf(l.kernel),
        ...mask,
        ...l.grid.flatMap((g) => [gridCode[g.count], g.mul, g.div]),
        l.kinds?.reduce((m, kind) => m | (1 << kind), 0) ?? -1,
      );
    }
    starts.push(launches.length / LAUNCH_WORDS);
  }
  return { numbers, tables: { ...tables, PROGRAM_START: starts, LAUNCHES: launches } };
}
/** Names of numbers that say where a table begins among all, in words. */
const AT = "AT_";
/** What host.json holds. */
export function hostConfig(h: HostInput): HostConfig {
  const { numbers, tables } = told(h);
  const all: number[] = [];
  for (const [name, table] of Object.entries(tables)) {
    numbers[AT + name] = all.length;
    all.push(...table);
  }
  return { numbers: { ...numbers, TABLE_WORDS: all.length }, tables: all };
}
/** The generated modules: the contract, and what comes from a bundle and from whoever loads it. */
function configModules(names: readonly string[]): Record<"config.ts" | "tables.ts", string> {
  const imported = (module: string, name: string, as = name): string[] => [
    "// @ts-ignore: decorator",
    `@external("${module}", "${name}")`,
    `export declare const ${as}: i32;`,
  ];
  const config = [
    ...Object.entries(contract()).map(([k, v]) => `export const ${k}: i32 = ${v};`),
    ...sizeNames.flatMap((name) => imported("sizes", name, constant(name))),
    ...names.flatMap((name) => imported("bundle", name)),
    "/** The block of a step, with a table of cache blocks for each sequence; all of a lane's metadata. */",
    "export const STEP_WORDS: i32 = (STEP_FIELDS + SEQUENCES * BLOCKS_PER_SEQUENCE + 63) & ~63;",
    "export const META_WORDS: i32 = STEP_WORDS + UNITS * UNIT_WORDS + (JOBS + SLOTS) * UPDATE_WORDS;",
    "export const MAX_COMMANDS: i32 = SLOTS * COMMANDS_OF_SLOT + JOBS * COMMANDS_OF_JOB + COMMANDS_OF_STEP;",
    "// A logits row says one thing; every sequence may end, and a micro-batch of every job. Before a step",
    "// every sequence may start, every slot be filled, and every job have a slot and begin.",
    "export const MAX_EVENTS: i32 = SEQUENCES * 2 + SLOTS + JOBS * 2 + HEAD_ROWS;",
  ];
  const at = names.filter((name) => name.startsWith(AT));
  const tables = [
    `import { ${["TABLE_WORDS", ...at].join(", ")} } from "./config";`,
    'import { take } from "./state";',
    "export const TABLES: usize = take(TABLE_WORDS * 4);",
    ...at.map((name) => `export const ${name.slice(AT.length)}: usize = TABLES + ((<usize>${name}) << 2);`),
  ];
  return { "config.ts": `${config.join("\n")}\n`, "tables.ts": `${tables.join("\n")}\n` };
}

export const policies = (): string[] =>
  [...readFileSync(new URL("policies/index.ts", hostFolder), "utf8").matchAll(/export \{ (\w+) \}/g)].map(
    (m) => m[1]!,
  );

/** host.wasm of a policy, the same for every bundle, and what a bundle tells it. */
export async function emitHost(h: HostInput, how: Making): Promise<{ wasm: Uint8Array; config: HostConfig }> {
  const config = hostConfig(h);
  return { wasm: await compileAssembly("host", hostSources(config, h.policy), "index.ts", how), config };
}
/** The host's modules by path; of a bundle's config only the names matter, and every bundle has the same. */
export function hostSources(config: HostConfig, policy: string): Record<string, string> {
  const sources: Record<string, string> = {
    ...configModules(Object.keys(config.numbers)),
    "exp.ts": readFileSync(new URL("./assembly/exp.ts", import.meta.url), "utf8"),
    "policy.ts": `export { ${policy} as policy } from "./policies/index";\n`,
  };
  for (const dir of ["", "policies/"])
    for (const f of readdirSync(new URL(dir || ".", hostFolder)))
      if (f.endsWith(".ts")) sources[dir + f] = readFileSync(new URL(dir + f, hostFolder), "utf8");
  return sources;
}
