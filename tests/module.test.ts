/** What asc emits is checked: kernels with state of their own never become a bundle's. */
import * as assert from "uvu/assert";
import { compileAssembly, compileKernels } from "../compiler/emit/asc.ts";
import { suite } from "./support/suite.ts";

const test = suite("modules");
const says = async (source: string): Promise<string> =>
  compileKernels(source, false).then(
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
      "const s = 'text'; export function f(a: i32): i32 { return load<i32>(changetype<usize>(s) + a); }",
    ),
    /a data section/,
  );
  assert.match(await says("export function f(a: i32): i32 { return b; }"), /assemblyscript: .*b/s);
});

test("the host may have state", async () => {
  const source = "let x: i32 = 0; export function f(a: i32): i32 { x += a; return x; }";
  const host = await compileAssembly("host", { "index.ts": source }, "index.ts", false);
  const { instance } = (await WebAssembly.instantiate(host as BufferSource)) as unknown as {
    instance: WebAssembly.Instance;
  };
  const f = instance.exports.f as (a: number) => number;
  assert.equal([f(2), f(3)], [2, 5]);
});
test.run();
