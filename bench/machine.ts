/** The machine as the Wasm kernels find it: products on their own, and what memory gives. */
import { compileKernels, compileRelaxed } from "../compiler/emit/asc.ts";
import { prelude } from "../compiler/emit/assemblyscript.ts";
import { BLOCK_ROWS, PACK_AT, ROWS_AT } from "../compiler/kernels/text/assemblyscript.ts";
import { openCrew } from "../runtime/crew.ts";
import { median } from "./measure.ts";

/**
 * Products as the emitted kernels make them (rows read where they lie, columns packed once), and a plain sum
 * over memory for its bandwidth.
 */
const source = `${prelude()}
export function gemm(bind: usize, meta: usize, scratch: usize, part: i32, parts: i32): void {
  const M: i32 = load<i32>(bind), K: i32 = load<i32>(bind, 4), N: i32 = load<i32>(bind, 8);
  const x: usize = load<u32>(bind, 12), w: usize = load<u32>(bind, 16), y: usize = load<u32>(bind, 20);
  const panels: i32 = (N + 7) / 8;
  const lo: i32 = share(panels, part, parts), hi: i32 = share(panels, part + 1, parts);
  for (let rb: i32 = 0; rb < M; rb += ${BLOCK_ROWS}) {
    const rows: i32 = min(${BLOCK_ROWS}, M - rb);
    for (let i: i32 = 0; i < rows; i++) {
      store<u32>(scratch + ${ROWS_AT} + ((<usize>i) << 2), x + <usize>((rb + i) * K * 4));
    }
    for (let p: i32 = lo; p < hi; p += 8) {
      const pe: i32 = min(p + 8, hi);
      clear(scratch, rows * 256);
      product_f32(scratch + ${ROWS_AT}, rows, w, N, K, p, pe, scratch, scratch + ${PACK_AT});
      for (let i: i32 = 0; i < rows; i++)
        for (let c: i32 = 0; c < min(64, N - p * 8); c += 4) {
          const at = y + <usize>(((rb + i) * N + p * 8 + c) * 4);
          v128.store(at, v128.load(scratch + <usize>(i * 256 + c * 4)));
        }
    }
  }
}
export function read(bind: usize, meta: usize, scratch: usize, part: i32, parts: i32): void {
  const words: i32 = load<i32>(bind), from: usize = load<u32>(bind, 4);
  let a: v128 = f32x4.splat(0), b: v128 = a, c: v128 = a, d: v128 = a;
  const end: usize = from + ((<usize>share(words / 16, part + 1, parts)) << 6);
  for (let at: usize = from + ((<usize>share(words / 16, part, parts)) << 6); at < end; at += 64) {
    a = f32x4.add(a, v128.load(at));
    b = f32x4.add(b, v128.load(at, 16));
    c = f32x4.add(c, v128.load(at, 32));
    d = f32x4.add(d, v128.load(at, 48));
  }
  v128.store(scratch, f32x4.add(f32x4.add(a, b), f32x4.add(c, d)));
}`;
export interface Machine {
  /** Milliseconds of x [m, k] · W [n, k]ᵀ. */
  gemm(m: number, k: number, n: number): Promise<number>;
  /** GB/s of reading. */
  bandwidth(): Promise<number>;
  end(): void;
}
export async function machine(relaxed: boolean, threads: number): Promise<Machine> {
  const module = await WebAssembly.compile(
    (relaxed ? await compileRelaxed(source) : await compileKernels(source)) as BufferSource,
  );
  const memory = new WebAssembly.Memory({ initial: 6400, maximum: 6400, shared: true });
  const [bind, scratch, data] = [1024, 2 ** 20, 2 ** 22];
  const scratchBytes = 2 ** 19;
  const crew = await openCrew({
    module,
    memory,
    kernels: ["gemm", "read"],
    control: 2 ** 17,
    lanes: [{ bind, meta: 0 }],
    scratch,
    scratchBytes,
    threads,
  });
  const words = new Int32Array(memory.buffer);
  new Float32Array(memory.buffer, data).fill(0.01);
  const time = async (kernel: number, times: number): Promise<number> => {
    const list = Int32Array.from(Array.from({ length: times }, () => [kernel, 0, 0, 1, 1, 1]).flat());
    for (let i = 0; i < 3; i++) await crew.play(0, list);
    const ms: number[] = [];
    for (let i = 0; i < 5; i++) {
      const t0 = performance.now();
      await crew.play(0, list);
      ms.push((performance.now() - t0) / times);
    }
    return median(ms);
  };
  return {
    gemm: (m, k, n) => {
      const w = data + m * k * 4;
      words.set([m, k, n, data, w, w + k * Math.ceil(n / 8) * 32], bind / 4);
      return time(0, 4);
    },
    bandwidth: async () => {
      const bytes = 384 * 2 ** 20;
      words.set([bytes / 4, data], bind / 4);
      return bytes / 1e6 / (await time(1, 1));
    },
    end: crew.dispose,
  };
}
