/**
 * Launches whose bodies are alike, as one module: products whose sums are, the text of the sum once, whatever
 * matrix it is of, and a case for each epilogue; others whose bodies are all of one text, however many they
 * have. Which of them, and the numbers in them, a launch brings for each of its bodies.
 */
import { LAUNCH_VECTORS } from "../../runtime/bundle.ts";
import { alike, chosenBy, type Fn, functionsOf, runsOf } from "../kernels/text/alike.ts";
import { type Lines, lines } from "../kernels/text/lines.ts";
import { BROUGHT, bringing, type Shared, shapeOf, share } from "./share.ts";
import { type LaunchText, moduleOf, moduleOfOne } from "./wgsl.ts";

/**
 * A body: functions `body` … that call `put_N` with N sums of an element, and an epilogue of that name; of
 * what is no product, all functions and none.
 */
interface Parts {
  readonly core: string;
  readonly arm: { readonly put: string; readonly text: string } | null;
}
function partsOf({ functions, entries, joins }: LaunchText): Parts[] {
  const all = functionsOf(functions);
  return entries.map((entry) => {
    const own = all.filter(({ name }) => name === entry || name.startsWith(`${entry}_`));
    // Which body it is: `wg` says so to those that have it, and they to others.
    const told = own.filter(({ params }) => !params.startsWith("wg:")).map(({ name }) => name);
    const arm = joins ? own.find(({ name }) => name === `${entry}_e`)! : null;
    const put = arm && `put_${arm.params.split("acc").length - 1}`;
    const textOf = ({ name, params, body }: Fn): string => {
      const [z, given] = told.includes(name) ? ["z: i32, ", "z"] : ["", "wg.z"];
      const calls = body.replace(/\b(\w+)\(/g, (call, f: string) =>
        told.includes(f) ? `${f}(${given}, ` : call,
      );
      return `fn ${name}(${z}${params}) ${calls}`
        .replaceAll(`${entry}_e(`, put ? `${put}(` : `${entry}_e(`)
        .replace(new RegExp(`\\b${entry}(?=[_(])`, "g"), "body");
    };
    const core = own.filter((f) => f !== arm).map(textOf);
    return { core: core.join("\n"), arm: arm && { put: put!, text: textOf(arm) } };
  });
}
const formOf = ({ core, arm }: Parts): string => shapeOf(core + (arm?.text ?? ""));
const numberedBy = <K>(keys: readonly K[]): ReadonlyMap<K, readonly number[]> => {
  const out = new Map<K, number[]>();
  keys.forEach((key, i) => void out.set(key, [...(out.get(key) ?? []), i]));
  return out;
};

/** Texts of bodies, those of one shape as one text, of numbers from `first` on of what a body is brought. */
function shaped(texts: readonly string[], first: number, numbers: string[][]) {
  const kinds = [...numberedBy(texts.map(shapeOf)).values()];
  const from = first + (kinds.length > 1 ? 1 : 0);
  let end = from;
  const forms = kinds.map((bodies, kind) => {
    const one = alike(
      bodies.map((i) => texts[i]!),
      (i) => `p_${from + i}`,
      BROUGHT,
    );
    bodies.forEach((i, at) => {
      if (kinds.length > 1) numbers[i]![first] = String(kind);
      for (const [j, value] of one.values[at]!.entries()) numbers[i]![from + j] = value;
    });
    end = Math.max(end, from + one.names.length);
    return one.text;
  });
  return { forms, end };
}

interface Joined {
  readonly text: string;
  /** By launch: the numbers that it brings; null: too many. */
  readonly launches: readonly (readonly number[] | null)[];
  /** How many bodies in turn go through one text, where that is known. */
  readonly runs: readonly number[] | null;
}
function joined(group: readonly LaunchText[]): Joined {
  const parts = group.map(partsOf);
  const bodies = parts.flat();
  const numbers = bodies.map((): string[] => []);
  const cores = shaped(
    bodies.map((b) => b.core),
    0,
    numbers,
  );
  let end = cores.end;
  const puts = [...numberedBy(bodies.map((b) => b.arm?.put))].flatMap(([put, which]) => {
    if (put === undefined) return [];
    const arms = shaped(
      which.map((i) => bodies[i]!.arm!.text),
      cores.end,
      which.map((i) => numbers[i]!),
    );
    end = Math.max(end, arms.end);
    return { put, ...arms };
  });
  const vectors = Math.ceil(end / 4);
  const single = parts.every((p) => p.length === 1);
  const brought = (z: string, at: number): string =>
    `launch[${single ? "" : `${z} * ${vectors} + `}${at >> 2}].${"xyzw"[at & 3]}`;
  /** Functions, each with the numbers that it needs. */
  const filled = (text: string): string[] =>
    functionsOf(text).flatMap(({ name, params, body }) => {
      const used = [...new Set([...body.matchAll(/\bp_(\d+)\b/g)].map((m) => Number(m[1])))];
      const z = params.startsWith("wg:") ? "wg.z" : "z";
      const lets = used.sort((a, b) => a - b).map((at) => `  let p_${at} = ${brought(z, at)};`);
      return `fn ${name}(${params}) {\n${[...lets, ""].join("\n")}${body.slice(2)}`.split("\n");
    });
  /** Of so many texts, which a body has, by its place in every launch; null: launches differ. */
  const placed = (at: number): readonly string[] | null => {
    let from = 0;
    const each = parts.map((own) => numbers.slice(from, (from += own.length)).map((given) => given[at]!));
    return each.every((of) => of.join() === each[0]!.join()) ? each[0]! : null;
  };
  const cases = (calls: readonly string[], z: string, at: number): Lines => {
    if (calls.length === 1) return calls;
    const known = placed(at);
    const of = (i: number): string =>
      known ? known.flatMap((kind, z) => (kind === String(i) ? [z] : [])).join(", ") : String(i);
    return lines`
      switch ${known ? chosenBy(z) : brought(z, at)} {
        ${calls.map((call, i) => `case ${of(i)}: { ${call} }`)}
        default: {}
      }`;
  };
  const epilogues = puts.flatMap(({ put, forms }): Lines => {
    const [, params] = /\((.*)\)/.exec(forms[0]!)!;
    if (forms.length === 1) return filled(forms[0]!);
    const names = [...params!.matchAll(/(\w+):/g)].map((m) => m[1]).join(", ");
    return lines`
      ${forms.flatMap((form, i) => filled(form.replace(put, `${put}_${i}`)))}
      fn ${put}(${params!}) {
        ${cases(
          forms.map((_, i) => `${put}_${i}(${names});`),
          "z",
          cores.end,
        )}
      }`;
  });
  const several = cores.forms.length > 1;
  const sums = cores.forms.flatMap((form, i) =>
    filled(several ? form.replace(/\bbody(?=[_(])/g, `body_of_${i}`) : form),
  );
  const select = cases(
    cores.forms.map((_, i) => `body${several ? `_of_${i}` : ""}(wg, lane);`),
    "wg.z",
    0,
  );
  const kinds = bodies.map(formOf);
  const runs = group[0]!.apart ? runsOf(kinds.slice(0, parts[0]!.length)) : null;
  let at = 0;
  const launches = parts.map((own) => {
    const each = own.map(() => {
      const given = numbers[at++]!;
      return Array.from({ length: single ? end : 4 * vectors }, (_, i) => Number(given[i] ?? 0));
    });
    return each.length * vectors > LAUNCH_VECTORS ? null : each.flat();
  });
  const text = moduleOf(group, [...epilogues, ...sums].join("\n"), select);
  return { text: bringing(text), launches, runs };
}

/**
 * Epilogues of a module, at most, where no launch alone has more: compilers have a copy of all of them for
 * each row that a lane computes.
 */
const MOST_ARMS = 4;
/** Modules of all launches: products joined where they can be, others where they are one but for numbers. */
export function modulesOf(launches: readonly LaunchText[]): Shared & {
  /** By kernel: how many of its bodies in turn go through one text; of others a text is for all. */
  readonly runs: ReadonlyMap<string, readonly number[]>;
} {
  const left: LaunchText[] = [];
  const keys = launches.map((l, i) => {
    const { joins, apart, lanes, shared, written, cache } = l;
    const parts = partsOf(l);
    const forms = joins && !apart ? parts.map(({ core }) => shapeOf(core)) : parts.map(formOf);
    const of = joins && apart ? forms : [...new Set(forms)].sort();
    // What is no product is joined as one text that has all functions, or not at all.
    const whole =
      functionsOf(l.functions).length === parts.reduce((n, { core }) => n + functionsOf(core).length, 0);
    const fits = joins || (whole && of.length === 1);
    return JSON.stringify(fits ? [joins, lanes, shared, written, joins || cache?.type, of] : i);
  });
  /** Launches of one sum, as many at once as have MOST_ARMS epilogues together. */
  function fewArms(which: readonly number[]): number[][] {
    const { apart, joins } = launches[which[0]!]!;
    // A pipeline has one body of these.
    if (apart || !joins) return [[...which]];
    const out: { launches: number[]; arms: Set<string> }[] = [];
    for (const i of which) {
      const own = partsOf(launches[i]!).map(({ arm }) => shapeOf(arm!.text));
      const fit = out.find(({ arms }) => new Set([...arms, ...own]).size <= MOST_ARMS);
      const to = fit ?? { launches: [], arms: new Set<string>() };
      if (!fit) out.push(to);
      to.launches.push(i);
      for (const arm of own) to.arms.add(arm);
    }
    return out.map(({ launches }) => launches);
  }
  const of = new Map<string, { module: string; launch: readonly number[] }>();
  const runs = new Map<string, readonly number[]>();
  const modules = [...numberedBy(keys).values()].flatMap(fewArms).flatMap((which) => {
    const all = which.map((i) => launches[i]!);
    // One text alone needs to be brought nothing.
    if (all.length === 1 && !all[0]!.joins) {
      left.push(all[0]!);
      return [];
    }
    const fits = joined(all).launches;
    const group = all.filter((l, i) => fits[i] || !left.push(l));
    if (!group.length) return [];
    const made = joined(group);
    const module = group[0]!.name;
    group.forEach(({ name }, i) => {
      of.set(name, { module, launch: made.launches[i]! });
      if (made.runs) runs.set(name, made.runs);
    });
    return [{ name: module, text: made.text }];
  });
  const alone = left.map((l) => ({ name: l.name, ...moduleOfOne(l) }));
  for (const l of alone) runs.set(l.name, l.runs);
  const others = share(alone);
  return { modules: [...modules, ...others.modules], of: new Map([...of, ...others.of]), runs };
}
