/** Files that tell which write they are of, and whether all of them are of one. */
export const NAMES = ["adapter_model.safetensors", "adapter_config.json"] as const;

export interface Write {
  readonly writer: string;
  readonly n: number;
}
const weights = ({ writer, n }: Write, bytes: number): string =>
  `${writer} ${n}, `.repeat(Math.ceil(bytes / (writer.length + 3 + String(n).length)));
export const payload = (w: Write, bytes = 20_000): [string, string][] => [
  [NAMES[0], weights(w, bytes)],
  [NAMES[1], JSON.stringify({ ...w, bytes })],
];
/** The write that these files are of. Throws for torn ones, and for a folder without them. */
export function writeOf(files: ReadonlyMap<string, Uint8Array>): Write {
  const [data, config] = NAMES.map((name) => files.get(name));
  if (!data || !config) throw new Error(`only ${[...files.keys()].join() || "nothing"} is there`);
  const w = JSON.parse(Buffer.from(config).toString()) as Write & { bytes: number };
  const found = Buffer.from(data).toString();
  if (found !== weights(w, w.bytes))
    throw new Error(`torn: ${JSON.stringify(w)} beside ${found.slice(0, 20)} of ${found.length} bytes`);
  return { writer: w.writer, n: w.n };
}
