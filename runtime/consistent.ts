/**
 * What ties a manifest's parts together: every index, offset and length that the runtime follows stays inside
 * what it points into. Checked before anything is allocated; what passes cannot make the runtime read or
 * write outside a chamber, or take memory out of proportion to the files. One file: whoever adds a part to a
 * manifest finds here what has to be said of it.
 */
import { axisLength } from "./axes.ts";
import { CANDIDATE_WORDS, QUAD, QUAD_WORDS, quadsOf, ranked, SLOT_ROW } from "./contract.ts";
import { WeftError } from "./errors.ts";
import { singleSites } from "./experts.ts";
import { type Format, storedBytes } from "./formats.ts";
import { kindsOf, layersWith } from "./kinds.ts";
import { kvBlockWords } from "./kv.ts";
import {
  type BranchEntry,
  type BranchTensor,
  type Manifest,
  MOST_JOBS,
  type ParamEntry,
  type SiteEntry,
  type TargetEntry,
} from "./manifest.ts";
import { planOf } from "./room.ts";
import { matrixWords } from "./shards.ts";
import { tensorKinds } from "./tensors/index.ts";
import type { TensorKind } from "./tensors/tensor.ts";
import { terms } from "./terms.ts";

function need(ok: unknown, where: string, expected: string, found: unknown): asserts ok {
  if (!ok) throw new WeftError({ code: "WEFT_BUNDLE", where, expected, found: String(found) });
}
const same = (a: readonly number[], b: readonly number[]): boolean =>
  a.length === b.length && a.every((x, i) => x === b[i]);

/** Throws WEFT_BUNDLE, naming the entry, for a manifest whose parts do not fit each other. */
export function checkConsistent(m: Manifest): void {
  checkModel(m);
  const { words } = m.updates;
  for (const [name, plan] of Object.entries(m.targets))
    need(
      plan.header.slice(-words.length).join() === words.join(),
      `targets.${name}.header`,
      `the words of updates at its end, ${words.join(", ")}`,
      plan.header.join(", "),
    );
  for (const [name, method] of Object.entries(m.methods))
    need(method.name === name, `methods.${name}.name`, name, method.name);
  for (const [i, name] of m.train.entries())
    need(
      name === "full" || Object.hasOwn(m.methods, name),
      `train[${i}]`,
      "a method of the bundle, or full",
      name,
    );
  need(m.sites.length <= 64, "sites", "at most 64 in a layer", m.sites.length);
  for (const [i, s] of m.sites.entries()) checkSite(m, s, i);
  for (const [i, b] of m.branches.entries()) checkBranch(m, b, i);
  checkSelection(m);
  for (const name of ["host.wasm", "host.json", "config.json"])
    need(Object.hasOwn(m.files, name), "files", name, "no such file");
  for (const target of ["wasm", "webgpu"] as const) {
    const plan = m.targets[target];
    if (plan) checkPlan(m, plan, target);
  }
  checkTensors(m);
}

function checkModel({ model: d, capacities: c, tensors }: Manifest): void {
  need(d.layers <= tensors.length, "model.layers", `at most one a tensor (${tensors.length})`, d.layers);
  need(d.headDim % 2 === 0, "model.headDim", "an even number", d.headDim);
  need(d.heads % d.kvHeads === 0, "model.heads", `a multiple of kvHeads (${d.kvHeads})`, d.heads);
  const pairs = d.ropes[0]?.inverseFrequencies.length ?? 0;
  need(2 * pairs <= d.headDim, "model.ropes", `at most ${d.headDim / 2} frequencies`, pairs);
  for (const [i, { inverseFrequencies, long }] of d.ropes.entries())
    for (const list of [inverseFrequencies, ...(long ? [long.inverseFrequencies] : [])])
      need(
        list.length === pairs && pairs > 0,
        `model.ropes[${i}]`,
        `${pairs || "some"} frequencies`,
        list.length,
      );
  for (const [name, fits] of [
    ["window", (x: number) => x > 0],
    ["rope", (x: number) => x < d.ropes.length],
    ["kind", (x: number) => x < d.layers],
  ] as const) {
    const list = d.perLayer[name];
    const ok = !list || (list.length === d.layers && list.every(fits));
    need(ok, `model.perLayer.${name}`, `${d.layers} of the model's`, list);
  }
  const kinds = Array.from({ length: kindsOf(d) }, (_, kind) => kind);
  const all = kinds.length < 32 && kinds.every((kind) => layersWith(d, { kinds: [kind] }).length);
  need(all, "model.perLayer.kind", "kinds from 0 up, a layer of each", d.perLayer.kind);
  need(d.ropes.length < 2 || d.perLayer.rope, "model.perLayer.rope", "a table of each layer", "none");
  need(c.context <= d.context, "capacities.context", `at most the model's ${d.context}`, c.context);
}

/** Kinds of layers, some of those that there are. */
function checkKinds(
  { model }: Manifest,
  { kinds }: { readonly kinds?: readonly number[] },
  at: string,
): void {
  const n = kindsOf(model);
  const ok = !kinds || (kinds.length > 0 && kinds.length < n && kinds.every((kind) => kind < n));
  need(ok, `${at}.kinds`, `some of ${n} kinds of layers`, kinds);
}
function checkSite(m: Manifest, s: SiteEntry, i: number): void {
  const at = `sites[${i}]`;
  checkKinds(m, s, at);
  need(s.index === i, `${at}.index`, String(i), s.index);
  const mixture = s.kind === "experts";
  need(mixture === (s.experts !== undefined), `${at}.experts`, mixture ? "a number" : "none", s.experts);
  need(!mixture || s.module.includes("{e}"), `${at}.module`, "a path with {e} for the expert", s.module);
  need(!mixture || s.experts! <= m.tensors.length, `${at}.experts`, "one a tensor at most", s.experts);
  for (const [side, features] of [
    ["in", s.inFeatures],
    ["out", s.outFeatures],
  ] as const) {
    const axis = s.axes[side];
    const all = axis && axisLength(m, axis);
    if (axis) need(features === all, `${at}.${side}Features`, `${all}, all ${axis}`, features);
  }
  if (!s.coupling) return;
  const { channels, unit, at: slices } = s.coupling;
  need(channels % unit === 0, `${at}.coupling.unit`, `a divisor of ${channels}`, unit);
  const all = s.coupling.axis === "in" ? s.inFeatures : s.outFeatures;
  const ends = [...slices.slice(1), all];
  need(
    slices.length && slices.every((from, i) => from + channels <= ends[i]!),
    `${at}.coupling.at`,
    `slices of ${channels} inside ${all}, one after another`,
    slices,
  );
  // Of experts, each has an order of its own.
  const ordered = mixture || s.axes[s.coupling.axis] !== null;
  need(ordered, `${at}.coupling.axis`, "an axis of the site", s.coupling.axis);
  need(!mixture || slices.length === 1, `${at}.coupling.at`, "one slice of each expert's", slices);
}

function checkBranch(m: Manifest, b: BranchEntry, i: number): void {
  const at = `branches[${i}]`;
  need(b.index === i, `${at}.index`, String(i), b.index);
  need(Object.hasOwn(m.methods, b.method), `${at}.method`, Object.keys(m.methods).join(", "), b.method);
  need(b.site < m.sites.length, `${at}.site`, `a site below ${m.sites.length}`, b.site);
  const names = b.tensors.map((t) => t.name);
  need(new Set(names).size === names.length, `${at}.tensors`, "tensors of different names", names.join(", "));
  for (const [k, t] of b.tensors.entries()) checkTensor(m, b, t, `${at}.tensors[${k}]`);
  const kinds = new Map(b.tensors.map((t) => [t.name, kindOf(t)]));
  need([...kinds.values()].filter((k) => k.index).length < 2, `${at}.tensors`, "one index", names.join(", "));
  for (const { term, of } of m.methods[b.method]!.change ?? []) {
    const { roles, optional = [] } = terms[term];
    for (const role of roles)
      need(kinds.has(of[role] ?? ""), `${at}.tensors`, `a tensor ${of[role]}`, names.join(", "));
    for (const [role, name] of Object.entries(of)) {
      need([...roles, ...optional].includes(role), `methods.${b.method}.change`, `roles of ${term}`, role);
      const kind = kinds.get(name);
      if (kind) need(kind.index === (role === "index"), `${at}.tensors`, `${role} of its kind`, name);
    }
  }
}
const kindOf = (t: BranchTensor): TensorKind => tensorKinds[t.kind];
/** What a tensor's kind and start ask for. */
function checkTensor(m: Manifest, b: BranchEntry, t: BranchTensor, at: string): void {
  const kind = kindOf(t);
  need(Object.hasOwn(kind.starts, t.init), `${at}.init`, Object.keys(kind.starts).join(", "), t.init);
  if (kind.index) need(t.rows === "one" && t.key !== null, at, "an index of one row, with a key", t.name);
  const flat = t.rows === "one" || t.cols === 1;
  need(t.shape !== "vector" || flat, `${at}.shape`, "a vector of one row or column", t.shape);
  kind.check(t, b, m.sites[b.site]!, m, (ok, where, expected, found) =>
    need(ok, `${at}.${where}`, expected, found),
  );
}
function checkSelection(m: Manifest): void {
  if (!m.selection) return;
  const { layers } = m.selection;
  need(layers.length === m.model.layers, "selection.layers", `${m.model.layers} of them`, layers.length);
  const ofExperts = m.sites.find((s) => s.coupling && s.experts)?.coupling?.channels ?? 0;
  for (const [l, layer] of layers.entries())
    for (const [name, list, all] of [
      ["ffn", layer.ffn, m.model.ffn],
      ["groups", layer.groups, m.model.kvHeads],
      ...(layer.experts ?? []).map((list) => ["experts", list, ofExperts] as const),
    ] as const)
      need(
        new Set(list).size === list.length && list.every((c) => c < all),
        `selection.layers[${l}].${name}`,
        `distinct numbers below ${all}`,
        list.slice(0, 8).join(", "),
      );
}

function checkPlan(m: Manifest, plan: TargetEntry, target: "wasm" | "webgpu"): void {
  const at = `targets.${target}`;
  const { room, homes } = plan;
  const { capacities: c, model: d, branches } = m;
  const within = (end: number, limit: number, where: string): void =>
    need(end <= limit, `${at}.${where}`, `words inside a chamber of ${limit}`, `words up to ${end}`);
  /** Room is what is used, and not out of proportion to it. */
  const enough = (words: number, used: number, where: string): void => {
    const most = 2 * used + 2 ** 16;
    need(
      words >= used && words <= most,
      `${at}.${where}`,
      `${used} to ${most} words for what it holds`,
      words,
    );
  };
  const kv = 2 * d.kvHeads * d.headDim;
  const training = m.train.length > 0;
  enough(room.block, kvBlockWords(d, m.kv), "room.block");
  enough(room.hidden, training ? d.hiddenSize : 0, "room.hidden");
  enough(room.work, training ? d.hiddenSize + kv : 0, "room.work");
  within(homes.h + c.tokens * d.hiddenSize, room.arena, "homes.h");
  within(homes.logits + c.headRows * d.vocab, room.arena, "homes.logits");
  if (homes.candidates !== null)
    within(homes.candidates + c.headRows * CANDIDATE_WORDS, room.arena, "homes.candidates");
  const turned = 2 * (d.ropes[0]?.inverseFrequencies.length ?? 0);
  within(homes.rotary + d.ropes.length * c.context * turned, room.arena, "homes.rotary");
  within(homes.norms + MOST_JOBS * (d.layers + 3), room.arena, "homes.norms");
  // Rows of gradients begin where the rest of the arena ends.
  need(homes.dh === room.arena, `${at}.homes.dh`, `${room.arena}, the arena's end`, homes.dh);
  if (training) within(homes.dkv - homes.dh + kv, room.work, "homes.dkv");
  for (const [cls, { fields, words }] of Object.entries(m.saved)) {
    const end = (index: string): number =>
      Math.max(0, ...fields.filter((f) => f.index === index).map((f) => f.offset + f.cols));
    enough(words.boundary, end("save_row"), `saved.${cls}.words.boundary`);
    enough(words.kept, end("ext_row"), `saved.${cls}.words.kept`);
  }
  const { slots } = plan;
  need(
    slots.branches.length === branches.length,
    `${at}.slots.branches`,
    "one a branch",
    slots.branches.length,
  );
  for (const [i, b] of slots.branches.entries())
    within(b.at + SLOT_ROW.quads + b.quads * QUAD_WORDS, slots.row, `slots.branches[${i}]`);
  for (const [name, { homes, quad }] of Object.entries(slots.methods)) {
    need(Object.hasOwn(m.methods, name), `${at}.slots.methods`, "methods of the bundle", name);
    need(
      homes <= branches.length && quad <= slots.page,
      `${at}.slots.methods.${name}`,
      "quads in pages",
      quad,
    );
  }
  for (const { method } of branches)
    need(Object.hasOwn(slots.methods, method), `${at}.slots.methods`, `one for ${method}`, "none");
  // Chambers of what the bundle is meant for are of a size that indices reach.
  const { spaces, arenaWords, metaWords } = planOf(m, target, c);
  for (const [name, words] of [
    ...Object.entries(spaces).map(([space, w]) => [space, Math.max(w.layer, w.outer)] as const),
    ["arena", arenaWords] as const,
    ["meta", metaWords] as const,
  ])
    need(words < 2 ** 29, `${at}: ${name}`, "chambers of at most 2 GiB", `${words} words`);

  const full = m.train.includes("full");
  const own: number[] = [];
  for (const [list, region] of [
    ["layerParams", "layer"],
    ["outerParams", "outer"],
  ] as const) {
    const names = plan[list].map((p) => p.name);
    const ends = { weights: 0, accum: 0 };
    const listed = Object.keys(m.checkpoint[region]);
    need(new Set(names).size === names.length, `${at}.${list}`, "different names", "a name twice");
    for (const name of listed)
      need(names.includes(name), `${at}.${list}`, `a parameter ${name}`, "none of that name");
    for (const [i, p] of plan[list].entries()) {
      const where = `${list}[${i}]`;
      checkKinds(m, p, `${at}.${where}`);
      need(region === "layer" || !p.kinds, `${at}.${where}.kinds`, "none", p.kinds);
      need(listed.includes(p.name), `${at}.${where}`, `one of ${listed.join(", ")}`, p.name);
      need(p.kind !== "factor", `${at}.${where}.kind`, "weight or vector", p.kind);
      need(p.kind === "weight" || p.format === "f32", `${at}.${where}.format`, "f32", p.format);
      need(p.kind === "weight" || p.k === 1, `${at}.${where}.k`, "1", p.k);
      const stored = p.kind === "weight" ? matrixWords(p, plan.panel) : p.n;
      if (p.own !== null) {
        own.push(p.own);
        need(p.kind === "weight" && region === "outer", `${at}.${where}.own`, "null", p.own);
        const { weights, accum } = plan.own[p.own] ?? { weights: 0, accum: 0 };
        const states = full ? 3 * matrixWords({ ...p, format: "f32" }, plan.panel) : 0;
        const [all, found] = [
          [stored, states, 0, ...(full ? [0, states] : [])],
          [weights, accum, p.offset, ...(full ? [p.accum, 3 * p.words] : [])],
        ];
        need(same(all, found), `${at}.own[${p.own}]`, `words ${all}`, found);
        continue;
      }
      ends.weights = Math.max(ends.weights, p.offset + stored);
      if (!full) continue;
      need(p.accum >= 0 && p.words >= p.n * p.k, `${at}.${where}`, "room for gradients", p.words);
      ends.accum = Math.max(ends.accum, p.accum + 3 * p.words);
    }
    enough(room.weights[region], ends.weights, `room.weights.${region}`);
    enough(room.accum[region], ends.accum, `room.accum.${region}`);
  }
  const param = (of: "layerParams" | "outerParams", name: string, n: number, k: number): ParamEntry => {
    const p = plan[of].find((x) => x.name === name);
    need(p, `${at}.${of}`, `a parameter ${name}`, "none of that name");
    need(p.n === n && p.k === k, `${at}.${of}: ${name}`, `[${n}, ${k}]`, `[${p.n}, ${p.k}]`);
    return p;
  };
  param("outerParams", m.checkpoint.embedding, d.vocab, d.hiddenSize);
  for (const s of m.sites.flatMap(singleSites)) {
    if (s.kind !== "linear") continue;
    const own = [param("layerParams", `${s.module}.weight`, s.outFeatures, s.inFeatures)];
    if (s.bias) own.push(param("layerParams", `${s.module}.bias`, s.outFeatures, 1));
    for (const { name, kinds = [] } of own)
      need(same(kinds, s.kinds ?? []), `${at}.layerParams: ${name}`, `kinds ${s.kinds}, its site's`, kinds);
  }
  // Every tensor of every branch has its place in a slot, found by the end of its name.
  let factors = 0;
  for (const b of branches)
    for (const t of b.tensors) {
      factors++;
      const i = plan.factors.findIndex((f) => f.branch === b.index && f.name.endsWith(`.${t.name}`));
      const f = plan.factors[i];
      const where = `factors[${i}]`;
      need(f, `${at}.factors`, `a place for ${t.name} of branch ${b.index}`, "none");
      const n = t.rows === "rank" ? b.capacity : 1;
      need(f.n === n && f.k === t.cols, `${at}.${where}`, `[${n}, ${t.cols}]`, `[${f.n}, ${f.k}]`);
      need(f.rows === t.rows, `${at}.${where}.rows`, t.rows, f.rows);
      const { home, page, quads } = slots.branches[b.index]!;
      const { homes, quad } = slots.methods[b.method]!;
      const rows = ranked(t) ? QUAD : n;
      const [from, room] = ranked(t) ? [0, quad] : [home, slots.page];
      within(from + f.offset + rows * t.cols, room, `${where}.offset`);
      need(ranked(t) ? quads >= quadsOf(n) : page < homes, `${at}.slots.branches[${b.index}]`, "room", n);
      if (!m.train.includes(b.method)) continue;
      need(f.accum >= 0 === t.trained, `${at}.${where}.accum`, t.trained ? "a place" : "-1", f.accum);
      if (t.trained) within(f.accum + 3 * n * t.cols, plan.jobWords, `${where}.accum`);
    }
  need(factors === plan.factors.length, `${at}.factors`, `${factors} of them`, plan.factors.length);
  const slot = plan.factors.reduce((n, f) => n + f.n * f.k, 0);
  need(slots.page <= 2 * slot + 2 ** 16, `${at}.slots.page`, "no more than its tensors take", slots.page);
  const most = 8 * slot + 8 * plan.statistics.reduce((n, s) => n + s.n, 0) + 2 ** 16;
  need(plan.jobWords <= most, `${at}.jobWords`, "no more than its tensors take", plan.jobWords);
  for (const [i, s] of plan.statistics.entries()) {
    need(s.accum >= 0, `${at}.statistics[${i}].accum`, "a place", s.accum);
    within(s.accum + s.n, plan.jobWords, `statistics[${i}].accum`);
  }
  need(target === "webgpu" || !own.length, `${at}.own`, "none", own.length);
  need(same(own, [...plan.own.keys()]), `${at}.own`, "a matrix for each group, in order", own.join());
  for (const [name, k] of Object.entries(plan.kernels)) {
    const where = `${at}.kernels.${name}`;
    need(Object.hasOwn(m.files, k.file), `${where}.file`, "a file that the manifest lists", k.file);
    need((k.shards?.of ?? -1) < own.length, `${where}.shards.of`, "a group of a matrix", k.shards?.of);
  }
  for (const [i, p] of plan.programs.entries())
    for (const [j, l] of p.launches.entries()) {
      checkKinds(m, l, `${at}.programs[${i}].launches[${j}]`);
      need(
        Object.hasOwn(plan.kernels, l.kernel),
        `${at}.programs[${i}].launches[${j}].kernel`,
        "a kernel of this target",
        l.kernel,
      );
    }
}

/** The weights are exactly the tensors that the plans place, with their shapes, inside their shards. */
function checkTensors(m: Manifest): void {
  const layerNames = Object.entries(m.checkpoint.layer);
  const outerNames = Object.entries(m.checkpoint.outer);
  const { modules } = m.checkpoint;
  need(modules.includes("{l}"), "checkpoint.modules", "paths with {l} for the layer", modules);
  for (const [name, path] of layerNames)
    need(path.includes("{l}"), `checkpoint.layer.${name}`, "a name with {l} for the layer", path);
  const shapes = new Map<string, { readonly shape: readonly number[]; readonly format: Format }>();
  const plans = Object.values(m.targets);
  need(plans.length > 0, "targets", "wasm or webgpu", "none");
  const inLayers = layerNames.map(([name, path]) => {
    const [first, ...others] = plans.map((plan) => plan.layerParams.find((p) => p.name === name)!);
    for (const { kinds = [] } of others)
      need(same(kinds, first!.kinds ?? []), `layerParams: ${name}`, "the same kinds in all targets", kinds);
    return { name, path, layers: layersWith(m.model, first!) };
  });
  const all = outerNames.length + inLayers.reduce((n, { layers }) => n + layers.length, 0);
  need(m.tensors.length === all, "tensors", `${all}, as the checkpoint's names say`, m.tensors.length);
  const add = (list: "layerParams" | "outerParams", name: string, path: string): void => {
    for (const [i, plan] of plans.entries()) {
      const p = plan[list].find((x) => x.name === name)!;
      const shape = p.kind === "vector" ? [p.n] : [p.n, p.k];
      if (i === 0) {
        need(!shapes.has(path), "checkpoint", "different names", path);
        shapes.set(path, { shape, format: p.format });
      } else {
        const first = shapes.get(path)!;
        need(same(first.shape, shape), `${list}: ${name}`, "one shape in all targets", shape);
        need(first.format === p.format, `${list}: ${name}`, "one format in all targets", p.format);
      }
    }
  };
  for (const [name, path] of outerNames) add("outerParams", name, path);
  for (const { name, path, layers } of inLayers)
    for (const l of layers) add("layerParams", name, path.replace("{l}", String(l)));
  const seen = new Set<string>();
  for (const t of m.tensors) {
    const at = `tensor ${t.name}`;
    const p = shapes.get(t.name);
    need(p && !seen.has(t.name), at, "a parameter of this model, once", "another");
    const { shape, format } = p;
    seen.add(t.name);
    need(same(shape, t.shape), at, `shape [${shape}]`, `[${t.shape}]`);
    need(t.format === format, at, format, t.format);
    const file = Object.hasOwn(m.files, t.shard) ? m.files[t.shard] : undefined;
    need(file, at, "a shard that the manifest lists", t.shard);
    const bytes = shape.length === 1 ? 4 * shape[0]! : storedBytes(format, shape[0]!, shape[1]!);
    need(
      t.bytes === bytes && t.start + bytes <= file.bytes,
      at,
      `${bytes} bytes inside its shard (${file.bytes} bytes)`,
      `bytes ${t.start} to ${t.start + t.bytes}`,
    );
  }
}
