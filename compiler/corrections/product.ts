/** Products of matrices in f32 on the CPU's vectors, for what is computed while a bundle is made. */
import { compileAssembly } from "../emit/asc.ts";
import { readBeside } from "../files.ts";

/** C [m, n] = A [m, k] · B [n, k]ᵀ. */
export type Product = (a: Float32Array, b: Float32Array, m: number, n: number, k: number) => Float32Array;

/** Rows of an operand that are multiplied at once: what that takes stays in a processor's cache. */
const ROWS = 128;
const up = (x: number, of: number): number => Math.ceil(x / of) * of;

export async function openProduct(): Promise<Product> {
  const source = readBeside(import.meta.url, "../emit/assembly/product.ts");
  const made = await compileAssembly("host", { "product.ts": source }, "product.ts", {
    ...{ cache: true, quick: false },
  });
  const { instance } = await WebAssembly.instantiate(made as Uint8Array<ArrayBuffer>, {
    env: { abort: () => {} },
  });
  const { memory, product } = instance.exports as unknown as {
    readonly memory: WebAssembly.Memory;
    readonly product: (a: number, b: number, c: number, m: number, n: number, k: number) => void;
  };
  const words = (bytes: number): Float32Array => {
    if (memory.buffer.byteLength < bytes) memory.grow(Math.ceil((bytes - memory.buffer.byteLength) / 65536));
    return new Float32Array(memory.buffer);
  };
  return (a, b, m, n, k) => {
    const wide = up(k, 4);
    const [atB, atC] = [ROWS * wide, 2 * ROWS * wide];
    const all = words(4 * (atC + ROWS * ROWS));
    const out = new Float32Array(m * n);
    const put = (from: Float32Array, first: number, rows: number, to: number, most: number): void => {
      for (let r = 0; r < up(rows, 4); r++) {
        const row = all.subarray(to + r * wide, to + (r + 1) * wide).fill(0);
        if (r < rows) row.set(from.subarray((first + r) * most, (first + r + 1) * most));
      }
    };
    for (let i = 0; i < m; i += ROWS) {
      const rows = Math.min(ROWS, m - i);
      put(a, i, rows, 0, k);
      for (let j = 0; j < n; j += ROWS) {
        const columns = Math.min(ROWS, n - j);
        put(b, j, columns, atB, k);
        product(0, 4 * atB, 4 * atC, up(rows, 2), up(columns, 4), wide);
        for (let r = 0; r < rows; r++) {
          const from = atC + r * up(columns, 4);
          out.set(all.subarray(from, from + columns), (i + r) * n + j);
        }
      }
    }
    return out;
  };
}
