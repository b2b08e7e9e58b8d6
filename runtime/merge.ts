/**
 * Adapters as changes of base tensors: what `merge` makes of weights and biases, each from the pristine one,
 * in f64.
 */
import { formats, type Manifest, type TargetPlan, WeftError, weightFormats } from "./bundle.ts";
import { type AdapterContent, placeOf, readEntries, siteOf } from "./content.ts";
import { addDeltas, asLowRank } from "./lowrank.ts";

export type Change = (values: Float32Array) => void;
/** Each row o of W [out, in] becomes `row(o, W[o])`. */
const rows =
  (ins: number, row: (o: number, w: Float32Array) => void): Change =>
  (w) => {
    for (let o = 0; o * ins < w.length; o++) row(o, w.subarray(o * ins, (o + 1) * ins));
  };

/**
 * `layer tensor` (the outer region's layer is the number of layers) → its change, for every base tensor that
 * the adapter moves. Throws WEFT_ADAPTER for a method that is not linear in its input.
 */
export function mergeChanges(
  manifest: Manifest,
  plan: TargetPlan,
  content: AdapterContent,
): Map<string, Change> {
  const { format } = manifest.model;
  if (!weightFormats[format].fine)
    throw new WeftError({
      code: "WEFT_ADAPTER",
      where: "merge",
      expected: `a base stored as ${formats.filter((f) => weightFormats[f].fine).join(" or ")}`,
      found: `${format}, whose steps are wider than what an adapter changes`,
      hint: "serve the adapter beside the base, or compile with --format f16",
    });
  const out = new Map<string, Change>();
  const { layers } = manifest.model;
  const params = [
    ...Object.entries(manifest.checkpoint.outer).map(([name, path]) => ({ key: `${layers} ${name}`, path })),
    ...Object.entries(manifest.checkpoint.layer).flatMap(([name, path]) =>
      Array.from({ length: layers }, (_, l) => ({
        key: `${l} ${name}`,
        path: path.replace("{l}", String(l)),
      })),
    ),
  ];
  for (const [path, values] of content.replaces ?? [])
    out.set(params.find((p) => p.path === path)!.key, (v) => v.set(values));
  for (const [l, layer] of content.branches.entries())
    for (const [i, { rank, scale }] of layer.entries()) {
      if (!rank) continue;
      const b = manifest.branches[i]!;
      const site = siteOf(manifest, b);
      const [ins, outs] = [site.inFeatures, site.outFeatures];
      const slot = content.tensors[l]!;
      const tensor = (name: string): Float32Array => {
        const at = placeOf(plan.factors, i, name);
        return slot.slice(at.offset, at.offset + at.n * at.k);
      };
      const weight = (change: Change) => out.set(`${l} ${site.module}.weight`, change);
      const bias = (change: Change) => out.set(`${l} ${site.module}.bias`, change);
      const delta = (a: string, up: string) => ({
        rank,
        a: tensor(a).slice(0, rank * ins),
        b: tensor(up)
          .slice(0, rank * outs)
          .map((x) => x * scale),
      });
      switch (manifest.methods[b.method]!.form) {
        case "factors":
        case "selection": {
          const low = asLowRank(manifest, plan, content, l, i);
          weight((w) => addDeltas(w, [low]));
          break;
        }
        case "biased": {
          const low = delta("a", "b");
          weight((w) => addDeltas(w, [low]));
          if (site.bias) {
            const other = tensor("bias");
            bias((v) => v.set(other));
          }
          break;
        }
        case "entries": {
          const places = readEntries(slot, placeOf(plan.factors, i, "index"), b.capacity, ins, rank);
          const values = tensor("values");
          weight((w) => {
            places.forEach((e, k) => {
              w[e] = w[e]! + values[k]!;
            });
          });
          break;
        }
        case "magnitudes": {
          const low = delta("a", "b");
          const m = tensor("m");
          weight((w) => {
            addDeltas(w, [low]);
            rows(ins, (o, row) => {
              const norm = Math.sqrt(row.reduce((s, x) => s + x * x, 0));
              for (let c = 0; c < ins; c++) row[c] = (m[o]! * row[c]!) / norm;
            })(w);
          });
          break;
        }
        case "gains": {
          const gain = tensor("l");
          // One gain a column where the method changes what enters, one a row where it changes what leaves.
          const input = b.tensors[0]!.shape === "rows";
          weight(
            rows(ins, (o, row) => {
              for (let c = 0; c < ins; c++) row[c] = row[c]! * gain[input ? c : o]!;
            }),
          );
          if (!input)
            bias((v) => {
              for (let o = 0; o < outs; o++) v[o] = v[o]! * gain[o]!;
            });
          break;
        }
        case "sequential": {
          const low = delta("pa", "pb");
          const [down, up] = [tensor("sa"), tensor("sb")];
          /** v [outs, columns] += s · Bs·(As·v). */
          const through = (v: Float32Array, columns: number): void => {
            const before = Float64Array.from(v);
            for (let r = 0; r < rank; r++)
              for (let c = 0; c < columns; c++) {
                let u = 0;
                for (let o = 0; o < outs; o++) u += down[r * outs + o]! * before[o * columns + c]!;
                for (let o = 0; o < outs; o++)
                  v[o * columns + c] = v[o * columns + c]! + scale * up[r * outs + o]! * u;
              }
          };
          weight((w) => {
            through(w, ins);
            addDeltas(w, [low]);
          });
          bias((v) => through(v, 1));
          break;
        }
        default:
          throw new WeftError({
            code: "WEFT_ADAPTER",
            where: `method ${b.method}`,
            expected: "a method that is a change of weights",
            found: "one that is not: it cannot merge",
          });
      }
    }
  return out;
}
