/** Bytes as people write and read them: decimal, as disks, networks and model cards have them. */

const units = { "": 1, KB: 1e3, MB: 1e6, GB: 1e9, KIB: 2 ** 10, MIB: 2 ** 20, GIB: 2 ** 30 } as const;
/** Bytes of a number, or of a text like "512MB" or "3 GiB"; NaN for anything else. */
export function bytesOf(memory: unknown): number {
  if (typeof memory === "number") return Number.isInteger(memory) && memory > 0 ? memory : Number.NaN;
  const [, number, unit] = /^(\d+(?:\.\d+)?)\s*([KMG]i?B|)$/i.exec(String(memory)) ?? [];
  if (number === undefined) return Number.NaN;
  return Math.round(Number(number) * units[unit!.toUpperCase() as keyof typeof units]);
}
/** 12345678 as "12.3 MB". With `round` Math.ceil it is enough, with Math.floor it is there. */
export function showBytes(n: number, round: (x: number) => number = Math.round): string {
  const [unit, size, digits] =
    n >= 1e9 ? ["GB", 1e9, 2] : n >= 1e6 ? ["MB", 1e6, 1] : n >= 1e3 ? ["kB", 1e3, 1] : ["bytes", 1, 0];
  const of = 10 ** (digits as number);
  return `${(round((n / (size as number)) * of) / of).toFixed(digits as number)} ${unit}`;
}
