/** The Wasm target: threads, its module's shape, storage formats, relaxed SIMD, limits. */
import { spawnSync } from "node:child_process";
import { createHash } from "node:crypto";
import { readFileSync, writeFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import * as assert from "uvu/assert";
import { compile, compileTo } from "../compiler/compile.ts";
import { compileKernels } from "../compiler/emit/asc.ts";
import { prelude } from "../compiler/emit/assemblyscript.ts";
import { formats, pack, restore, store, unpack } from "../runtime/formats.ts";
import { encode } from "../runtime/safetensors.ts";
import { hasRelaxed, openWasm } from "../runtime/wasm.ts";
import { type Engine, type FinetuneOptions, load, WeftError } from "../sdk/index.ts";
import {
  batchOf,
  bits,
  bundle,
  collect,
  configs,
  contentBits,
  engineOf,
  idsOf,
  s2ftOdd,
  small,
} from "./support/engines.ts";
import { suite } from "./support/suite.ts";
import { scratch, tensorsOf, writeModel } from "./support/tiny.ts";

const test = suite("wasm");
const vocab = 128;
const job: FinetuneOptions = {
  name: "job",
  data: batchOf(vocab),
  steps: 2,
  batchSize: 5,
  learningRate: 5e-3,
  dropout: 0.1,
  seed: 5,
  rank: 4,
};
const code = async (want: string, f: () => unknown, says: RegExp): Promise<void> => {
  const e = await Promise.resolve()
    .then(f)
    .then(
      () => null,
      (e: unknown) => e,
    );
  assert.instance(e, WeftError);
  assert.is((e as WeftError).code, want);
  assert.match(String((e as WeftError).message), says);
};

/** What a served and trained engine says: tokens and logprobs while jobs run, their losses, their weights. */
async function everything(engine: Engine, methods: readonly string[]): Promise<unknown[]> {
  const out: unknown[] = [];
  for (const method of methods) {
    const j = await engine.finetune({
      ...job,
      name: method,
      method,
      ...(method !== "lora" && { dropout: 0 }),
    });
    const said = await Promise.all(
      [0, 1, 2].map((i) =>
        collect(engine, { prompt: idsOf(`threads${i}`, 5 + i * 17, vocab), maxTokens: 6, temperature: 0 }),
      ),
    );
    const { losses } = await j.done;
    out.push(said, losses, method === "full" ? null : contentBits(engine, method));
    const { logits } = await engine.score(idsOf("after", 41, vocab), {
      ...(method !== "full" && { adapter: method }),
      logits: true,
    });
    out.push(logits!.map(bits));
  }
  return out;
}

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
test("kernels.wasm: no data section, no start function, no mutable globals, one import: a shared memory", async () => {
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
    const at = { cls: "saved", group: 0, offset: 0 } as const;
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

test("a memory plan past 4 GiB is refused before anything is allocated, with what takes the room", async () => {
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
    /at least \d{10} bytes \(kv 409\d MiB, .*int8/s,
  );
});

for (const target of ["wasm", "webgpu"] as const)
  for (const format of ["q4", "int8", "f16", "bf16"] as const)
    test(`${format} on ${target} computes what f32 of the same values does, bit for bit, serving and training`, async () => {
      const model = (round: boolean): string => {
        const dir = writeModel(configs.odd);
        const tensors = tensorsOf(configs.odd).map((t) => {
          const [n, k] = t.shape as [number, number];
          if (!round || t.shape.length < 2) return t;
          return { ...t, data: restore(format, store(format, t.data as Float32Array, n, k, t.name), n, k) };
        });
        writeFileSync(`${dir}/model.safetensors`, encode(tensors));
        return dir;
      };
      const methods = target === "wasm" ? ["lora", "dora", "s2ft"] : ["lora"];
      const said: unknown[] = [];
      const sizes: number[] = [];
      for (const [dir, as] of [
        [model(false), format],
        [model(true), "f32"],
      ] as const) {
        const out = `${scratch()}/b.weft`;
        const m = await compileTo(dir, out, {
          targets: [target],
          train: methods,
          methods,
          format: as,
          quick: true,
          capacities: { ...small, s2ft: s2ftOdd },
        });
        sizes.push(m.tensors.reduce((n, t) => n + t.bytes, 0));
        await using engine = await load(out, { device: target === "wasm" ? "wasm" : "software" });
        said.push(await everything(engine, methods));
      }
      assert.equal(said[0], said[1]);
      assert.ok(sizes[0]! < sizes[1]! * { q4: 0.17, int8: 0.28, f16: 0.51, bf16: 0.51 }[format], `${sizes}`);
    });

test("matrices are packed when a bundle is compiled: a CPU holds the bytes of its files; wider panels hold the same values", async () => {
  for (const format of formats) {
    const out = `${scratch()}/b.weft`;
    const m = await compileTo(writeModel(configs.odd), out, {
      targets: ["wasm"],
      format,
      quick: true,
      capacities: small,
    });
    await using engine = await load(out, { device: "wasm" });
    const { device } = engine.core;
    for (const [name, path] of Object.entries(m.checkpoint.layer)) {
      const p = device.plan.layerParams.find((p) => p.name === name)!;
      const t = m.tensors.find((t) => t.name === path.replace("{l}", "1"))!;
      const words = await device.read({ cls: "weights", group: 1, offset: p.offset, words: t.bytes / 4 });
      const file = readFileSync(`${out}/${t.shard}`).subarray(t.start, t.start + t.bytes);
      assert.ok(Buffer.from(words.buffer).equals(file), `${format} ${name}`);
    }
    for (const [n, k] of [
      [5, 77],
      [8, 32],
      [41, 33],
    ] as const) {
      const values = Float32Array.from(idsOf(`panels ${n}`, n * k, 1000), (x) => x / 500 - 1);
      const stored = store(format, values, n, k, "t");
      const wide = pack(format, stored, n, k, 16);
      assert.equal(
        unpack(format, new Float32Array(wide.buffer), n, k, 16),
        restore(format, stored, n, k),
        `${format} ${n} × ${k}`,
      );
      // From an address that is no multiple of four.
      const moved = new Uint8Array(stored.length + 1);
      moved.set(stored, 1);
      assert.equal(pack(format, moved.subarray(1), n, k, 16), wide);
      if (format === "f32") assert.equal(restore(format, stored, n, k), values);
    }
  }
});

test("int8: rounding to the nearest of 127 steps, scales upwards; what needs the values themselves is refused by name", async () => {
  const [n, k] = [5, 77];
  const values = Float32Array.from(
    idsOf("steps", n * k, 100_000),
    (x, i) => (x / 50_000 - 1) * 10 ** ((i % 7) - 4),
  );
  const got = restore("int8", store("int8", values, n, k, "t"), n, k);
  for (let row = 0; row < n; row++)
    for (let b = 0; b < k; b += 32) {
      const at = Array.from({ length: Math.min(32, k - b) }, (_, i) => row * k + b + i);
      const step = Math.max(...at.map((i) => Math.abs(values[i]!))) / 127;
      // Half a step, and what the scale's eleven bits add to it.
      for (const i of at)
        assert.ok(
          Math.abs(got[i]! - values[i]!) <= step * 0.5 * (1 + 2 ** -10) + 2 ** -25,
          `${values[i]} became ${got[i]}, step ${step}`,
        );
    }
  assert.equal(
    [...restore("int8", store("int8", got, n, k, "t"), n, k)],
    [...got],
    "values of int8 stay as they are",
  );
  await using engine = await engineOf(configs.even, { format: "int8" });
  await (await engine.finetune(job)).done;
  await code("WEFT_ADAPTER", () => engine.merge("job"), /int8/);
  await code(
    "WEFT_OPTION",
    () => compile(writeModel(configs.even), { train: ["full"], format: "int8" }),
    /full/,
  );
  await code(
    "WEFT_OPTION",
    () => compile(writeModel(configs.even), { format: "int4" as never }),
    /f32, f16, bf16, int8 or q4/,
  );
});

test("bf16: values of a bf16 checkpoint stay as they are, others round to nearest even, none beyond its range", async () => {
  const bits = Uint32Array.from({ length: 2 ** 16 }, (_, h) => h << 16).filter(
    (b) => (b & 0x7f800000) !== 0x7f800000,
  );
  const all = new Float32Array(bits.buffer);
  const kept = restore("bf16", store("bf16", all, all.length, 1, "t"), all.length, 1);
  assert.equal(new Uint32Array(kept.buffer), bits);
  const one = (x: number): number => restore("bf16", store("bf16", Float32Array.of(x), 1, 1, "t"), 1, 1)[0]!;
  const step = 2 ** -7;
  for (const [x, want] of [
    [1 + step / 2, 1],
    [1 + step / 2 + 2 ** -20, 1 + step],
    [1 + (3 * step) / 2, 1 + 2 * step],
    [-(1 + step / 2 - 2 ** -20), -1],
    [2 ** -133 * 1.25, 2 ** -133],
  ] as const)
    assert.is(one(x), want, String(x));
  const payload = new Float32Array(Uint32Array.of(0x7fffffff).buffer)[0]!;
  for (const x of [3.4e38, -3.4e38, Infinity, NaN, payload])
    await code("WEFT_WEIGHTS", () => one(x), /bf16.*element 0/s);
  // A checkpoint in bf16 is served in bf16 with the logits of f32.
  const dir = writeModel(configs.odd);
  const rounded = tensorsOf(configs.odd).map((t) => ({ ...t, data: (t.data as Float32Array).map(one) }));
  writeFileSync(`${dir}/model.safetensors`, encode(rounded));
  const said: unknown[] = [];
  for (const format of ["f32", "bf16"] as const) {
    const out = `${scratch()}/b.weft`;
    await compileTo(dir, out, { targets: ["wasm"], format, quick: true, capacities: small });
    await using engine = await load(out, { device: "wasm" });
    said.push((await engine.score(idsOf("bf16", 30, 259), { logits: true })).logits);
  }
  assert.equal(said[1], said[0]);
});

test("exp, log and tanh keep their stated errors", async () => {
  const kernels = await compileKernels(`${prelude()}
${["exp", "log", "tanh"].map((f) => `export function ${f}_(at: usize, n: i32): void { for (let i: usize = 0; i < <usize>n * 4; i += 16) v128.store(at + i, ${f}4(v128.load(at + i))); }`).join("\n")}`);
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

test("relaxed SIMD: taken where it can be, near the exact kernels, batch-invariant, and told apart by checkpoints", () => {
  const script = fileURLToPath(new URL("./support/relaxed.ts", import.meta.url));
  // Node 20 has it behind a flag, which later ones do not know.
  const flags = hasRelaxed() ? [] : ["--experimental-wasm-relaxed-simd"];
  const child = spawnSync(process.execPath, [...flags, "--import", "tsx", script], {
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
