/** Kernel text as it reads: a template of whole lines, on both targets. */
export type Lines = readonly string[];

/**
 * The lines of a template, without its outer indentation. A list of lines stands alone on a line and takes
 * that line's indentation; an empty list takes the line with it.
 */
export function lines(
  template: TemplateStringsArray,
  ...values: readonly (string | number | Lines)[]
): string[] {
  const source = template.reduce((all, s, i) => `${all}\0${i - 1}\0${s}`).split("\n");
  const written = source.filter((l, i) => l.trim() || (i > 0 && i < source.length - 1));
  const outer = Math.min(...written.filter((l) => l.trim()).map((l) => /^ */.exec(l)![0].length));
  return written.flatMap((l): Lines => {
    const line = l.slice(outer);
    const [, space, only] = /^( *)\0(\d+)\0$/.exec(line) ?? [];
    const alone = values[Number(only)];
    if (Array.isArray(alone)) return indent(alone, space!.length);
    const text = line.replace(/\0(\d+)\0/g, (_, i) => {
      const value = values[Number(i)]!;
      if (Array.isArray(value)) throw new Error(`lines inside a line: ${value.join(" ")}`);
      return String(value);
    });
    return [text.trimEnd()];
  });
}
export const indent = (list: Lines, n: number): string[] => list.map((l) => " ".repeat(n) + l);
