/**
 * The compiler and the host: reproducible output, what fusion saves, memory plans that hold, modules without
 * state of their own, policies.
 */
import { createHash } from "node:crypto";
import { writeFileSync } from "node:fs";
import * as assert from "uvu/assert";
import { type CompileOptions, compile } from "../compiler/compile.ts";
import { fuse } from "../compiler/fuse.ts";
import type { Model } from "../compiler/models/model.ts";
import { packWeights } from "../compiler/pack.ts";
import type { Programs } from "../compiler/programs/index.ts";
import type { ModelSource } from "../compiler/source.ts";
import { print } from "../ops/index.ts";
import {
  BaseHash,
  DROPOUT_BIT,
  encode,
  floatToHalf,
  formats,
  halfToFloat,
  isForMany,
  isForOne,
  type Maths,
  parseHeader,
  planOf,
  store,
} from "../runtime/bundle.ts";
import { violations } from "../scripts/imports.ts";
import { Lane } from "./run.ts";
import { batchOf, bits, collect, configs, contentBits, engineOf, idsOf, small } from "./support/engines.ts";
import { suite } from "./support/suite.ts";
import { scratch, writeModel } from "./support/tiny.ts";

const test = suite("compile");
const options: CompileOptions = {
  targets: ["wasm", "webgpu"],
  train: ["lora", "full"],
  quick: true,
  capacities: small,
};

test("the same input gives the same bundle, byte for byte", async () => {
  const [a, b] = [
    await compile(writeModel(configs.odd), { ...options, cache: false }),
    await compile(writeModel(configs.odd), { ...options, cache: false }),
  ];
  assert.equal([...a.files.keys()], [...b.files.keys()]);
  for (const [name, bytes] of a.files)
    assert.ok(Buffer.compare(Buffer.from(bytes), Buffer.from(b.files.get(name)!)) === 0, name);
  // Every level prints as stable text.
  const text = (c: typeof a): string =>
    c.graphs.graphs
      .map((g) => `${g.name}\n${print(g.roots)}`)
      .join("\n")
      .replaceAll(/m\d+\//g, "");
  assert.is(text(a), text(b));
  assert.match(text(a), /attend\(/);
});

test("weights go through in pieces, the same as a whole: memory does not grow", async () => {
  const [rows, k] = [5001, 2048];
  const valueAt = (i: number): number => ((i * 2654435761) % 2 ** 20) / 2 ** 20 - 0.5;
  const all = Float32Array.from({ length: rows * k }, (_, i) => valueAt(i));
  for (const format of formats) {
    const param = { kind: "weight", name: "large", n: rows, k, format } as const;
    const programs = { outerParams: [param], layerParams: [] } as unknown as Programs;
    let most = 0;
    const read = (_name: string, _shape: readonly number[], from = 0, to = rows): Float32Array => {
      most = Math.max(most, (to - from) * k * 4);
      return all.slice(from * k, to * k);
    };
    const identity = new BaseHash({} as Maths);
    const sums: string[] = [];
    identity.add = (_name, _shape, sum) => void sums.push(sum);
    const names = {
      layer: {},
      outer: { large: "large" },
      modules: "{l}.",
      embedding: "large",
      transposed: [],
    };
    const weights = { has: () => true, read, planes: () => null };
    const source = { where: "memory", weights } as unknown as ModelSource;
    const got: Uint8Array[] = [];
    const shards = packWeights(source, programs, { layers: 0 } as Model, names, identity, () => {});
    let next = await shards.next();
    for (; !next.done; next = await shards.next())
      for await (const piece of next.value[1] as AsyncIterable<Uint8Array>) got.push(piece.slice());
    const file = Buffer.concat(got);
    const [entry] = next.value.tensors;
    const stored = file.subarray(entry!.start, entry!.start + entry!.bytes);
    assert.is(Buffer.compare(stored, store(format, all, rows, k, "whole")), 0, format);
    assert.is(parseHeader(file, file.length, "shard").tensors.at(-1)!.end, file.length);
    assert.equal(sums, [createHash("sha256").update(all).digest("hex")]);
    assert.ok(most <= 16 * 2 ** 20 && Math.max(...got.map((p) => p.length)) <= 16 * 2 ** 20, `${most}`);
  }
});

test("fusion changes launches, never bits: at most 7 a layer forward, 5 a token, 4 of adapters", async () => {
  const fused = await compile(writeModel(configs.even), { ...options, targets: ["webgpu"] });
  const launches = (name: string, runs = isForMany): { all: number; base: number; served: number } => {
    // Of two kernels for few rows and for many, a step launches one.
    const launched = fused.manifest.targets
      .webgpu!.programs.find((x) => x.name === name)!
      .launches.filter(runs);
    const base = launched.filter((l) => l.bits.length === 0).length;
    // Those of adapters, without what training alone runs.
    const adapters = launched.filter((l) => l.bits.some((bit) => bit < DROPOUT_BIT)).length;
    return { all: launched.length, base, served: base + adapters };
  };
  assert.ok(launches("forward").base <= 7, JSON.stringify(launches("forward")));
  const token = launches("forward", isForOne);
  assert.ok(token.base <= 5 && token.served <= 9, JSON.stringify(token));
  assert.ok(launches("forward.full").base <= 7, JSON.stringify(launches("forward.full")));
  assert.ok(launches("backward.full").base <= 10);
  // 8, four first products of adapters, their gradients in one, and one for dropout; before them a copy.
  assert.ok(launches("backward.lora").base <= 8 && launches("backward.lora").all <= 14);
  assert.is(launches("copy.lora").all, 1);
  // Kernels share modules, each of which is a pipeline of a GPU; a CPU behind WebGPU has one for each text of
  // the bodies of one.
  const { kernels, programs } = fused.manifest.targets.webgpu!;
  const pipelines = (idle: RegExp, split: boolean, without = /^$/): number => {
    const launched = programs
      .filter((p) => !without.test(p.name))
      .flatMap((p) => p.launches)
      .filter((l) => !l.grid.some((g) => idle.test(g.count)));
    const parts = launched.flatMap(({ kernel }) => {
      const { file, runs } = kernels[kernel]!;
      return (split && runs.length ? [...runs.keys()] : [0]).map((i) => `${file} ${i}`);
    });
    return new Set(parts).size;
  };
  const adapters = pipelines(/^plain_/, false, /full/);
  // A job compiles its own optimizer's.
  const gpu = pipelines(/^plain_/, false, /^(lion|sgd)/);
  const cpu = pipelines(/^(tile|rest|few|wide)_/, true);
  assert.ok(adapters <= 45 && gpu <= 60 && cpu <= 98, `${adapters}, ${gpu} and ${cpu} pipelines`);
  for (const g of fused.graphs.graphs)
    assert.ok(
      fuse(g.roots, { fuse: true, homes: g.homes }).length <=
        fuse(g.roots, { fuse: false, homes: g.homes }).length,
      g.name,
    );
  const runs = [];
  for (const on of [true, false]) {
    await using engine = await engineOf(configs.even, { fuse: on });
    const job = await engine.finetune({ name: "j", data: batchOf(128), steps: 2, dropout: 0.2 });
    const { losses } = await job.done;
    runs.push({
      losses,
      content: contentBits(engine, "j"),
      said: await collect(engine, { prompt: idsOf("fuse", 9, 128), maxTokens: 6, adapter: "j" }),
    });
  }
  assert.equal(runs[0], runs[1]);
});

test("a cache has room for eight contexts where none is asked for", async () => {
  const roomy = writeModel({ ...configs.even, max_position_embeddings: 4096 });
  const asked = { targets: ["wasm"], train: [], methods: [], quick: true } as const;
  const blocksOf = async (context: number): Promise<number> =>
    (await compile(roomy, { ...asked, capacities: { context } })).manifest.capacities.blocks;
  assert.equal([await blocksOf(4096), await blocksOf(64)], [1024, 256]);
});

test("a small device: chambers fit 1 MiB bindings, kernels 8 buffers, 16 KiB, 64 lanes", async () => {
  const limits = { bindingBytes: 2 ** 20, workgroupInvocations: 128 };
  const c = await compile(writeModel(configs.even), { ...options, targets: ["webgpu"], limits });
  const plan = planOf(c.manifest, "webgpu", c.manifest.capacities);
  assert.ok(plan.arenaWords * 4 <= limits.bindingBytes);
  for (const w of Object.values(plan.spaces))
    assert.ok(Math.max(w.layer, w.outer) * 4 <= limits.bindingBytes);
  for (const [name, bytes] of c.files) {
    if (!name.endsWith(".wgsl")) continue;
    const text = new TextDecoder().decode(bytes);
    assert.ok((text.match(/var<storage/g) ?? []).length <= 8, name);
    assert.ok(Number(/@workgroup_size\((\d+)\)/.exec(text)![1]) <= limits.workgroupInvocations, name);
    const shared = [...text.matchAll(/var<workgroup> \w+: array<(f32|vec4<f32>), (\d+)>/g)].reduce(
      (n, m) => n + (m[1] === "f32" ? 4 : 16) * Number(m[2]),
      0,
    );
    assert.ok(shared <= 16384, name);
  }
});

/** Sections of a wasm module: id → bodies. */
function sections(wasm: Uint8Array): Map<number, Uint8Array> {
  const out = new Map<number, Uint8Array>();
  let at = 8;
  const leb = (): number => {
    let v = 0;
    for (let shift = 0; ; shift += 7) {
      const b = wasm[at++]!;
      v |= (b & 127) << shift;
      if (b < 128) return v >>> 0;
    }
  };
  while (at < wasm.length) {
    const id = wasm[at++]!;
    const size = leb();
    out.set(id, wasm.subarray(at, at + size));
    at += size;
  }
  return out;
}
/** Of each global in a module's global section: can it change? */
function globalsOf(body: Uint8Array): boolean[] {
  let at = 0;
  const leb = (): void => {
    while (body[at++]! >= 128);
  };
  let count = 0;
  for (let shift = 0; ; shift += 7) {
    const b = body[at++]!;
    count |= (b & 127) << shift;
    if (b < 128) break;
  }
  const out: boolean[] = [];
  for (let i = 0; i < count; i++) {
    at++; // its type
    out.push(body[at++] === 1);
    const op = body[at++]!;
    // i32.const, i64.const and global.get take a number of any length, f32.const 4 bytes, f64.const 8,
    // v128.const 17.
    if (op === 0x41 || op === 0x42 || op === 0x23) leb();
    else if (op === 0x43) at += 4;
    else if (op === 0x44) at += 8;
    else if (op === 0xfd) at += 17;
    else throw new Error(`an initialiser that begins with ${op}`);
    if (body[at++] !== 0x0b) throw new Error("an initialiser of one instruction");
  }
  if (at !== body.length) throw new Error("a global section of that length");
  return out;
}
test("kernels.wasm has no data, no mutable global, no memory of its own", async () => {
  const { files } = await compile(writeModel(configs.even), { ...options, quick: false });
  const s = sections(files.get("kernels.wasm")!);
  assert.is(s.has(11), false, "data section");
  assert.is(s.has(5), false, "memory section");
  const constant = globalsOf(s.get(6) ?? new Uint8Array([0]));
  assert.ok(
    constant.every((mutable) => !mutable),
    `mutable globals: ${constant}`,
  );
  // Every global of a section is looked at, whatever its type:
  // (global i32 (i32.const 300)) (global (mut f64) (f64.const …)) (global (mut i64) (i64.const -1))
  const two = [
    3, 0x7f, 0, 0x41, 0xac, 2, 0x0b, 0x7c, 1, 0x44, 1, 1, 1, 1, 1, 1, 1, 1, 0x0b, 0x7e, 1, 0x42, 0x7f, 0x0b,
  ];
  assert.equal(globalsOf(Uint8Array.from(two)), [false, true, true]);
});

test("the import rule holds", () => assert.equal(violations(), []));

test("the strict runner fails: no run(), throwing hook, empty file, crash, narrowing", async () => {
  const dir = scratch();
  const suitePath = new URL("./support/suite.ts", import.meta.url).href;
  const head = `import { suite } from ${JSON.stringify(suitePath)};\nconst test = suite("x");\n`;
  const narrowed = "on" + "ly";
  const cases: Record<string, [string, boolean]> = {
    good: [`${head}test("a", () => {});\ntest.run();`, true],
    forgotten: [`${head}test("a", () => {});`, false],
    "half forgotten": [
      `${head}test("a", () => {});\ntest.run();\nconst other = suite("y");\nother("b", () => {});`,
      false,
    ],
    hook: [`${head}test("a", () => {});\ntest.after(() => { throw new Error("no"); });\ntest.run();`, false],
    empty: ["export {};", false],
    crash: [`${head}test("a", () => {});\ntest.run();\nthrow new Error("no");`, false],
    hanging: [`${head}test("a", () => new Promise(() => {}));\ntest.run();`, false],
    ends: [`${head}test("a", () => process.exit(0));\ntest.run();`, false],
    "good again": [`${head}test("a", () => {});\ntest.run();`, true],
    failing: [`${head}test("a", () => { throw new Error("no"); });\ntest.run();`, false],
    narrowed: [`import { test } from "uvu";\ntest.${narrowed}("a", () => {});\ntest.run();`, false],
  };
  const lane = new Lane();
  for (const [name, [source, ok]] of Object.entries(cases)) {
    const path = `${dir}/${name.replace(" ", "-")}.ts`;
    writeFileSync(path, source);
    const r = await lane.run(path);
    assert.is(r.registered > 0 && r.passed === r.registered, ok, `${name}: ${r.passed} of ${r.registered}`);
  }
  lane.end();
});

test("a policy only grants: first come, first served gives the same tokens and weights, later", async () => {
  const runs = [];
  for (const policy of ["coserve", "fcfs"]) {
    await using engine = await engineOf(configs.even, { policy });
    const job = await engine.finetune({ name: "j", data: batchOf(128), steps: 2 });
    const said = await Promise.all(
      [0, 1, 2].map((i) => collect(engine, { prompt: idsOf(`p${i}`, 10 + i, 128), maxTokens: 9 })),
    );
    const { losses } = await job.done;
    runs.push({ said, losses, content: contentBits(engine, "j") });
  }
  assert.equal(runs[0], runs[1]);
});

test("half floats: every bit pattern survives, rounding is to nearest even", () => {
  for (let h = 0; h < 65536; h++) {
    const x = halfToFloat(h);
    if (Number.isFinite(x)) assert.is(floatToHalf(x) & 0xffff, h === 0x8000 ? 0x8000 : h, `half ${h}`);
  }
  assert.is(floatToHalf(1 + 2 ** -11), 0x3c00);
  assert.is(floatToHalf(1 + 3 * 2 ** -11), 0x3c02);
  assert.is(floatToHalf(65520), 0x7c00);
});

test("safetensors: what is written is read, and padding keeps data aligned", () => {
  const data = Float32Array.from([1, -2.5, 3e-9]);
  const file = encode([
    { name: "a", shape: [3], dtype: "F32", data },
    { name: "b.c", shape: [0], dtype: "F32", data: new Float32Array(0) },
  ]);
  const { tensors } = parseHeader(file, file.length, "x");
  assert.equal(
    tensors.map((t) => [t.name, t.end - t.start, t.start % 8]),
    [
      ["a", 12, 0],
      ["b.c", 0, 4],
    ],
  );
  assert.is(bits(new Float32Array(file.slice(tensors[0]!.start, tensors[0]!.end).buffer)), bits(data));
});
test.run();
