/** What asc emits is checked: kernels with state of their own never become a bundle's. */
import * as assert from "uvu/assert";
import { compileAssembly, compileKernels } from "../compiler/emit/asc.ts";
import { batchOf, collect, configs, contentBits, engineOf, idsOf } from "./support/engines.ts";
import { suite } from "./support/suite.ts";

const test = suite("modules");
const says = async (source: string): Promise<string> =>
  compileKernels(source, { cache: false, quick: false }).then(
    () => "fine",
    (e: Error) => e.message,
  );

test("kernels with state are refused, and say which", async () => {
  assert.is(await says("export function f(a: i32): i32 { return load<i32>(a); }"), "fine");
  assert.match(
    await says("let x: i32 = 0; export function f(a: i32): i32 { x += a; return x + load<i32>(a); }"),
    /a mutable global/,
  );
  assert.match(
    await says(
      "const s = memory.data<i32>([1, 2]); export function f(a: i32): i32 { return load<i32>(s + a); }",
    ),
    /a data section/,
  );
  assert.match(await says("export function f(a: i32): i32 { return b; }"), /assemblyscript: .*b/s);
});

test("the host may have state", async () => {
  const source = "let x: i32 = 0; export function f(a: i32): i32 { x += a; return x; }";
  const host = await compileAssembly("host", { "index.ts": source }, "index.ts", {
    cache: false,
    quick: true,
  });
  const { instance } = (await WebAssembly.instantiate(host as BufferSource)) as unknown as {
    instance: WebAssembly.Instance;
  };
  const f = instance.exports.f as (a: number) => number;
  assert.equal([f(2), f(3)], [2, 5]);
});

for (const device of ["wasm", "webgpu"] as const)
  test(`on ${device} kernels for trials compute the same bits`, async () => {
    const seen: unknown[] = [];
    for (const quick of [false, true]) {
      await using engine = await engineOf(configs.odd, { targets: [device], quick, load: { threads: 1 } });
      const job = await engine.finetune({ name: "a", data: batchOf(101), steps: 2, dropout: 0.1 });
      const { losses } = await job.done;
      const ask = { prompt: idsOf("quick", 40, 101), maxTokens: 8, adapter: "a" };
      seen.push([losses, contentBits(engine, "a"), await collect(engine, ask)]);
    }
    assert.equal(seen[1], seen[0]);
  });
test.run();
