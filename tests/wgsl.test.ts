/**
 * What no WGSL of weft may contain: a variable without an initialiser, and a product that a driver could
 * contract into an addition.
 */
import * as assert from "uvu/assert";
import { adapterMethods } from "../compiler/adapters/index.ts";
import { compile } from "../compiler/compile.ts";
import { modulesOf } from "../compiler/emit/join.ts";
import { share } from "../compiler/emit/share.ts";
import type { LaunchText } from "../compiler/emit/wgsl.ts";
import { inTurn, merged, sorted } from "../compiler/kernels/text/alike.ts";
import { fn } from "../compiler/kernels/text/wgsl.ts";
import { heads } from "../compiler/kernels/text/wgsl_matrix.ts";
import { LAUNCH_VECTORS } from "../runtime/bundle.ts";
import { unitOf, unitsOn, withHead } from "../runtime/matrix.ts";
import { configs, s2ftOdd, small } from "./support/engines.ts";
import { suite } from "./support/suite.ts";
import { writeModel } from "./support/tiny.ts";

const test = suite("wgsl");

/** Is an expression a float, and is it a product that was not rounded on the way? */
interface Kind {
  readonly float: boolean;
  readonly product: boolean;
}
const FLOATS = /^(arena|kv|saved|adapters|accum|part|shared_[qpmc]|sums|tile_a|tile_b)$/;
/** Functions that give floats; `max` and others like it give what they take. */
const MAKES =
  /^(fma|exp|log|sqrt|tanh|f32|vec4|unpack2x16float|vector_at|kv_\w+|leading|halves_\w+|weight_\w+|expand|sparse|fold_\w+)$/;
const KEEPS = /^(max|min|select|array)$/;
/** Exact: a power of two times an integer of 24 bits. */
const EXACT = /^rand$/;

/**
 * Additions, in the text of a kernel, of an unrounded product of floats. Types are followed by name, function
 * by function.
 */
function contractible(wgsl: string): string[] {
  const out: string[] = [];
  for (const [, name, params, body] of wgsl.matchAll(/^fn (\w+)\((.*?)\)[^{]*\{([\s\S]*?)^\}/gm)) {
    if (EXACT.test(name!)) continue;
    const env = new Map<string, Kind>();
    for (const [, p, type] of params!.matchAll(/(\w+): (f32|vec4<f32>)/g))
      env.set(p!, { float: type !== "", product: false });
    for (const statement of body!.replace(/\/\/.*$/gm, "").split(/[;{}]/)) {
      const m = /^\s*(?:for \()?\s*(?:(?:let|var) (\w+)|(\w+)(?:\[.*\])?(?:\.\w+)?) = ([\s\S]+)$/.exec(
        statement,
      );
      const text = m ? m[3]! : statement;
      const kind = kindOf(text, env, (bad) => out.push(`${name}: ${bad} in ${statement.trim()}`));
      const target = m?.[1] ?? m?.[2];
      if (!target || !kind.float) continue;
      // A register that ever holds a product may be contracted wherever it is added.
      const known = m![1] ? undefined : env.get(target);
      env.set(target, { float: true, product: kind.product || (known?.product ?? false) });
    }
  }
  return out;
}
/** A small parser: terms, calls, indices, and the four operations. */
function kindOf(text: string, env: ReadonlyMap<string, Kind>, report: (bad: string) => void): Kind {
  const tokens =
    text.match(/\d[\w.]*(?:e[+-]?\d+f?)?|\w+(?:<[\w<>]+>)?|<<|>>|<=|>=|==|!=|&&|\|\||[^\s\w]/g) ?? [];
  let i = 0;
  const plain: Kind = { float: false, product: false };
  const atom = (): Kind => {
    const t = tokens[i++];
    if (t === undefined || t === ")" || t === "]" || t === ",") return plain;
    if (t === "-" || t === "!" || t === "&") return atom();
    let kind: Kind = plain;
    if (t === "(") {
      kind = sum();
      i++;
    } else if (/^\d/.test(t)) kind = { float: /f$/.test(t) || /\.|e-/.test(t), product: false };
    else if (tokens[i] === "(") {
      i++;
      const args: Kind[] = [];
      while (i < tokens.length && tokens[i] !== ")") {
        args.push(sum());
        if (tokens[i] === ",") i++;
      }
      i++;
      const base = t.replace(/<.*/, "");
      if (t === "bitcast<f32>" || MAKES.test(base)) kind = { float: true, product: false };
      else if (KEEPS.test(base))
        kind = { float: args.some((a) => a.float), product: args.some((a) => a.float && a.product) };
    } else kind = env.get(t) ?? { float: FLOATS.test(t), product: false };
    for (;;) {
      if (tokens[i] === "[") {
        i++;
        sum();
        i++;
      } else if (tokens[i] === ".") i += 2;
      else return kind;
    }
  };
  const term = (): Kind => {
    let left = atom();
    while (["*", "/", "%"].includes(tokens[i]!)) {
      const op = tokens[i++];
      const right = atom();
      const float = left.float || right.float;
      left = { float, product: float && op === "*" };
    }
    return left;
  };
  const sum = (): Kind => {
    let left = term();
    while (i < tokens.length && !["(", ")", "[", "]", ","].includes(tokens[i]!)) {
      const op = tokens[i++]!;
      const right = term();
      const float = left.float || right.float;
      if ((op === "+" || op === "-") && float && (left.product || right.product))
        report(`a product ${op} something`);
      left = { float: float && (op === "+" || op === "-"), product: false };
    }
    return left;
  };
  let last = plain;
  while (i < tokens.length) {
    const before = i;
    last = sum();
    if (i === before || [")", "]", ","].includes(tokens[i]!)) i++;
  }
  return last;
}

test("the lint sees products that feed additions, where they are and by name, and no others", () => {
  const count = (body: string): number => contractible(`fn f(row: i32, x: f32) {\n${body}\n}\n`).length;
  assert.is(count("let a = x * 2.0f + 1.0f;"), 1);
  assert.is(count("let p = arena[row * 4 + 1] * x;\nlet a = exp(p - 1.0f);"), 1);
  assert.is(count("var s = array<f32, 4>();\ns[row] = x * x;\nlet a = s[0] - x;"), 1);
  assert.is(count("let p = select(x, x * x, row > 1);\nlet a = x + p;"), 1);
  assert.is(count("let p = bitcast<f32>(bitcast<u32>(x * x) ^ u32(batch[12]));\nlet a = x + p;"), 0);
  assert.is(count("let a = fma(x, x, x * x) * 2.0f;\nlet i = row * 4 + 1;"), 0);
});

test("WGSL of every method: no product feeds an addition, every variable has a value", async () => {
  const methods = Object.keys(adapterMethods).filter((m) => m !== "s2ft_permuted");
  for (const format of ["f32", "int8"] as const) {
    const { files } = await compile(writeModel(configs.odd), {
      targets: ["webgpu"],
      train: format === "f32" ? [...methods, "full"] : methods,
      format,
      capacities: { ...small, s2ft: s2ftOdd },
    });
    let kernels = 0;
    for (const [name, bytes] of files) {
      if (!name.endsWith(".wgsl")) continue;
      kernels++;
      const wgsl = new TextDecoder().decode(bytes);
      assert.equal(contractible(wgsl), [], name);
      assert.not.match(wgsl, /^\s+.*\bvar \w+\s*(:[^=;]*)?;/m, name);
    }
    assert.ok(kernels > 100, `${kernels} kernels`);
  }
});

test("the emitter cannot print a variable without an initialiser", () => {
  assert.throws(() => fn("f", ["  var x: f32;"]), /no initialiser/);
  assert.throws(() => fn("f", ["  for (;;) { var k: array<f32, 4>; }"]), /no initialiser/);
  assert.match(fn("f", ["  var x = 0.0f;"]), /var x = 0.0f/);
});

test("functions that are one text but for whole numbers are one function of these", () => {
  const e = (i: number, at: number): string =>
    fn(
      `b_${i}_e`,
      [`let v_${at === 9 ? 1 : 0} = vec4<f32>(2.5f) * 7.0f;`, `arena[${at} + row] = 1.0f;`],
      "row: i32",
    );
  const body = (i: number, at: number, bit: number): string =>
    fn(`b_${i}`, [`if (((batch[7] >> ${bit}u) & 1) == ${bit}) { b_${i}_e(${at}); }`]);
  const text = [e(0, 3), body(0, 30, 0), e(1, 4), body(1, 40, 1), e(2, 9), body(2, 40, 1)].join("\n");
  const { functions, select, runs } = merged(text, ["b_0", "b_1", "b_2"]);
  // What a pipeline of one text begins with, and how many there are in turn.
  assert.equal(runs, [2, 1]);
  assert.equal(merged(text, ["b_0", "b_2", "b_1"]).runs, [1, 1, 1]);
  assert.equal(sorted(text, ["b_0", "b_2", "b_1"]), ["b_0", "b_1", "b_2"]);
  assert.equal(functions.split("\n"), [
    "fn b_0_e(p_0: i32, row: i32) {",
    "  let v_0 = vec4<f32>(2.5f) * 7.0f;",
    "  arena[p_0 + row] = 1.0f;",
    "}",
    "fn b_2_e(row: i32) {",
    "  let v_1 = vec4<f32>(2.5f) * 7.0f;",
    "  arena[9 + row] = 1.0f;",
    "}",
    "fn b_0(p_0: i32, p_1: i32, p_2: i32, wg: vec3<i32>, lane: i32) {",
    "  if (((batch[7] >> u32(p_0)) & 1) == p_0) { b_0_e(p_1, p_2); }",
    "}",
    "fn b_2(wg: vec3<i32>, lane: i32) {",
    "  if (((batch[7] >> 1u) & 1) == 1) { b_2_e(40); }",
    "}",
  ]);
  assert.equal(
    [...select],
    [
      "switch select(wg.z, first_body, first_body >= 0) {",
      "  case 0, 1: {",
      "    var p_0 = 0;",
      "    var p_1 = 3;",
      "    var p_2 = 30;",
      "    switch wg.z {",
      "      case 1: { p_0 = 1; p_1 = 4; p_2 = 40; }",
      "      default: {}",
      "    }",
      "    b_0(p_0, p_1, p_2, wg, lane);",
      "  }",
      "  case 2: {",
      "    b_2(wg, lane);",
      "  }",
      "  default: {}",
      "}",
    ],
  );
  const blocks = inTurn([["a[1] = 2;"], ["a[5] = 2;"]], "s");
  assert.match(blocks.join("\n"), /for \(var s = 0; s < 2; s\+\+\)[\s\S]*a\[s_0\] = 2;/);
  assert.not.match(inTurn([["a[1] = 2;"], ["b[5] = 2;"]], "s").join("\n"), /for/);
});
test("kernels that are one text but for what a launch brings are one module", () => {
  const kernel = (name: string, at: number, { rows = 8, by = 3, mask = 1 } = {}) => ({
    name,
    text: `// ${name}\nfn main() {\n  for (var i = 0; i < ${rows}; i++) { arena[${at} + i / ${by}] = 1e-6f * ${mask}.0f; }\n}\n`,
  });
  const { modules, of } = share([
    kernel("a", 100),
    kernel("b", 7),
    kernel("c", 100, { rows: 9 }),
    kernel("d", 100, { by: 4 }),
    kernel("e", 100, { mask: 2 }),
  ]);
  assert.equal(
    modules.map((m) => m.name),
    ["a", "c", "d", "e"],
  );
  assert.equal(
    [...of.values()],
    [
      { module: "a", launch: [100] },
      { module: "a", launch: [7] },
      ...["c", "d", "e"].map((module) => ({ module, launch: [] })),
    ],
  );
  assert.match(modules[0]!.text, /^\/\/ a\n\/\/ b\n@group.*launch: array/);
  assert.match(modules[0]!.text, /i < 8; i\+\+\) \{ arena\[launch\[0\]\.x \+ i \/ 3\] = 1e-6f \* 1\.0f/);
  // More numbers than a launch has room for.
  const many = (name: string, first: number) => ({
    name,
    text: `fn main() { ${Array.from({ length: 4 * LAUNCH_VECTORS + 1 }, (_, i) => `arena[${first + i}] = 0.0f;`).join(" ")} }`,
  });
  assert.is(share([many("a", 1), many("b", 100)]).modules.length, 2);
});
test("products with one sum are one module: a launch brings each body's epilogue and numbers", () => {
  const body = (i: number, [at, stride]: readonly number[], result: string): string =>
    [
      fn(`body_${i}_e`, [`arena[${at! + 1} + row] = ${result};`], "row: i32, acc0: f32"),
      fn(`body_${i}`, [`let s = arena[${at!} * ${stride!}];`, `body_${i}_e(wg.y, s);`]),
    ].join("\n");
  const launch = (name: string, joins: LaunchText["joins"], ...bodies: string[]): LaunchText => ({
    ...{ name, joins, says: "", lanes: 64, shared: [], cache: null, written: false, apart: false },
    functions: bodies.join("\n"),
    entries: bodies.map((_, i) => `body_${i}`),
  });
  const several = Array.from({ length: LAUNCH_VECTORS + 1 }, (_, i) => body(i, [i, 8], "acc0"));
  const { modules, of } = modulesOf([
    launch("a", true, body(0, [10, 4], "acc0"), body(1, [20, 4], "exp(acc0)")),
    launch("b", true, body(0, [30, 7], "acc0")),
    launch("c", false, body(0, [40, 4], "acc0")),
    launch("too many", true, ...several),
  ]);
  assert.equal(modules.map((m) => m.name).sort(), ["a", "c", "too many"]);
  // Where the sum reads, how far apart; which epilogue, and where that one writes.
  assert.equal(of.get("a"), { module: "a", launch: [10, 4, 0, 11, 20, 4, 1, 0] });
  assert.equal(of.get("b"), { module: "a", launch: [30, 7, 0, 31] });
  const text = modules[0]!.text;
  assert.is(text.match(/let s = arena\[p_0 \* p_1\];/g)!.length, 1);
  assert.match(text, /let p_1 = launch\[wg\.z \* 1 \+ 0\]\.y;/);
  assert.match(text, /switch launch\[z \* 1 \+ 0\]\.z \{\n\s+case 0: \{ put_1_0\(z, row, acc0\); \}/);
  assert.match(text, /put_1\(wg\.z, wg\.y, s\);/);
  // For CPUs alone: only with those whose bodies have its texts in its order; a body's place tells which.
  const plain = (name: string, ...bodies: string[]): LaunchText => ({
    ...launch(name, true, ...bodies),
    apart: true,
  });
  const cpu = modulesOf([
    plain("a", body(0, [10, 4], "acc0"), body(1, [20, 4], "exp(acc0)"), body(2, [30, 5], "exp(acc0)")),
    plain("b", body(0, [11, 4], "acc0"), body(1, [21, 4], "exp(acc0)"), body(2, [31, 5], "exp(acc0)")),
    plain("c", body(0, [10, 4], "acc0"), body(1, [20, 4], "acc0"), body(2, [30, 5], "exp(acc0)")),
  ]);
  assert.equal(
    cpu.modules.map((m) => m.name),
    ["a", "c"],
  );
  assert.equal(
    [...cpu.runs],
    [
      ["a", [1, 2]],
      ["b", [1, 2]],
      ["c", [2, 1]],
    ],
  );
  const chosen = /switch select\(z, first_body, first_body >= 0\) \{\n\s+case 0: .*\n\s+case 1, 2: /;
  assert.match(cpu.modules[0]!.text, chosen);
  assert.match(cpu.modules[0]!.text, /override first_body: i32 = -1;/);
});
test("modules for matrix units come with what a device has: its largest unit, or sums by lanes", async () => {
  type Shape = readonly [component: string, result: string, m: number, n: number, k: number];
  const has = (least: number, most: number, asks: boolean, ...shapes: readonly Shape[]) => {
    const named = ["shader-f16", "subgroups", "chromium-experimental-subgroup-matrix"];
    const configs = shapes.map(([componentType, resultComponentType, M, N, K]) => ({
      ...{ componentType, resultComponentType, M, N, K },
    }));
    const info = { subgroupMinSize: least, subgroupMaxSize: most, subgroupMatrixConfigs: configs };
    return { features: new Set([...named, ...(asks ? ["subgroup-size-control"] : [])]), info };
  };
  const of = (m: number, n: number, k: number, lanes: number, asks = false) => ({ m, n, k, lanes, asks });
  const [f16, f32] = ["f16", "f32"];
  const nvidia = has(32, 32, true, [f16, f16, 16, 16, 16], [f16, f32, 16, 8, 16], [f16, f32, 16, 16, 16]);
  assert.equal(unitOf(nvidia), of(16, 16, 16, 32));
  const apple = has(32, 32, false, [f32, f32, 8, 8, 8], [f16, f16, 8, 8, 8], [f16, f32, 8, 8, 8]);
  assert.equal(unitOf(apple), of(8, 8, 8, 32));
  assert.equal(unitOf(has(8, 32, true, [f16, f32, 8, 16, 16])), of(8, 16, 16, 16, true));
  const amd: Shape = [f16, f32, 16, 16, 16];
  assert.equal(unitOf(has(32, 64, true, amd)), of(16, 16, 16, 32, true));
  assert.is(unitOf(has(32, 64, false, amd)), null, "lanes of a subgroup are not known");
  assert.is(unitOf(has(32, 32, true, ["i8", "i32", 16, 16, 16])), null);
  assert.is(unitOf(has(32, 32, true, [f16, f32, 64, 64, 16])), null, "a tile is not made of those");
  const bare = has(32, 32, true, amd);
  bare.features.delete("shader-f16");
  assert.is(unitOf(bare), null);

  const kernel = "fn f() { tile_out[0] = 1.0f; }\n@compute @workgroup_size(128)\nfn main() {}\n";
  const joined = withHead(kernel, "HEAD\n", of(8, 16, 16, 16, true));
  assert.match(joined, /^enable subgroup_size_control;\nHEAD\nconst M = 8;\nconst N = 16;\nconst K = 16;\n/);
  assert.match(
    joined,
    /const SUBGROUP = 16;\nfn f\(.*\n@compute @subgroup_size\(16\) @workgroup_size\(128\)/,
  );
  assert.is(withHead(kernel, "HEAD\n", null), `HEAD\n${kernel}`);
  assert.is(withHead("fn main() {}", "HEAD\n", of(16, 16, 16, 32)), "fn main() {}", "it has no use for it");

  const files = new Map([...heads.map((h) => [`kernels/${h.name}.wgsl`, h.text] as const), ["k", kernel]]);
  const file = async (name: string): Promise<Uint8Array> => new TextEncoder().encode(files.get(name)!);
  const taken: [typeof bare, string, RegExp][] = [
    [bare, " matrix plain", /^alias Part = array<vec4<f32>/],
    [nvidia, " matrix", /^enable f16;[\s\S]*const M = 16;/],
  ];
  for (const [adapter, numerics, head] of taken) {
    const units = unitsOn(adapter, file);
    assert.is(units.numerics, numerics);
    assert.is(units.features.length > 0, numerics === " matrix");
    assert.match(new TextDecoder().decode(await units.file("k")), head);
  }
});

test.run();
