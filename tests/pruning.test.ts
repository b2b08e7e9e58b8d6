/**
 * Law 6, by graphs: what a pruned backward computes is what the full one computes of it, and nothing else.
 */
import * as assert from "uvu/assert";
import { adapterMethods } from "../compiler/adapters/index.ts";
import { vjp } from "../compiler/autodiff.ts";
import { compile } from "../compiler/compile.ts";
import { RegionBuilder, tensorName } from "../compiler/layers.ts";
import { llama } from "../compiler/models/llama.ts";
import { Graph, inputName, toposort } from "../ops/index.ts";
import { tensorKinds } from "../runtime/tensors/index.ts";
import type { TensorKind } from "../runtime/tensors/tensor.ts";
import { bits, configs, s2ftOdd, small } from "./support/engines.ts";
import { batch, capacities, inputData, runOn } from "./support/graphs.ts";
import { suite } from "./support/suite.ts";
import { writeModel } from "./support/tiny.ts";

const test = suite("pruning");
const targets = ["wasm", "webgpu"] as const;
test("law 6: the pruned backward of a layer = the full one, bit for bit, for every method", async () => {
  const model = llama.read(configs.odd);
  const unit = { ...batch("pruning", 21, 3, "unit"), ranks: [8, 8, 8, 8] };
  const n = 21;
  Object.assign(unit.arrays, {
    pos: Array.from({ length: n }, (_, r) => r),
    save_row: Array.from({ length: n }, (_, r) => r),
    seg_keys: [n],
  });
  Object.assign(unit.header, { n_keys: n });
  for (const method of Object.values(adapterMethods)) {
    const graph = new Graph();
    const scope = "layer";
    const { sites } = (() => {
      const plain = new RegionBuilder(graph, scope, "W", { format: () => "f32", kv: "f32" }, []);
      model.layer(
        plain,
        graph.input(scope, "h", { kind: "rows", domain: "W", cols: model.hiddenSize }),
        96,
        0,
      );
      return plain;
    })();
    // Every site the method can have: all of its kind, for S2FT those that share channels.
    const own = sites.filter(
      (s) =>
        s.kind === (method.at ?? "linear") &&
        method.capacity(s, sites, { ...capacities, s2ft: s2ftOdd }) > 0 &&
        (!method.change?.some(({ term }) => term === "channels") || s.coupling),
    );
    const branches = own.map((site, index) => ({
      index,
      method,
      site,
      capacity: 8,
      tensors: method.tensors(site, 8),
    }));
    const b = new RegionBuilder(graph, scope, "W", { format: () => "f32", kv: "f32" }, branches);
    const h = graph.input(scope, "h", { kind: "rows", domain: "W", cols: model.hiddenSize });
    const out = model.layer(b, h, 96, 0);
    const cot = graph.input(scope, "cot", out.type);
    const inputs = toposort([out]).flatMap((node): import("../ops/index.ts").Value[] =>
      node.op === "input" ? [{ node, index: 0, type: node.outs[0]! }] : [],
    );
    const trained = new Set(
      branches.flatMap((x) => x.tensors.filter((t) => t.trained).map((t) => tensorName(x, t.name))),
    );
    const factors = inputs.filter((v) => trained.has(inputName(v)));
    // A bias that a method reads beside its layer has two users in a region; it is never trained with one.
    const base = inputs.filter(
      (v) => v.type.kind === "weight" || (v.type.kind === "vector" && !inputName(v).endsWith(".bias")),
    );
    assert.is(factors.length, trained.size, method.name);
    const key = (v: (typeof inputs)[number]): string => `${v.node.id}.${v.index}`;
    for (const target of method.name === "lora" ? targets : (["wasm"] as const)) {
      const results: string[][] = [];
      let outputs = 0;
      for (const wanted of [factors, [...factors, ...base]]) {
        const grads = vjp([[out, cot]], [h, ...wanted]);
        const roots = [grads.get(key(h))!, ...wanted.map((v) => grads.get(key(v))!)];
        const data = inputData([out, ...roots], unit, "pruning");
        // Chosen channels and entries are numbers of channels and entries.
        for (const x of branches)
          for (const t of x.tensors) {
            const kind: TensorKind = tensorKinds[t.kind];
            if (!kind.index || !data[tensorName(x, t.name)]) continue;
            const values = new Float32Array(t.cols);
            const chosen = Array.from({ length: 8 }, (_, i) => i * 7);
            kind.set(
              {
                t,
                values,
                site: x.site,
                branch: { ...x, method: method.name, site: 0 },
                layer: 0,
                rank: 8,
              },
              chosen.map((c) => c % (t.cols - 8)),
            );
            for (let s = 0; s < 4; s++) data[tensorName(x, t.name)]!.set(values, s * t.cols);
          }
        const r = await runOn(target, roots, data, unit);
        outputs = r.outputs.length;
        results.push(r.outputs.slice(0, 1 + factors.length).map(bits));
      }
      assert.is(outputs, 1 + factors.length + base.length);
      assert.ok(results[0]!.every((x) => x.length > 0));
      assert.equal(results[0], results[1], `${method.name} on ${target}`);
    }
  }
});

test("law 6: the pruned backward builds 14 factor gradients of a layer, none of the base", async () => {
  // The lora program never builds gradients of frozen weights; its adapters' gradients equal torch's full
  // backward (reference.test.ts), and its graph holds no outer product with a base weight.
  const { graphs } = await compile(writeModel(configs.even), {
    targets: ["wasm"],
    quick: true,
    capacities: small,
  });
  for (const g of graphs.graphs.filter((x) => x.name.startsWith("backward.lora"))) {
    const outer = toposort(g.roots).filter((n) => n.op === "outer" || n.op === "col_sum");
    assert.is(outer.length, 14);
    assert.ok(outer.every((n) => n.ins[2]!.type.kind === "factor"));
  }
});
test.run();
