/**
 * npm run -s bench -- isa [--chip navi31,gfx1201] [--shape llama-1b,…] [--formats f32,f16,q4]
 * [--products f32,integers,matrix] [--all] [--json FILE]: what AMD's compiler makes of every WGSL kernel, on
 * a machine without a GPU. Gates are printed with the kernels that miss them; exit status 1 when one does.
 * `--products`: what they are made of, integers of formats that have them, and matrix units on chips whose
 * driver has them. Default: f32.
 */
import { writeFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { formatOf, isForOne, type ParamEntry, type ProgramEntry, packedWords } from "../runtime/bundle.ts";
import { lacksHead, type Unit, unitHeads, withHead } from "../runtime/matrix.ts";
import type { Products } from "../runtime/products.ts";
import { compileFor, type Isa, missing, unitFor } from "./isa/radv.ts";
import { type Config, type Kernels, kernelsOf, shapes } from "./isa/shape.ts";
import { table } from "./measure.ts";

const story = fileURLToPath(new URL("../examples/model/story", import.meta.url));

/** What a kernel is for, as gates tell kernels apart. */
const families = {
  /** Products of matrix units, of few rows and of many. */
  units: /^units /,
  /** Products of few rows: bound by the bandwidth of weights. */
  gemv: /^linear .*few/,
  /** Products of many. */
  gemm: /^linear(_t)? /,
  decode: /^attend .*(few|merge)/,
  attention: /^attend/,
  other: /^/,
} as const;
type Family = keyof typeof families;
interface Gate {
  readonly what: string;
  readonly of: readonly Family[];
  readonly holds: (k: Isa) => boolean;
}
const all = Object.keys(families) as Family[];
const gates: readonly Gate[] = [
  { what: "no spills", of: all, holds: (k) => k.spills === 0 },
  { what: "no scratch", of: all, holds: (k) => k.scratch === 0 },
  { what: "occupancy of at least 16", of: ["gemv", "decode", "other"], holds: (k) => k.occupancy >= 16 },
  { what: "occupancy of at least 8", of: ["units", "gemm", "attention"], holds: (k) => k.occupancy >= 8 },
  { what: "FMA at least 0.6 of the main loop", of: ["gemm"], holds: (k) => k.fmaShare >= 0.6 },
  { what: "units make 0.9 of the main loop", of: ["units"], holds: (k) => k.unitShare >= 0.9 },
  { what: "at least 4 loads of 16 bytes in flight", of: ["gemv"], holds: (k) => k.loads >= 4 },
];

interface Row extends Isa {
  readonly kernel: string;
  readonly family: Family;
}
/** Of a model, its kernels by distinct text, as pipelines are made. */
async function rowsOf({ texts }: Kernels, chip: string, unit: Unit | null): Promise<Row[]> {
  // What CPUs take in place of tiles runs on no GPU.
  const taken = [...texts].filter(([name]) => !/(_plain(_\d+)?|_quads|^units)$/.test(name));
  const distinct = new Map(taken.map(([name, text]) => [text.slice(text.indexOf("\n")), name]));
  const names = [...distinct.values()];
  const isa = await compileFor(
    chip,
    names.map((name) => withHead(texts.get(name)!, texts.get(unitHeads.native) ?? "", unit)),
    unit,
  );
  return names.map((kernel, i): Row => {
    const skeleton = texts.get(kernel)!.split("\n")[1]!.slice(3);
    const variant = /_(few|many|merge)(_\d+)?$/.exec(kernel)?.[1] ?? "";
    const says = `${lacksHead(texts.get(kernel)!) ? "units " : ""}${skeleton} ${variant}`;
    return { kernel, family: all.find((f) => families[f].test(says))!, ...isa[i]! };
  });
}
const worst = (a: Row, b: Row): number =>
  b.spills - a.spills ||
  b.scratch - a.scratch ||
  a.occupancy - b.occupancy ||
  b.instructions - a.instructions;

/** Of a token without adapters: launches, and bytes of weights that are read. */
function token({ plan }: Kernels, layers: number): { launches: number; bytes: number } {
  const of = (name: string): number => {
    const { launches } = plan.programs.find((p): p is ProgramEntry => p.name === name)!;
    return launches.filter((l) => !l.bits.length && isForOne(l)).length;
  };
  const words = (list: readonly ParamEntry[]): number =>
    list.reduce((n, p) => n + (p.kind === "weight" ? packedWords(p.format, p.n, p.k, plan.panel) : p.n), 0);
  return {
    launches: of("embed") + layers * of("forward") + of("head"),
    bytes: 4 * (layers * words(plan.layerParams) + words(plan.outerParams)),
  };
}

export async function main(args: string[]): Promise<void> {
  const { values: o } = parseArgs({
    args,
    options: {
      chip: { type: "string", default: "navi31,gfx1201" },
      shape: { type: "string", default: "llama-1b" },
      formats: { type: "string", default: "f32,f16,q4" },
      products: { type: "string", default: "f32" },
      all: { type: "boolean", default: false },
      json: { type: "string" },
    },
  });
  const lacks = missing();
  if (lacks) {
    console.log(lacks);
    return;
  }
  const made = o.products.split(",") as Products[];
  const models: { name: string; model: Config | string; format: string; products: Products }[] = [
    ...o.shape.split(",").flatMap((shape) =>
      o.formats.split(",").flatMap((format) => {
        const config = shapes[shape];
        if (!config) throw new Error(`--shape: one of ${Object.keys(shapes).join(", ")}`);
        const has = (p: Products): boolean => p !== "integers" || formatOf(format).wgsl.integers !== null;
        return made.filter(has).map((products) => {
          const of = products === "f32" ? "" : `, products of ${products}`;
          return { name: `${shape} ${format}${of}`, model: config, format, products };
        });
      }),
    ),
    ...(made.includes("f32")
      ? [{ name: "story f32", model: story, format: "f32", products: "f32" as const }]
      : []),
  ];
  const summary: object[] = [];
  const everything: object[] = [];
  let failed = 0;
  for (const { name, model, format, products } of models) {
    const kernels = await kernelsOf(model, { format: format as "f32", train: ["lora"], products });
    const layers = typeof model === "string" ? 0 : Number(model.num_hidden_layers);
    for (const chip of o.chip.split(",")) {
      const unit = products === "matrix" ? await unitFor(chip) : null;
      if (products === "matrix" && !unit) {
        console.log(`\n${name} on ${chip}: its driver has no matrix units`);
        continue;
      }
      const rows = (await rowsOf(kernels, chip, unit)).sort(worst);
      everything.push(...rows.map((r) => ({ model: name, chip, ...r })));
      const misses = gates.flatMap((g) => {
        const bad = rows.filter((r) => g.of.includes(r.family) && !g.holds(r));
        return bad.length ? [{ gate: g.what, kernels: bad.map((r) => r.kernel) }] : [];
      });
      failed += misses.length;
      const shown = o.all ? rows : rows.filter((r) => misses.some((m) => m.kernels.includes(r.kernel)));
      console.log(
        `\n${name} on ${chip}: ${rows.length} pipelines of ` +
          `${Object.keys(kernels.plan.kernels).length} kernels`,
      );
      const short = (n: string): string => (n.length > 60 ? `${n.slice(0, 44)}…${n.slice(-15)}` : n);
      if (shown.length)
        table([
          [
            "kernel",
            "family",
            "VGPR",
            "spill",
            "scratch",
            "occ",
            "LDS",
            "instr",
            "fma",
            "units",
            "loads",
            "ms",
          ],
          ...shown.map((r) => [
            short(r.kernel),
            r.family,
            ...[r.registers, r.spills, r.scratch, r.occupancy, r.shared, r.instructions].map(String),
            r.fmaShare.toFixed(2),
            String(r.units),
            String(r.loads),
            String(r.ms),
          ]),
        ]);
      for (const m of misses) console.log(`MISSED ${m.gate}: ${m.kernels.length} kernels`);
      summary.push({
        model: name,
        chip,
        kernels: Object.keys(kernels.plan.kernels).length,
        pipelines: rows.length,
        spilling: rows.filter((r) => r.spills > 0).length,
        scratch: rows.filter((r) => r.scratch > 0).length,
        minOccupancy: Math.min(...rows.map((r) => r.occupancy)),
        missed: Object.fromEntries(misses.map((m) => [m.gate, m.kernels.length])),
        ...(layers && { token: token(kernels, layers) }),
      });
    }
  }
  if (o.json) writeFileSync(o.json, everything.map((x) => `${JSON.stringify(x)}\n`).join(""));
  console.log(`\n${JSON.stringify({ bench: "isa", models: summary })}`);
  process.exitCode = failed ? 1 : 0;
}
