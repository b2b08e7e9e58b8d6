/** The Wasm target: threads, its module's shape, relaxed SIMD, limits. */
import { spawnSync } from "node:child_process";
import { createHash } from "node:crypto";
import * as assert from "uvu/assert";
import { compile } from "../compiler/compile.ts";
import { compileKernels } from "../compiler/emit/asc.ts";
import { prelude } from "../compiler/emit/assemblyscript.ts";
import { hasRelaxed, openWasm } from "../runtime/wasm.ts";
import { type Engine, load } from "../sdk/index.ts";
import { code } from "./support/code.ts";
import { bits, bundle, collect, configs, engineOf, idsOf, s2ftOdd, small } from "./support/engines.ts";
import { everything, job } from "./support/everything.ts";
import { program } from "./support/program.ts";
import { suite } from "./support/suite.ts";
import { writeModel } from "./support/tiny.ts";

const test = suite("wasm");
const vocab = 128;
test("law 4 for threads: one, two and three compute the same bits, serving and training", async () => {
  const methods = ["lora", "s2ft", "dora", "sparse", "series", "prefix"];
  for (const [options, list] of [
    [{ train: methods, methods, capacities: { s2ft: s2ftOdd } }, methods],
    [{ train: ["full"] }, ["full"]],
  ] as const) {
    let one: unknown[] | null = null;
    for (const threads of [1, 2, 3]) {
      await using engine = await engineOf(configs.odd, { ...options, load: { threads } });
      assert.match(engine.device.name, new RegExp(`${threads} thread`));
      const all = list[0] === "full" ? await full(engine) : await everything(engine, list);
      if (one) assert.equal(all, one, `${threads} threads, ${list.join(", ")}`);
      else one = all;
    }
  }
});
async function full(engine: Engine): Promise<unknown[]> {
  const { rank: _, dropout: __, ...own } = job;
  const j = await engine.finetune({ ...own, name: "full", method: "full" });
  const { losses } = await j.done;
  const { logits } = await engine.score(idsOf("after", 41, vocab), { logits: true });
  return [losses, logits!.map(bits)];
}

test("what is cleared is zeros, whatever was there, and nothing beside it", async () => {
  await using engine = await engineOf(configs.even);
  const { device } = engine.core;
  const words = 50_000;
  const all = { space: "arena", group: 0, offset: 3, words } as const;
  for (const [from, n] of [
    [0, words],
    [17, 40_001],
    [16_381, 3],
    [49_999, 1],
  ] as const) {
    // Runs of zeros of more than a page, and what is none at odd places.
    const before = new Uint32Array(words).map((_, i) => (i % 20_011 < 700 ? i + 1 : 0));
    device.write(all, before);
    device.clear({ ...all, offset: all.offset + from, words: n });
    const after = new Uint32Array((await device.read(all)).buffer);
    assert.equal(
      after,
      before.map((x, i) => (i >= from && i < from + n ? 0 : x)),
      `${n} from ${from}`,
    );
  }
});

/** Sections of a module, and what its imports and globals are. */
function parse(module: Uint8Array): { sections: number[]; imports: string[]; mutable: number } {
  let at = 8;
  const number = (): number => {
    let n = 0;
    for (let shift = 0; ; shift += 7) {
      const b = module[at++]!;
      n += (b & 127) * 2 ** shift;
      if (b < 128) return n;
    }
  };
  const name = (): string => {
    const n = number();
    at += n;
    return new TextDecoder().decode(module.subarray(at - n, at));
  };
  const sections: number[] = [];
  const imports: string[] = [];
  let mutable = 0;
  while (at < module.length) {
    const section = module[at++]!;
    const end = number() + at;
    sections.push(section);
    if (section === 2)
      for (let n = number(); n; n--) {
        const path = `${name()}.${name()}`;
        assert.is(module[at++], 2, `${path} is a memory`);
        const flags = number();
        number();
        imports.push(`${path} ${flags === 3 ? "shared" : "not shared"} ${number()}`);
      }
    if (section === 6)
      for (let n = number(); n; n--) {
        at++;
        mutable += module[at++]!;
        // An initial value: one constant and the end.
        at++;
        number();
        assert.is(module[at++], 11);
      }
    at = end;
  }
  return { sections, imports, mutable };
}
test("kernels.wasm: no data, start function or mutable globals; one import, a shared memory", async () => {
  const methods = [
    "lora",
    "s2ft",
    "dora",
    "hydra",
    "ia3",
    "series",
    "parallel",
    "prefix",
    "prompt",
    "sparse",
    "lora_bias",
  ];
  const { files } = await compile(writeModel(configs.even), {
    targets: ["wasm"],
    train: [...methods, "full"],
    methods,
    capacities: small,
    relaxed: true,
    quick: true,
  });
  for (const file of ["kernels.wasm", "kernels.relaxed.wasm"]) {
    const { sections, imports, mutable } = parse(files.get(file)!);
    assert.equal(imports, ["env.memory shared 65536"], file);
    for (const [id, what] of [
      [8, "start function"],
      [9, "table"],
      [11, "data section"],
      [12, "data count"],
    ] as const)
      assert.is(sections.includes(id), false, `${file} has a ${what}`);
    assert.is(mutable, 0, file);
  }
});

test("a thread that joins mid-run changes no byte: of the kernels' memory, or of the host's", async () => {
  const memories: WebAssembly.Memory[] = [];
  const Real = WebAssembly.Memory;
  WebAssembly.Memory = class extends Real {
    constructor(d: WebAssembly.MemoryDescriptor) {
      super(d);
      memories.push(this);
    }
  } as typeof WebAssembly.Memory;
  try {
    await using engine = await engineOf(configs.even, { load: { threads: 2 } });
    assert.is(memories.length, 1);
    const { core } = engine;
    const { files } = await compile(writeModel(configs.even), {
      targets: ["wasm"],
      quick: true,
      capacities: small,
    });
    const module = await WebAssembly.compile(files.get("kernels.wasm")! as BufferSource);
    const hash = (): string[] =>
      [memories[0]!.buffer, core.host.exports.memory.buffer].map((b) =>
        createHash("sha256").update(new Uint8Array(b)).digest("hex"),
      );
    const prompt = idsOf("join", 9, vocab);
    const alone = await collect(engine, { prompt, maxTokens: 8, temperature: 0 });
    const run = core.device.run.bind(core.device);
    let joined = 0;
    (core.device as { run: typeof run }).run = async (...args) => {
      if (joined < 3) {
        const before = hash();
        await WebAssembly.instantiate(module, { env: { memory: memories[0]! } });
        assert.equal(hash(), before);
        joined++;
      }
      return run(...args);
    };
    assert.equal(await collect(engine, { prompt, maxTokens: 8, temperature: 0 }), alone);
    assert.is(joined, 3);
  } finally {
    WebAssembly.Memory = Real;
  }
});

test("without memory that can be shared there is one thread, and asking for two says why not", async () => {
  const path = await bundle(configs.even, {});
  const Shared = globalThis.SharedArrayBuffer;
  await using engine = await load(path, { device: "wasm", threads: 2 });
  const want = await collect(engine, { prompt: idsOf("unshared", 9, vocab), maxTokens: 8, temperature: 0 });
  try {
    (globalThis as { SharedArrayBuffer: unknown }).SharedArrayBuffer = undefined;
    await code("WEFT_DEVICE", () => load(path, { device: "wasm", threads: 2 }), /isolated/);
    await using alone = await load(path, { device: "wasm" });
    assert.match(alone.device.name, /1 thread/);
    assert.equal(
      await collect(alone, { prompt: idsOf("unshared", 9, vocab), maxTokens: 8, temperature: 0 }),
      want,
    );
  } finally {
    globalThis.SharedArrayBuffer = Shared;
  }
});

test("threads: bad numbers, a kernel that traps, and what is written while a list is played", async () => {
  const path = await bundle(configs.even, {});
  for (const threads of [0, -1, 1.5, 65])
    await code("WEFT_OPTION", () => load(path, { device: "wasm", threads }), /threads/);
  const { manifest, files } = await compile(writeModel(configs.even), {
    targets: ["wasm"],
    quick: true,
    capacities: small,
  });
  for (const threads of [1, 2]) {
    const device = await openWasm(manifest, files.get("kernels.wasm")!, { threads });
    const at = { space: "saved", group: 0, offset: 0 } as const;
    device.write(at, Float32Array.of(1, 2));
    const list = device.run(0, new Int32Array(0), new Uint32Array(1), [{ ...at, words: 2 }]);
    const data = Float32Array.of(3, 4);
    device.write(at, data);
    data.fill(9);
    assert.equal([...(await list)[0]!], [1, 2], "a list reads what was there at its end");
    assert.equal(
      [...(await device.read({ ...at, words: 2 }))],
      [3, 4],
      "and what is written after it comes after it",
    );
    device.dispose();
  }
  const broken = await openWasm(manifest, files.get("kernels.wasm")!, { threads: 2 });
  await code(
    "WEFT_DEVICE",
    () => broken.run(0, Int32Array.of(99999, 0, 0, 1, 1, 1), new Uint32Array(1), []),
    /thread 0|thread 1/,
  );
  await code(
    "WEFT_DEVICE",
    () => broken.run(0, Int32Array.of(0, 0, 0, 1, 1, 1), new Uint32Array(1), []),
    /thread/,
  );
  broken.dispose();
});

test("a memory plan past 4 GiB is refused before anything is allocated", async () => {
  const { manifest, files } = await compile(writeModel(configs.even), {
    targets: ["wasm"],
    quick: true,
    capacities: small,
  });
  const plan = manifest.targets.wasm!;
  const large = {
    ...manifest,
    targets: { wasm: { ...plan, room: { ...plan.room, block: 2 ** 29 / 4 } } },
  };
  await code(
    "WEFT_CAPACITY",
    () => openWasm(large, files.get("kernels.wasm")!),
    /at least 4\.\d\d GB \(kv 4\.\d\d GB, .*int8/s,
  );
});

test("exp, log and tanh keep their stated errors", async () => {
  const over4 = (f: string): string => `
export function ${f}_(at: usize, n: i32): void {
  for (let i: usize = 0; i < <usize>n * 4; i += 16) v128.store(at + i, ${f}4(v128.load(at + i)));
}`;
  const kernels = await compileKernels(`${prelude()}${["exp", "log", "tanh"].map(over4).join("")}`, {
    cache: true,
    quick: true,
  });
  const memory = new WebAssembly.Memory({ initial: 64, maximum: 64, shared: true });
  const { instance } = (await WebAssembly.instantiate(kernels as BufferSource, {
    env: { memory },
  })) as unknown as { instance: WebAssembly.Instance };
  const n = 200_000;
  const floats = new Float32Array(memory.buffer, 1024, n);
  const over = (
    name: string,
    input: (u: number) => number,
    exact: (x: number) => number,
    error: (got: number, want: number) => number,
    limit: number,
  ): void => {
    const xs = Float32Array.from({ length: n }, (_, i) => input(i / (n - 1)));
    floats.set(xs);
    (instance.exports[`${name}_`] as (at: number, n: number) => void)(1024, n);
    for (let i = 0; i < n; i++)
      if (!(error(floats[i]!, exact(xs[i]!)) < limit))
        assert.unreachable(`${name}(${xs[i]}) is ${floats[i]}, exactly ${exact(xs[i]!)}`);
  };
  over(
    "exp",
    (u) => -87 + 175 * u,
    Math.exp,
    (a, b) => Math.abs(a - b) / b,
    2e-7,
  );
  over(
    "log",
    (u) => 2 ** (-125 + 252 * u),
    Math.log,
    (a, b) => Math.abs(a - b) / Math.max(1, Math.abs(b)),
    2e-7,
  );
  over(
    "log",
    (u) => 0.5 + u,
    Math.log,
    (a, b) => Math.abs(a - b),
    2e-7,
  );
  over(
    "tanh",
    (u) => -12 + 24 * u,
    Math.tanh,
    (a, b) => Math.abs(a - b),
    2e-7,
  );
});

test("relaxed SIMD: taken where it can be, near exact, batch-invariant, told apart by checkpoints", () => {
  // Node 20 has it behind a flag, which later ones do not know.
  const flags = hasRelaxed() ? [] : ["--experimental-wasm-relaxed-simd"];
  const child = spawnSync(process.execPath, [...flags, ...program("tests/support/relaxed.ts")], {
    encoding: "utf8",
    env: { ...process.env, NODE_OPTIONS: "" },
  });
  assert.is(child.status, 0, child.stderr);
  const r = JSON.parse(child.stdout.trim().split("\n").at(-1)!) as Record<string, unknown>;
  assert.equal(r, {
    taken: "wasm relaxed",
    forced: "wasm",
    invariance: "verified",
    same: false,
    near: true,
    threads: true,
    resumed: "WEFT_CONFLICT",
    numerics: true,
  });
});
test.run();
