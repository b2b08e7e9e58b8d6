/** Command lists: room for every launch of a step, and a host that says so where there is none. */
import * as assert from "uvu/assert";
import { adapterMethods } from "../compiler/adapters/index.ts";
import { compile } from "../compiler/compile.ts";
import { compileAssembly } from "../compiler/emit/asc.ts";
import { hostSources } from "../compiler/emit/host.ts";
import { EVENT, EVENT_WORDS, KIND, planOf, type WeftError } from "../runtime/bundle.ts";
import { Host, readHost } from "../runtime/host.ts";
import { batchOf, bits, collect, configs, engineOf, idsOf, s2ftOdd, small } from "./support/engines.ts";
import { hostFiles } from "./support/hosts.ts";
import { suite } from "./support/suite.ts";
import { writeModel } from "./support/tiny.ts";

const test = suite("commands");

/**
 * Steps of a host alone, as full as they get: every slot filled with every branch, requests of many rows,
 * both jobs over all units at once.
 */
async function longestList(
  { files, manifest }: Awaited<ReturnType<typeof compile>>,
  cls: number,
  wasm?: BufferSource,
): Promise<{ commands: number; events: number }> {
  const plan = planOf(manifest, manifest.targets.webgpu ? "webgpu" : "wasm", manifest.capacities);
  const { capacities: c, model } = manifest;
  const read = await hostFiles(files);
  const host = await Host.open(
    manifest,
    plan.metaWords,
    { families: { fewRows: 8 }, lanes: 1 },
    { ...read, ...(wasm && { wasm }) },
  );
  const { exports } = host;
  const most = { commands: 0, events: 0 };
  const idle = Array.from({ length: c.jobs }, () => true);
  for (let j = 0; j < c.jobs; j++) {
    exports.jobOpen(j, cls, 0);
    exports.jobSlot(j, 1);
  }
  for (let step = 0; step < 40; step++) {
    for (let slot = 1; slot <= c.slots; slot++)
      for (let word = 0; word < 4; word++) exports.setMask(slot, word, -1);
    // Of jobs, on slots that they hold: a request of each adapter too would be one for each slot.
    for (let i = 0; i < 3; i++) exports.submit(KIND.score, 9, 9, 0, 0, 0, 0, i % c.jobs, 0);
    idle.forEach((free, j) => {
      if (!free) return;
      host.offer(j).fill(40, 0, 3);
      exports.jobOffer(j, 3, 3, step % 2, 1);
      idle[j] = false;
    });
    const begun = exports.decide(0);
    most.events = Math.max(most.events, begun);
    const decided = host.events(0, begun).slice();
    for (let i = 0; i < decided.length; i += EVENT_WORDS) {
      const [type, a, b] = [decided[i]!, decided[i + 1]!, decided[i + 2]!];
      if (type === EVENT.start) host.tokens(b).fill(1);
      if (type !== EVENT.feed) continue;
      for (const seq of host.micro(a).subarray(0, b)) {
        host.tokens(seq).fill(1);
        host.labels(seq).fill(1);
        exports.setRow(seq, 1, 1, 0.1);
      }
    }
    const commands = exports.schedule(0, 2 ** 20, 2 ** 20);
    host.logits().fill(0, 0, c.headRows * model.vocab);
    const events = exports.commit(0);
    most.commands = Math.max(most.commands, commands);
    most.events = Math.max(most.events, events);
    const said = host.events(0, events);
    for (let i = 0; i < said.length; i += 4) if (said[i] === EVENT.microDone) idle[said[i + 1]!] = true;
  }
  return most;
}

test("a step's list has room for every launch, fused or not; past its bound it says so", async () => {
  const methods = Object.keys(adapterMethods).filter((m) => m !== "s2ft_permuted");
  const deep = { ...configs.even, num_hidden_layers: 12 };
  for (const [model, o] of [
    [deep, { fuse: false }],
    [configs.odd, { fuse: false, train: ["lora", "full"], methods, capacities: { ...small, s2ft: s2ftOdd } }],
    [configs.odd, { train: methods, capacities: { ...small, s2ft: s2ftOdd } }],
  ] as const) {
    const compiled = await compile(writeModel(model), {
      targets: ["webgpu"],
      train: ["lora"],
      capacities: small,
      quick: true,
      ...o,
    });
    const { config } = await hostFiles(compiled.files);
    const { slots, jobs, sequences, headRows } = compiled.manifest.capacities;
    const of = (name: string): number => config.numbers[`COMMANDS_OF_${name}`]!;
    const bound = {
      commands: slots * of("SLOT") + jobs * of("JOB") + of("STEP"),
      events: 2 * sequences + slots + 2 * jobs + headRows,
    };
    for (const [cls] of compiled.manifest.train.entries()) {
      const most = await longestList(compiled, cls);
      for (const what of ["commands", "events"] as const)
        assert.ok(most[what] <= bound[what], `${most[what]} of ${bound[what]} ${what}`);
    }
    if (model !== deep) continue;
    // One less than the longest list: the host refuses to write past its end.
    const most = await longestList(compiled, 0);
    const sources = hostSources(config, compiled.manifest.policy);
    for (const what of ["commands", "events"] as const) {
      const name = `MAX_${what.toUpperCase()}`;
      const line = new RegExp(`(const ${name}: i32 = ).*;`);
      assert.match(sources["config.ts"]!, line);
      const less = sources["config.ts"]!.replace(line, `$1${most[what] - 1};`);
      const wasm = await compileAssembly("host", { ...sources, "config.ts": less }, "index.ts", {
        ...{ cache: false, quick: true },
      });
      await longestList(compiled, 0, wasm as BufferSource).then(
        () => assert.unreachable(`${name} is checked`),
        (e: WeftError) => {
          assert.is(e.code, "WEFT_BUNDLE");
          assert.match(e.found, new RegExp(what));
        },
      );
    }
  }
});

test("one host for all bundles of a policy: what is a bundle's own is in host.json, which is looked at", async () => {
  const made = await Promise.all(
    [configs.even, configs.odd].map(async (model, i) => {
      const options = i ? { train: ["lora", "full"], targets: ["webgpu" as const] } : { train: ["lora"] };
      return (await compile(writeModel(model), { capacities: small, quick: true, ...options })).files;
    }),
  );
  const [one, other] = made.map((files) => bits(files.get("host.wasm")!));
  assert.is(one, other);
  assert.is.not(...(made.map((files) => bits(files.get("host.json")!)) as [string, string]));
  for (const text of [
    "",
    "{",
    "[]",
    "null",
    '{"numbers":{"A":1.5},"tables":[]}',
    '{"numbers":{},"tables":[null]}',
  ])
    await readHost(async () => new TextEncoder().encode(text)).then(
      () => assert.unreachable(text),
      (e: WeftError) => assert.equal([e.code, e.where], ["WEFT_BUNDLE", "host.json"]),
    );
});

test("unfused, twelve layers deep, two jobs: long lists change no answer", async () => {
  await using engine = await engineOf(
    { ...configs.even, num_hidden_layers: 12 },
    { fuse: false, load: { threads: 2, budget: 400, idleBudget: 400 } },
  );
  const ask = (i: number) => collect(engine, { prompt: idsOf(`p${i}`, 10, 128), maxTokens: 12 });
  const start = (name: string) =>
    engine.finetune({ name, data: batchOf(128), steps: 4, batchSize: 1, keep: "boundary", dropout: 0.1 });
  const jobs = [await start("b"), await start("c")];
  const served = await Promise.all([0, 1, 2, 3, 4, 5].map(ask));
  await Promise.all(jobs.map((j) => j.done));
  for (const [i, one] of served.entries()) assert.equal(one, await ask(i), `request ${i}`);
});
test.run();
