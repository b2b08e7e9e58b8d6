/** How each matrix is stored: as asked, or in the format nearest to how its checkpoint has it. */
import { type Format, formats, type Products, WeftError, weightFormats } from "../runtime/bundle.ts";
import type { FormatOf, ParamSpec } from "./layers.ts";
import type { Model } from "./models/model.ts";
import type { WeightSource } from "./source.ts";

/** `keep`: the format that holds a tensor as it is, or loses least of it. */
type Asked = Format | "keep";
/** One for all, or by module (`down_proj`), `default` for the others. */
export type FormatOption = Asked | Readonly<Record<string, Asked>>;
export const askable: readonly Asked[] = ["keep", ...formats];

const moduleOf = (tensor: string): string =>
  tensor
    .replace(/\.weight$/, "")
    .split(".")
    .at(-1)!;

/** By region and parameter: the layers that have one have it in one format. */
export function formatsOf(model: Model, weights: WeightSource, option: FormatOption): FormatOf {
  const asked = typeof option === "string" ? { default: option } : option;
  return (region, name) => {
    const path = region === "outer" ? model.names.outer[name]! : model.names.layer + name;
    const format = asked[moduleOf(path)] ?? asked.default ?? "keep";
    if (format !== "keep") return format;
    const each = Array.from({ length: model.layers }, (_, l) => path.replace("{l}", String(l)));
    const there = [...new Set(each)].filter((one) => weights.has(one));
    return there.length ? there.map((one) => weights.nearest(one)).reduce(finest) : "f32";
  };
}
/** One that holds what either does, or loses least of it. */
export function finest(a: Format, b: Format): Format {
  if (a === b) return a;
  const coarse = [a, b].filter((f) => !weightFormats[f].fine);
  if (coarse.length === 2) return "int8";
  return coarse.length ? [a, b].find((f) => weightFormats[f].fine)! : "f32";
}

/**
 * Throws WEFT_OPTION for a module that no matrix belongs to, where full training, or an order of channels (a
 * selection), meets blocks, and where products of integers are asked for and there are none.
 */
export function checkFormats(
  option: FormatOption,
  params: readonly ParamSpec[],
  paths: readonly string[],
  needs: { readonly full: boolean; readonly selection: boolean; readonly products: Products },
): void {
  const fail = (where: string, expected: string, found: string, hint?: string): never => {
    throw new WeftError({ code: "WEFT_OPTION", where, expected, found, ...(hint && { hint }) });
  };
  const modules = new Set(paths.filter((path) => path.endsWith(".weight")).map(moduleOf));
  if (typeof option !== "string")
    for (const name of Object.keys(option))
      if (name !== "default" && !modules.has(name))
        fail(`format.${name}`, `default or one of ${[...modules].join(", ")}`, name);
  const matrices = params.filter(({ kind }) => kind === "weight");
  const stored = matrices.find(({ format }) => format !== "f32");
  const integral = (f: Format): boolean => weightFormats[f].assembly.integers !== null;
  if (needs.products === "integers" && !matrices.some(({ format }) => integral(format)))
    fail(
      "products",
      `matrices in ${formats.filter(integral).join(" or ")}`,
      [...new Set(matrices.map(({ format }) => format))].join(", "),
    );
  if (needs.full && stored)
    fail("train: full", "weights stored as f32", stored.format, "compile with --format f32");
  const inPlace = (f: Format): boolean => weightFormats[f].planes.every((p) => p.every === 1);
  const blocks = matrices.find(({ format }) => !inPlace(format));
  if (needs.selection && blocks)
    fail(
      "format",
      `${formats.filter(inPlace).join(" or ")} with a selection, which reorders channels`,
      `${blocks.format}, whose blocks are runs of channels`,
      "train the method s2ft, which leaves them in place",
    );
}
