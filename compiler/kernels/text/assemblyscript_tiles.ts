/**
 * Register tiles over 8-column panels, which products on the CPU call. Weights are read from one packed copy:
 * y = x·Wᵀ takes panels as they are, dx = dy·W turns them on the fly, and every storage format is unpacked to
 * f32 a chunk at a time, so one family of tiles serves all. Each output is one chain of multiply-adds in
 * ascending order of what is summed, whatever the rows beside it and whichever thread computes it.
 */
import { formatOf, formats, planeBytes } from "../../../runtime/bundle.ts";
import { BLOCK_STRIDE, K_CHUNK, K_DIRECT, P } from "./assemblyscript.ts";
import { integerText } from "./assemblyscript_integers.ts";
import { type Lines, lines } from "./lines.ts";

const CHUNK_BYTES = K_CHUNK * P * 4;
const each = (n: number): number[] => Array.from({ length: n }, (_, i) => i);

/** What the text of tiles takes of a format. */
interface Storage {
  readonly name: string;
  /** Panels are f32 as they are. */
  readonly direct: boolean;
  /** Bytes of a term (eight columns) of a panel; terms of one number; terms that share scales, and the bytes
    of these. */
  readonly bytes: number;
  readonly together: number;
  readonly scaled: number;
  readonly scaleBytes: number;
  readonly load: (u: number) => Lines;
  /** Statements that read what terms share, at `scales`. */
  readonly scales: Lines;
}
function storageOf(name: string): Storage {
  const { planes, assembly } = formatOf(name);
  const [values, shared] = planes;
  return {
    load: assembly.load,
    scales: assembly.scales.map((s, i) => `const ${s}: v128 = half4(scales + ${i * 8});`),
    name,
    direct: assembly.unpack === null,
    bytes: (planeBytes(values!) * P) / values!.every,
    together: values!.every,
    scaled: shared ? shared.every : 0,
    scaleBytes: shared ? planeBytes(shared) * shared.count * P : 0,
  };
}
/** How many runs of terms that share scales a row of K has. */
const runs = ({ scaled }: Storage): string => `((K + ${scaled - 1}) >> ${Math.log2(scaled)})`;
/** Terms of a panel of K rows in memory. */
const whole = ({ together }: Storage): string =>
  together > 1 ? `(K + ${together - 1} & ${-together})` : "K";
const TILE_ROWS = [4, 2, 1] as const;
/**
 * acc[rows][8] += x[rows][K] · panel, K ascending. Loops are short on purpose: engines keep the sums of one
 * or two terms an iteration in registers and those of more not always (V8 of Node 20 to 24: 4 × 8 in f32 runs
 * at 65 GFLOP/s with one term and 40 to 55 with more, 2 × 8 at twice the speed with two as with four). One
 * panel, on purpose: a second run of memory costs a third of the speed.
 */
function tile(rows: number, storage: Storage): Lines {
  const xs = each(rows);
  const { name, direct, bytes, scaled, scaleBytes, load, scales } = storage;
  const term = (u: number): Lines => lines`
    ${load(u)}
    ${xs.flatMap(
      (i) => lines`
        const t${u}_${i}: v128 = v128.load_splat<f32>(x${i}, ${u * 4});
        p${i} = madd(t${u}_${i}, b${u}, p${i});
        q${i} = madd(t${u}_${i}, d${u}, q${i});`,
    )}`;
  const terms = (n: number): Lines => lines`
    ${each(n).flatMap(term)}
    ${xs.map((i) => `x${i} += ${n * 4};`).join(" ")} w += ${n * bytes};`;
  const few = direct && rows === 4 ? 1 : 2;
  const over = (end: string): Lines =>
    few > 1
      ? lines`
          const pairs: usize = ${end} - ((${end} - w) & ${bytes});
          while (w < pairs) {
            ${terms(few)}
          }
          if (w < ${end}) {
            ${terms(1)}
          }`
      : lines`
          while (w < ${end}) {
            ${terms(1)}
          }`;
  const blocks = lines`
    while (w < end) {
      ${scales}
      const block: usize = w + ${scaled * bytes} < end ? w + ${scaled * bytes} : end;
      ${over("block")}
      scales += ${scaleBytes};
    }`;
  return lines`
    function tile${rows}_${name}(
      ${xs.map((i) => `x${i}: usize,`).join(" ")}
      w: usize, ${scaled ? "scales: usize, " : ""}K: i32, acc: usize
    ): void {
      ${xs.flatMap(
        (i) => lines`
          let p${i}: v128 = v128.load(acc, ${i * BLOCK_STRIDE}),
            q${i}: v128 = v128.load(acc, ${i * BLOCK_STRIDE + 16});`,
      )}
      const end: usize = w + (<usize>K) * ${bytes};
      ${scaled ? blocks : over("end")}
      ${xs.flatMap(
        (i) => lines`
          v128.store(acc, p${i}, ${i * BLOCK_STRIDE});
          v128.store(acc, q${i}, ${i * BLOCK_STRIDE + 16});`,
      )}
    }`;
}
/**
 * Terms of four rows and a panel that a first-level cache holds; past it, four rows that also wait for memory
 * take longer than two and two.
 */
const K_NEAR = 768;
/**
 * Panels lie one after the other in memory: the first rows read them as one long run, and the next find them
 * in the cache.
 */
function tiles(storage: Storage): Lines {
  const { name, scaled } = storage;
  const scales = scaled ? "scales + <usize>p * scalesApart, " : "";
  const pass = (rows: number): Lines => lines`
    const at: usize = xs + ((<usize>r) << 2);
    ${each(rows).map((i) => `const x${i}: usize = <usize>load<u32>(at, ${i * 4}) + from;`)}
    for (let p: i32 = 0; p < panels; p++) {
      tile${rows}_${name}(
        ${each(rows)
          .map((i) => `x${i}, `)
          .join("")}w + <usize>p * apart, ${scales}K,
        acc + <usize>(r * ${BLOCK_STRIDE} + p * ${P * 4}));
    }
    r += ${rows};`;
  return lines`
    ${TILE_ROWS.flatMap((rows) => tile(rows, storage))}
    /** acc[rows][panels × 8] += the K terms of rows at \`xs\` (pointers) from byte \`from\` · panels
      \`apart\` bytes apart. */
    function tiles_${name}(
      xs: usize, from: usize, rows: i32, w: usize, apart: usize,
      ${scaled ? ["scales: usize, scalesApart: usize,"] : []}
      panels: i32, K: i32, acc: usize
    ): void {
      let r: i32 = 0;
      while (r < rows) {
        const n: i32 = r == 0 && K > ${K_NEAR} ? min(rows, 2) : rows - r;
        ${TILE_ROWS.flatMap(
          (n, i) => lines`
            ${i ? "else " : ""}${n > 1 ? `if (n >= ${n}) ` : ""}{
              ${pass(n)}
            }`,
        )}
      }
    }`;
}

/**
 * The two products over one storage format. For eight rows and more, and turned, packed panels are unpacked
 * before: four panels of a chunk at a time.
 */
function products(storage: Storage): Lines {
  const { name, direct, bytes, scaled, scaleBytes } = storage;
  const scales = lines`
    const scales: usize = w + <usize>(((N + 7) >> 3) * ${whole(storage)}) * ${bytes}
      + <usize>(p0 * ${runs(storage)} + (k >> ${Math.log2(scaled)})) * ${scaleBytes};`;
  // As they are: long runs of eight panels.
  const asTheyAre = lines`
    for (let k: i32 = 0; k < K; k += ${K_DIRECT}) {
      const terms: i32 = min(${K_DIRECT}, K - k);
      ${scaled ? scales : []}
      tiles_${name}(
        xs, (<usize>k) << 2, rows, w + <usize>(p0 * ${whole(storage)} + k) * ${bytes},
        (<usize>${whole(storage)}) * ${bytes},
        ${scaled ? `scales, <usize>${runs(storage)} * ${scaleBytes}, ` : ""}p1 - p0, terms, acc);
    }`;
  const unpacked = lines`
    if (rows < 8) {
      ${asTheyAre}
      return;
    }
    for (let k: i32 = 0; k < K; k += ${K_CHUNK}) {
      const terms: i32 = min(${K_CHUNK}, K - k);
      for (let p: i32 = p0; p < p1; p += 4) {
        const q: i32 = min(4, p1 - p);
        for (let j: i32 = 0; j < q; j++)
          unpack_${name}(w, N, K, p + j, k, terms, pack + <usize>j * ${CHUNK_BYTES});
        tiles_f32(
          xs, (<usize>k) << 2, rows, pack, ${CHUNK_BYTES}, q, terms, acc + <usize>(p - p0) * ${P * 4});
      }
    }`;
  const turnDirect = lines`
    turn(w + <usize>((n + at) / ${P} * K + q * ${P}) * 32, c, pack + <usize>at * 32, ${CHUNK_BYTES});`;
  const turnUnpacked = lines`
    unpack_${name}(w, N, K, (n + at) / ${P}, q * ${P}, c * ${P}, pack + ${4 * CHUNK_BYTES});
    turn(pack + ${4 * CHUNK_BYTES}, c, pack + <usize>at * 32, ${CHUNK_BYTES});`;
  return lines`
    function product_${name}(
      xs: usize, rows: i32, w: usize, N: i32, K: i32, p0: i32, p1: i32, acc: usize, pack: usize
    ): void {
      ${direct ? asTheyAre : unpacked}
    }
    function turned_${name}(
      xs: usize, rows: i32, w: usize, N: i32, K: i32, q0: i32, q1: i32, acc: usize, pack: usize
    ): void {
      for (let n: i32 = 0; n < N; n += ${K_CHUNK}) {
        const terms: i32 = min(${K_CHUNK}, N - n);
        for (let q: i32 = q0; q < q1; q += 4) {
          const c: i32 = min(4, q1 - q);
          for (let at: i32 = 0; at < terms; at += ${P}) {
            ${direct ? turnDirect : turnUnpacked}
          }
          tiles_f32(
            xs, (<usize>n) << 2, rows, pack, ${CHUNK_BYTES}, c, terms, acc + <usize>(q - q0) * ${P * 4});
        }
      }
    }`;
}
/** Text of what emitted kernels call of every format. */
export const productText = (): string =>
  formats
    .flatMap((name) => {
      const storage = storageOf(name);
      const { weight, unpack } = formatOf(name).assembly;
      return [weight, unpack ?? "", ...tiles(storage), ...products(storage)];
    })
    .concat(integerText())
    .join("\n");
