/**
 * What data says before a bundle is compiled: which channels S2FT's class `permuted` trains, as jobs of the
 * class `indexed` choose them when they start; and what enters a model's matrices.
 */
import type { CompileOptions } from "../compiler/compile.ts";
import { type Manifest, type SiteEntry, WeftError } from "../runtime/bundle.ts";
import { chosenIn } from "../runtime/content.ts";
import { channelAt } from "../runtime/coupling.ts";
import type { Row } from "../runtime/trainer.ts";
import { rowsOf } from "./data.ts";
import { load } from "./engine.ts";
import { parseJson, withTemporaryFolder } from "./files.ts";
import type { Calibrate } from "./options.ts";

/**
 * Compile the model for S2FT alone into a folder that is thrown away, let a job of no steps choose, and read
 * its choice.
 */
export async function chooseSelection(
  folder: string,
  o: Calibrate,
  options: CompileOptions,
): Promise<NonNullable<Manifest["selection"]>> {
  const { compileTo } = await import("../compiler/compile.ts");
  const selector = o.selector ?? "activation-small";
  return withTemporaryFolder(async (out) => {
    const manifest = await compileTo(folder, out, {
      ...options,
      targets: ["wasm"],
      train: ["s2ft"],
      methods: [],
      capacities: { ...options.capacities, slots: 1, jobs: 1 },
    });
    await using engine = await load(out, { device: "wasm" });
    await (
      await engine.finetune({
        name: "selection",
        method: "s2ft",
        data: o.data,
        selector,
        seed: o.seed ?? 0,
        steps: 0,
      })
    ).done;
    const { content } = engine.core.adapters.find("selection");
    const { heads, kvHeads, headDim } = manifest.model;
    const shares = (s: SiteEntry, group: string, axis: "in" | "out"): boolean =>
      s.coupling?.group === group && s.coupling.axis === axis;
    /** Of a group's channels, those of each expert where it is theirs. */
    const each = (layer: number, group: string, axis: "in" | "out"): number[][] | null => {
      const b = manifest.branches.find((x) => shares(manifest.sites[x.site]!, group, axis));
      if (!b || !content.branches[layer]![b.index]!.rank) return null;
      const { coupling, experts = 1 } = manifest.sites[b.site]!;
      return Array.from({ length: experts }, (_, one) => {
        const places = chosenIn(manifest, content, layer, b.index, one);
        return [...new Set(places.map((place) => channelAt(coupling!, place)!))];
      });
    };
    const chosen = (...of: Parameters<typeof each>): number[] | null => each(...of)?.[0] ?? null;
    const layers = content.branches.map((_, l) => {
      // Under grouped queries the key heads are ranked, and their query heads come with them.
      const values = chosen(l, "heads", "out");
      const outputs = chosen(l, "heads", "in");
      if (outputs && !values && heads !== kvHeads) {
        const [v, o] = (["out", "in"] as const).map(
          (axis) => manifest.sites.find((s) => shares(s, "heads", axis))!.module,
        );
        throw new WeftError({
          code: "WEFT_OPTION",
          where: "capacities.s2ft.sites",
          expected: `${v} beside ${o}: query heads share keys here`,
          found: `${o} alone`,
        });
      }
      const groups = [...new Set((values ?? outputs ?? []).map((c) => Math.floor(c / headDim)))];
      const experts = each(l, "experts", "in") ?? each(l, "experts", "out");
      const ffn = chosen(l, "ffn", "in") ?? chosen(l, "ffn", "out") ?? [];
      return { ffn, groups, ...(experts && { experts }) };
    });
    return { layers, selector };
  });
}

/**
 * Rows as ids and labels, by the tokenizer of the model. Throws WEFT_DATA, or WEFT_TOKENIZER where it has
 * none.
 */
export async function calibrationRows(folder: string, data: Calibrate["data"]): Promise<Row[]> {
  const { openModel } = await import("../compiler/compile.ts");
  const { files, generation } = await openModel(folder);
  const json = (name: string): Record<string, unknown> =>
    parseJson(new TextEncoder().encode(files.get(name)), `${folder}/${name}`);
  const text = files.has("tokenizer.json")
    ? await (await import("./text.ts")).openText(
        json("tokenizer.json"),
        json("tokenizer_config.json"),
        files.get("chat_template.jinja") ?? null,
      )
    : null;
  return rowsOf(data, "calibrate.data", { text }, generation.eos);
}
