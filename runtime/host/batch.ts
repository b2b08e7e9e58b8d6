/** Packs what the policy granted into the step's metadata block, and turns programs into commands. */
import {
  A_STEP_DROP_KEY,
  A_STEP_DROP_P,
  A_STEP_HEAD_ROW,
  A_STEP_HEAD_SCALE,
  A_STEP_HEAD_WANTED,
  A_STEP_IDS,
  A_STEP_MERGE_ITEM,
  A_STEP_MERGE_ROW,
  A_STEP_POS,
  A_STEP_SAVE_ROW,
  A_STEP_SLOT,
  A_STEP_SPLIT_PART,
  A_STEP_SPLIT_ROW,
  A_STEP_TABLE,
  A_STEP_TABLES,
  A_STEP_TILE_ROW,
  A_STEP_TILE_ROWS,
  A_UNIT_SEG_KEYS,
  BLOCKS_PER_SEQUENCE,
  C_PICKS,
  C_COMMANDS,
  C_FEW,
  C_HEAD,
  C_ROWS,
  C_TRAIN_ROWS,
  CLASSES,
  COMMAND_WORDS,
  CONTEXT,
  DROPOUT,
  GENERATE,
  H_MASK_0,
  H_MASK_4,
  H_N_HEAD,
  H_N_KEYS,
  H_N_MERGES,
  H_N_ROWS,
  H_N_SEGMENTS,
  H_N_SPLITS,
  H_N_TILES,
  H_REST_HEAD,
  H_REST_ROWS,
  HEAD_ROWS,
  HEADER_WORDS,
  JOBS,
  BLOCK,
  LAUNCH_WORDS,
  LAYERS,
  MASK_WORDS,
  MAX_COMMANDS,
  NONE,
  P_EMBED,
  P_FORWARD,
  P_FORWARD_FULL,
  P_HEAD,
  P_STASH,
  ROW_TILE,
  SCORE,
  SPLIT,
  SPLITS,
  TILE_ROWS,
  TOKENS_PER_STEP,
  TRAIN,
  TRAINED,
} from "./config";
import { planRow, scaleOf } from "./candidates";
import {
  bump,
  COMMANDS,
  counter,
  DONE,
  DROP_KEY,
  DROP_P,
  EXT_BASE,
  get,
  HEAD_POS,
  HEAD_SEQ,
  JOB,
  JOB_CLASS,
  JOB_SEQS,
  KIND,
  LENGTH_OF,
  META,
  NUM_BLOCKS,
  ROW_SEQ,
  SAVE_BASE,
  SLOT,
  SLOT_MASK,
  set,
  TABLE,
  TOKENS,
  within,
} from "./state";
import { CLASS_EXT, CLASS_FULL, GROUP_KIND, LAUNCHES, PROGRAM_START } from "./tables";

/** Tiles of keys of a unit's sequences. */
function keyTiles(block: i32): i32 {
  let tiles: i32 = 0;
  for (let s: i32 = 0; s < get(META, block + H_N_SEGMENTS); s++)
    tiles += (get(META, block + A_UNIT_SEG_KEYS + s) + BLOCK - 1) / BLOCK;
  return tiles;
}
/** Workgroups of a launch in dimension `d`: ceil(count · mul / div). */
function workgroups(grid: i32, d: i32, block: i32): i32 {
  const code: i32 = get(LAUNCHES, grid + d * 3);
  const rows: i32 = get(META, block + H_N_ROWS);
  const div: i32 = get(LAUNCHES, grid + 2 + d * 3);
  let count: i32 = 1;
  if (code == 1) count = rows;
  else if (code == 2) count = get(META, block + H_N_HEAD);
  else if (code == 3) count = counter(C_FEW) < 0 ? get(META, block + H_N_KEYS) : 0;
  else if (code == 4) count = get(META, block + H_N_SPLITS);
  else if (code == 5) count = get(META, block + H_N_MERGES);
  else if (code == 12) count = get(META, block + H_N_TILES);
  else if (code == 13) count = counter(C_PICKS) ? get(META, block + H_N_HEAD) : 0;
  else if (code == 14) count = counter(C_FEW) < 0 ? 0 : keyTiles(block);
  else if (code == 19) count = counter(C_FEW) < 0 ? 0 : max(rows, keyTiles(block) * div);
  else if (code >= 15) {
    const lone: i32 = get(META, block + H_REST_ROWS) == 1 ? 1 : 0;
    if (code == 15) count = lone;
    else if (code == 16) count = rows - lone;
    else count = code == 17 ? rows : get(META, block + H_N_HEAD);
    if (counter(C_FEW) < 0) count = 0;
  }
  else if (code >= 6) {
    const head: bool = code >= 9;
    const part: i32 = (code - 6) % 3;
    const all: i32 = head ? get(META, block + H_N_HEAD) : rows;
    const rest: i32 = get(META, block + (head ? H_REST_HEAD : H_REST_ROWS));
    const plain: bool = counter(C_FEW) < 0;
    if (part == 2) count = plain ? all : 0;
    else count = plain ? 0 : part == 0 ? all - rest : rest;
  }
  return (count * get(LAUNCHES, grid + 1 + d * 3) + div - 1) / div;
}
/**
 * Emit a program's launches for `group` over the metadata block at word `block`; those for layers of another
 * kind, and those that have nothing to do, are left out.
 */
export function emitProgram(program: i32, group: i32, block: i32): void {
  if (program < 0) return;
  for (let i: i32 = get(PROGRAM_START, program); i < get(PROGRAM_START, program + 1); i++) {
    const at: i32 = i * LAUNCH_WORDS;
    if ((get(LAUNCHES, at + LAUNCH_WORDS - 1) & get(GROUP_KIND, group)) == 0) continue;
    let wanted: i32 = 0;
    let there: i32 = 0;
    for (let w: i32 = 0; w < MASK_WORDS; w++) {
      wanted |= get(LAUNCHES, at + 1 + w);
      there |= get(LAUNCHES, at + 1 + w) & get(META, block + H_MASK_0 + w);
    }
    if (wanted != 0 && there == 0) continue;
    const grid: i32 = at + 1 + MASK_WORDS;
    const x: i32 = workgroups(grid, 0, block);
    const y: i32 = workgroups(grid, 1, block);
    const z: i32 = workgroups(grid, 2, block);
    if (x == 0 || y == 0 || z == 0) continue;
    within(counter(C_COMMANDS), MAX_COMMANDS, "commands");
    const c: i32 = counter(C_COMMANDS) * COMMAND_WORDS;
    set(COMMANDS, c, get(LAUNCHES, at));
    set(COMMANDS, c + 1, group);
    set(COMMANDS, c + 2, block * 4);
    set(COMMANDS, c + 3, x);
    set(COMMANDS, c + 4, y);
    set(COMMANDS, c + 5, z);
    bump(C_COMMANDS, 1);
  }
}

/** Of n rows, those at the end that kernels for a few take: what whole tiles leave, where it is a few. */
function restOf(n: i32): i32 {
  const few: i32 = counter(C_FEW);
  const rest: i32 = n % ROW_TILE;
  return rest <= few ? rest : 0;
}

export function beginStep(): void {
  memory.fill(META, 0, HEADER_WORDS * 4);
}

/** Room left for rows, and for logits rows, in this step. */
export function rowsLeft(): i32 {
  return TOKENS_PER_STEP - counter(C_ROWS);
}
export function headLeft(): i32 {
  return HEAD_ROWS - counter(C_HEAD);
}

/** Grant `n` rows to a sequence: its next tokens enter this step's forward. Returns what was granted. */
export function grant(seq: i32, n: i32): i32 {
  const kind: i32 = get(KIND, seq);
  const done: i32 = get(DONE, seq);
  const length: i32 = get(LENGTH_OF, seq);
  n = min(min(n, length - done), rowsLeft());
  if (kind == SCORE) n = min(n, headLeft());
  if (kind == GENERATE && done + n == length && headLeft() < 1) n -= 1;
  if (n <= 0) return 0;
  const at: i32 = counter(C_ROWS);
  const table: i32 = A_STEP_TABLES + seq * BLOCKS_PER_SEQUENCE;
  memory.copy(
    META + ((<usize>table) << 2),
    TABLE + ((<usize>(seq * BLOCKS_PER_SEQUENCE)) << 2),
    (<usize>get(NUM_BLOCKS, seq)) << 2,
  );
  const slot: i32 = get(SLOT, seq);
  for (let i: i32 = 0; i < n; i++) {
    const r: i32 = at + i;
    const pos: i32 = done + i;
    set(META, A_STEP_IDS + r, get(TOKENS, seq * CONTEXT + pos));
    set(META, A_STEP_POS + r, pos);
    set(META, A_STEP_SLOT + r, slot);
    set(META, A_STEP_TABLE + r, table);
    const train: bool = kind == TRAIN;
    set(META, A_STEP_SAVE_ROW + r, train ? get(SAVE_BASE, seq) + pos : NONE);
    for (let c: i32 = 0; c < CLASSES; c++)
      set(
        META,
        get(CLASS_EXT, c) + r,
        train && get(JOB_CLASS, get(JOB, seq)) == c && get(EXT_BASE, seq) != NONE
          ? get(EXT_BASE, seq) + pos
          : NONE,
      );
    set(META, A_STEP_DROP_KEY + r, train ? dropKey(get(DROP_KEY, seq), pos) : 0);
    set(META, A_STEP_DROP_P + r, train ? get(DROP_P, seq) : 0);
    set(ROW_SEQ, r, seq);
    if (kind == SCORE || (kind == GENERATE && pos == length - 1)) {
      const h: i32 = counter(C_HEAD);
      set(META, A_STEP_HEAD_ROW + h, r);
      set(HEAD_SEQ, h, seq);
      set(HEAD_POS, h, pos);
      set(META, A_STEP_HEAD_WANTED + h, planRow(seq, h));
      set(META, A_STEP_HEAD_SCALE + h, reinterpret<i32>(scaleOf(seq)));
      bump(C_HEAD, 1);
    }
  }
  for (let w: i32 = 0; w < MASK_WORDS - 1; w++)
    set(META, H_MASK_0 + w, get(META, H_MASK_0 + w) | get(SLOT_MASK, slot * MASK_WORDS + w));
  if (kind == TRAIN)
    set(META, H_MASK_4, get(META, H_MASK_4) | TRAINED | (get(DROP_KEY, seq) != 0 ? DROPOUT : 0));
  if (kind == TRAIN) bump(C_TRAIN_ROWS, n);
  bump(C_ROWS, n);
  set(DONE, seq, done + n);
  return n;
}
/** Key of a row's dropout draws: 0 means none. */
export function dropKey(key: i32, pos: i32): i32 {
  if (key == 0) return 0;
  const k: u32 = (<u32>key ^ (<u32>(pos + 1) * 0x9e3779b9)) * 0x85ebca6b;
  return k == 0 ? 1 : <i32>k;
}

/**
 * Items of attention. Rows of a sequence go in tiles; up to a quarter of one, each alone, its keys in splits
 * that run side by side, while there is room for what they leave.
 */
function planAttention(rows: i32): void {
  const few: i32 = counter(C_FEW);
  if (few < 0) return;
  let tiles: i32 = 0;
  let splits: i32 = 0;
  let merges: i32 = 0;
  for (let r: i32 = 0, end: i32 = 0; r < rows; ) {
    const seq: i32 = get(ROW_SEQ, r);
    while (end < rows && get(ROW_SEQ, end) == seq) end++;
    const single: bool = few > 0 && (end - r) * 4 <= max(4, TILE_ROWS);
    while (r < end) {
      const parts: i32 = get(META, A_STEP_POS + r) / SPLIT + 1;
      if (single && splits + parts <= SPLITS) {
        if (parts > 1) {
          set(META, A_STEP_MERGE_ROW + merges, r);
          set(META, A_STEP_MERGE_ITEM + merges++, splits);
        }
        for (let p: i32 = 0; p < parts; p++) {
          set(META, A_STEP_SPLIT_ROW + splits, r);
          set(META, A_STEP_SPLIT_PART + splits++, p);
        }
        r++;
      } else {
        const n: i32 = min(TILE_ROWS, end - r);
        set(META, A_STEP_TILE_ROW + tiles, r);
        set(META, A_STEP_TILE_ROWS + tiles++, n);
        r += n;
      }
    }
  }
  set(META, H_N_TILES, tiles);
  set(META, H_N_SPLITS, splits);
  set(META, H_N_MERGES, merges);
}

/** Commands of the forward over all granted rows. */
export function emitForward(): void {
  const rows: i32 = counter(C_ROWS);
  if (rows == 0) return;
  let full: bool = false;
  for (let j: i32 = 0; j < JOBS; j++)
    if (get(JOB_SEQS, j) > 0 && get(CLASS_FULL, get(JOB_CLASS, j)) != 0) full = true;
  set(META, H_N_ROWS, rows);
  set(META, H_N_HEAD, counter(C_HEAD));
  set(META, H_REST_ROWS, restOf(rows));
  set(META, H_REST_HEAD, restOf(counter(C_HEAD)));
  planAttention(rows);
  const outer: i32 = LAYERS;
  emitProgram(P_EMBED, outer, 0);
  const forward: i32 = full ? P_FORWARD_FULL : P_FORWARD;
  for (let l: i32 = 0; l < LAYERS; l++) emitProgram(forward, l, 0);
  if (counter(C_TRAIN_ROWS) > 0) emitProgram(P_STASH, outer, 0);
  if (counter(C_HEAD) > 0) emitProgram(P_HEAD, outer, 0);
}
