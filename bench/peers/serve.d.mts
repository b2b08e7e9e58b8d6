export function median(xs: readonly number[]): number;
export function timed(f: () => Promise<unknown>, repeats?: number): Promise<number>;
// biome-ignore lint/suspicious/noExplicitAny: every handler says itself what it is asked
export function serve(handlers: Readonly<Record<string, (args: any) => Promise<object>>>): Promise<void>;
export function prompt(n: number, seed: number): number[];
