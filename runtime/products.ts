/**
 * What products with matrices are made of: f32; int8 and q4 as the integers that they are, of rows that are
 * rounded; or of both sides rounded to f16, as matrix units take them. Each rounds in its own way, and is a
 * class of numerics, which it adds to a device's.
 */
export const products = { f32: "", integers: " int", matrix: " matrix" } as const;
export type Products = keyof typeof products;
export const productNames = Object.keys(products) as readonly Products[];
