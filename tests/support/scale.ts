/** How much a test does: a short form in `npm test`, a long one in `npm run test:long`. */
export const long = process.env.WEFT_LONG === "1";
export const rounds = (short: number, many: number): number => (long ? many : short);
