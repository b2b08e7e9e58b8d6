import type { GridDim } from "../../runtime/bundle.ts";
import type { AnyBody, KernelEnv } from "../kernel.ts";
import type { Target } from "../target.ts";
export function emitLaunchWgsl(_name: string, _bodies: readonly AnyBody[], _env: KernelEnv, _target: Target): string {
  return "";
}
export function gridOf(_bodies: readonly AnyBody[], _env: KernelEnv, _target: Target): readonly [GridDim, GridDim, GridDim] {
  const one: GridDim = { count: "one", mul: 1, div: 1 };
  return [one, one, one];
}
