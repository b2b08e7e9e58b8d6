/** What a command says beside its results: on a terminal one line that moves, elsewhere a line each time. */

let open = false;
/** Replace the line that moves. */
export function progress(line: string): void {
  const { stderr } = process;
  if (!stderr.isTTY) return void stderr.write(`${line}\n`);
  // A terminal may not know its width: 0.
  const room = Math.max(20, (stderr.columns || 80) - 1);
  stderr.write(`\r\x1b[2K${line.length > room ? `${line.slice(0, room - 1)}…` : line}`);
  open = true;
}
/** Keep the line that moves as it is, and go on below it. */
export function endLine(): void {
  if (open) process.stderr.write("\n");
  open = false;
}
/** Take the line that moves away. */
export function clearLine(): void {
  if (open) process.stderr.write("\r\x1b[2K");
  open = false;
}
/** Say a line of its own. */
export function say(line: string): void {
  clearLine();
  process.stderr.write(`${line}\n`);
}
/**
 * Hears what is done of work in phases: on a terminal as it comes, elsewhere once a phase, so that a log has
 * few lines.
 */
export function phases(): (p: {
  readonly phase: string;
  readonly done: number;
  readonly total: number;
}) => void {
  let last = "";
  return ({ phase, done, total }) => {
    const percent = total > 0 ? Math.floor((100 * done) / total) : 100;
    const line = `${phase} ${percent} %`;
    if (line === last || (!process.stderr.isTTY && last.startsWith(`${phase} `))) return;
    last = line;
    progress(process.stderr.isTTY ? line : phase);
    if (!process.stderr.isTTY) last = `${phase} `;
  };
}
/** Seconds as people say them: 42 s, 3 min 05 s, 2 h 07 min. */
export function duration(seconds: number): string {
  const s = Math.max(0, Math.round(seconds));
  const two = (n: number): string => String(n).padStart(2, "0");
  if (s < 60) return `${s} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min ${two(s % 60)} s`;
  return `${Math.floor(s / 3600)} h ${two(Math.floor((s % 3600) / 60))} min`;
}
/** Rows of cells, columns aligned: the first to the left, numbers to the right. */
export function table(rows: readonly (readonly string[])[]): string {
  const widths = rows[0]!.map((_, i) => Math.max(...rows.map((r) => r[i]!.length)));
  return rows
    .map((r) =>
      r
        .map((c, i) => (i ? c.padStart(widths[i]!) : c.padEnd(widths[0]!)))
        .join("  ")
        .trimEnd(),
    )
    .join("\n");
}
