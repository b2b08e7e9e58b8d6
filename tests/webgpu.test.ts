/**
 * The WebGPU device: it says when it is gone, gives everything back, keeps its order, and loads no native
 * code that others could have planted.
 */
import { spawnSync } from "node:child_process";
import { existsSync, mkdirSync, readdirSync, readFileSync, symlinkSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { userInfo } from "node:os";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";
import * as assert from "uvu/assert";
import { compile, compileTo } from "../compiler/compile.ts";
import type { WeftError } from "../runtime/bundle.ts";
import type { Device } from "../runtime/device.ts";
import { Engine as Core } from "../runtime/engine.ts";
import { softwareDriver } from "../runtime/swiftshader.ts";
import { startJob } from "../runtime/trainer.ts";
import { openWebGpu } from "../runtime/webgpu.ts";
import { load } from "../sdk/index.ts";
import { devicesOf, ownDevices, shareDevice } from "./support/devices.ts";
import { configs, idsOf, small, tiny } from "./support/engines.ts";
import { long, rounds } from "./support/scale.ts";
import { suite } from "./support/suite.ts";
import { scratch, writeModel } from "./support/tiny.ts";

const test = suite("webgpu");
const shallow = { ...configs.even, num_hidden_layers: 1 };
const options = { targets: ["webgpu"], methods: [], capacities: small, limits: tiny, quick: true } as const;
const compiled = compile(writeModel(shallow), { ...options, train: [] });
const trained = `${scratch()}/trained.weft`;
const written = compileTo(writeModel(shallow), trained, { ...options, train: ["lora"] });

type FileOf = (name: string) => Promise<Uint8Array>;
const open = async (change: (file: FileOf) => FileOf = (file) => file): Promise<Device> => {
  const { manifest, files } = await compiled;
  return (await openWebGpu(
    manifest,
    change(async (name) => files.get(name)!),
    "software",
  ))!;
};
const errorOf = (work: Promise<unknown>): Promise<WeftError> =>
  work.then(
    () => assert.unreachable("this rejects") as never,
    (e: WeftError) => e,
  );
const codeOf = async (work: Promise<unknown>): Promise<string> => (await errorOf(work)).code;
const word = { space: "arena", group: 0, offset: 0, words: 1 } as const;

test("writes, clears, steps and reads happen in the order they were asked for", async () => {
  const device = await open();
  device.write(word, Float32Array.of(1));
  const before = [device.read(word), device.read(word)];
  device.write(word, Float32Array.of(2));
  const after = device.readAll([word, word]);
  device.clear(word);
  assert.equal(
    (await Promise.all(before)).map((x) => x[0]),
    [1, 1],
  );
  assert.equal(
    (await after).map((x) => x[0]),
    [2, 2],
  );
  assert.is((await device.read(word))[0], 0);
  await device.dispose();
});

test("lists that are encoded ahead, and in parts, are those that were asked for", async () => {
  const config = { ...configs.even, num_hidden_layers: 6 };
  const { files } = await compile(writeModel(config), { ...options, limits: {}, train: ["lora"] });
  const reader = { where: "memory", read: async (name: string) => files.get(name)! };
  const said = async (encodesAhead: boolean) => {
    const engine = await Core.open(reader, async (m, file) => {
      return (await openWebGpu(m, file, "software", { encodesAhead }))!;
    });
    const ids = (name: string, n: number): number[] => idsOf(name, n, config.vocab_size);
    const pieces = async (prompt: number[], maxTokens: number, also?: () => Promise<unknown>) => {
      const all = [];
      let beside: Promise<unknown> | undefined;
      for await (const { id, logprob } of engine.generate({ prompt, maxTokens })) {
        all.push({ id, logprob });
        if (all.length === 8) beside = also?.();
      }
      return [all, await beside];
    };
    const taught = ids("taught", 20);
    const rows = [{ input_ids: taught, labels: taught }];
    const job = { name: "notes", method: "lora", rows, steps: 1, batchSize: 1, learningRate: 0.01 };
    const answers = await pieces(ids("first", 5), 24, () =>
      Promise.all([pieces(ids("second", 9), 4), startJob(engine, job, []).done]),
    );
    const after = await pieces(ids("third", 3), 6);
    const { logprobs } = await engine.score(taught, { adapter: "notes" });
    const { ahead } = engine.device.stats;
    await engine.dispose();
    return { told: [answers[0], (answers[1] as unknown[])[0], after, [...logprobs]], ahead };
  };
  const { prototype } = GPUQueue;
  const { submit } = prototype;
  let parts = 0;
  // Both engines' kernels are the same.
  await shareDevice();
  prototype.submit = function (this: GPUQueue, list: Iterable<GPUCommandBuffer>) {
    parts++;
    return submit.call(this, list);
  } as typeof submit;
  try {
    const asked = await said(false);
    const before = parts;
    const ahead = await said(true);
    assert.equal(ahead.told, asked.told);
    assert.is(asked.ahead, 0);
    assert.ok(ahead.ahead > 8, `${ahead.ahead} lists encoded ahead`);
    assert.ok(before > 2 * 24, `${before} parts`);
  } finally {
    ownDevices();
    prototype.submit = submit;
  }
});

test("a command that does not validate ends the next step with one error, and no other", async () => {
  const device = await open();
  device.write({ ...word, offset: 2 ** 28 }, Float32Array.of(1));
  assert.is(await codeOf(device.read(word)), "WEFT_DEVICE");
  assert.is((await device.read(word)).length, 1);
  await device.dispose();
});

test("dispose waits for what was submitted; what is asked later is refused", async () => {
  const device = await open();
  device.write(word, Float32Array.of(7));
  const pending = device.read(word);
  const gone = device.dispose();
  assert.is((await pending)[0], 7);
  await gone;
  assert.is(await codeOf(device.read(word)), "WEFT_DISPOSED");
  await device.dispose();
});

test("a load that fails names why and leaves no device behind: a kernel, a file, a lost device", async () => {
  const failures: [string, RegExp, (file: FileOf, devices: readonly GPUDevice[]) => FileOf][] = [
    [
      "WEFT_DEVICE",
      /^kernel /,
      (file) => async (name) => (/embed/.test(name) ? new TextEncoder().encode("\nfn main( {}") : file(name)),
    ],
    [
      "WEFT_DEVICE",
      /^hash$/,
      (file) => async (name) => {
        if (!/head/.test(name)) return file(name);
        const { WeftError } = await import("../runtime/bundle.ts");
        throw new WeftError({ code: "WEFT_DEVICE", where: "hash", expected: "one", found: "another" });
      },
    ],
    [
      "WEFT_DEVICE_LOST",
      /device/,
      (file, devices) => async (name) => {
        devices[0]!.destroy();
        return file(name);
      },
    ],
  ];
  for (const [code, where, change] of failures)
    await devicesOf(async (devices) => {
      const e = await errorOf(open((file) => change(file, devices)));
      assert.is(e.code, code, e.message);
      assert.match(e.where, where);
      assert.is(devices.length, 1);
      assert.is((await devices[0]!.lost).reason, "destroyed");
    });
});

test("a device lost while streams and a job run: all are told, the next load works", async () => {
  await written;
  const ids = (name: string) => idsOf(name, 30, 128);
  await devicesOf(async (devices) => {
    const engine = await load(trained, { device: "software" });
    const job = await engine.finetune({
      name: "job",
      data: [{ input_ids: ids("row"), labels: ids("row") }],
      steps: 1000,
    });
    const streams = ["a", "b"].map(async (name) => {
      let n = 0;
      for await (const _ of engine.generate({ prompt: ids(name), maxTokens: 60 }))
        if (++n === 3) devices[0]!.destroy();
    });
    const codes = await Promise.all([...streams, job.done].map(codeOf));
    assert.equal(codes, ["WEFT_DEVICE_LOST", "WEFT_DEVICE_LOST", "WEFT_DEVICE_LOST"]);
    await engine.dispose();
    const again = await load(trained, { device: "software" });
    assert.is(again.core.invariance, "verified");
    assert.is((await again.score(ids("a"))).logprobs.length, 29);
    await again.dispose();
  });
});

test("devices that were let go give back their threads and their memory", async () => {
  setFlagsFromString("--expose-gc");
  const collect = runInNewContext("gc") as () => void;
  const now = async (): Promise<{ threads: number; mib: number }> => {
    // Finalizers of what a collection found run on later turns.
    for (let i = 0; i < 20; i++) {
      collect();
      await new Promise((resolve) => setImmediate(resolve));
    }
    return {
      threads: readdirSync("/proc/self/task").length,
      mib: Number(/VmRSS:\s+(\d+)/.exec(readFileSync("/proc/self/status", "utf8"))![1]) / 1024,
    };
  };
  const once = async (): Promise<void> => {
    const device = await open();
    await device.read(word);
    await device.dispose();
  };
  // Pools of the driver and of the allocator fill over some twenty devices, and then go up and down: before
  // that memory tells nothing, and only threads are counted.
  for (let i = 0; i < rounds(2, 30); i++) await once();
  const start = await now();
  const n = rounds(4, 100);
  for (let i = 0; i < n; i++) await once();
  const end = await now();
  assert.ok(end.threads <= start.threads, `${start.threads} threads, after ${n} more devices ${end.threads}`);
  if (long) assert.ok(end.mib < start.mib + 250, `${start.mib} MiB, after ${n} more devices ${end.mib}`);
});

const child = (code: string, env: NodeJS.ProcessEnv): ReturnType<typeof spawnSync> =>
  spawnSync(process.execPath, ["--import", "tsx", "--input-type=module", "-e", code], {
    cwd: fileURLToPath(new URL("..", import.meta.url)),
    env: { ...process.env, ...env },
    encoding: "utf8",
  });

test("a process may exit with a live software engine", async () => {
  await written;
  const code = `
    const { load } = await import("./sdk/index.ts");
    const engine = await load(${JSON.stringify(trained)}, { device: "software" });
    for await (const _ of engine.generate({ prompt: [1, 2, 3], maxTokens: 9 })) {
      void engine.score([1, 2, 3, 4, 5]).catch(() => {});
      setImmediate(() => process.exit(0));
    }`;
  for (let i = 0; i < rounds(1, 20); i++) {
    const { status, signal, stderr } = child(code, {});
    assert.equal([status, signal], [0, null], String(stderr));
  }
});

const root = dirname(dirname(createRequire(import.meta.url).resolve("@sparticuz/chromium")));
test("the software driver is the package's own: nothing planted is loaded", () => {
  let at = root;
  while (!existsSync(join(at, "package.json"))) at = dirname(at);
  const { version } = JSON.parse(readFileSync(join(at, "package.json"), "utf8")) as { version: string };
  const tmp = scratch();
  const planted = join(tmp, `weft-swiftshader-${version}-${userInfo().uid}`);
  mkdirSync(planted);
  writeFileSync(join(planted, "libvulkan.so.1"), "planted");
  writeFileSync(join(planted, "vk_swiftshader_icd.json"), "{}");
  const code = `
    const { openAdapter } = await import("./runtime/dawn.ts");
    const adapter = await openAdapter("software");
    console.log(JSON.stringify([adapter?.info.architecture, process.env.VK_ICD_FILENAMES ?? null]));`;
  const own = { TMPDIR: tmp, WEFT_CACHE: join(tmp, "cache"), VK_DRIVER_FILES: undefined };
  const clean = child(code, { ...own, VK_ICD_FILENAMES: undefined });
  assert.is(clean.stdout, '["swiftshader",null]\n', String(clean.stderr));
  const named = child(code, { ...own, VK_ICD_FILENAMES: "/none.json" });
  assert.is(named.stdout, '[null,"/none.json"]\n', String(named.stderr));
});

test("the driver's cached files are the package's; a cache others can write to is not used", async () => {
  const { WEFT_CACHE: kept } = process.env;
  const cache = join(scratch(), "cache");
  try {
    process.env.WEFT_CACHE = cache;
    const folder = (await softwareDriver())!;
    assert.ok(folder.startsWith(cache), folder);
    const [library, link] = [join(folder, "libvk_swiftshader.so"), join(folder, "libvulkan.so.1")];
    const [one, two] = [readFileSync(library), readFileSync(link)];
    // Changed in place; and a link to a file with the right bytes, that somebody else may change later.
    const changed = Buffer.from(one);
    changed[1000]! ^= 1;
    writeFileSync(library, changed);
    const elsewhere = join(scratch(), "elsewhere.so");
    writeFileSync(elsewhere, two);
    const { lstatSync, rmSync, chmodSync } = await import("node:fs");
    rmSync(link);
    symlinkSync(elsewhere, link);
    assert.is(await softwareDriver(), folder);
    assert.ok(readFileSync(library).equals(one), "a changed file is written anew");
    assert.ok(lstatSync(link).isFile(), "a link is replaced");
    chmodSync(folder, 0o777);
    const other = (await softwareDriver())!;
    assert.not(other.startsWith(cache), "a folder that others can write to");
    assert.is(lstatSync(other).mode & 0o777, 0o700);
  } finally {
    if (kept === undefined) delete process.env.WEFT_CACHE;
    else process.env.WEFT_CACHE = kept;
  }
});
test.run();
