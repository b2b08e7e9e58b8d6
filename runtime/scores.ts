/** Scores of the units of a coupled group, from which S2FT selects (paper §3.2). */
import type { UnitScores } from "./content.ts";
import { paramNamed, unpackHalfPanels, unpackPanels } from "./device.ts";
import type { Engine } from "./engine.ts";

/** ‖W‖₂ of a unit over the matrices of its group: its rows of gate, up, v and its columns of down, o. */
export function weightScores(engine: Engine): UnitScores {
  const { manifest, device } = engine;
  const { plan } = device;
  return async (layer, group, units) => {
    const squares = new Float64Array(units);
    for (const site of manifest.sites) {
      if (site.coupling?.group !== group) continue;
      const inner = site.coupling.axis === "in";
      const channels = inner ? site.inFeatures : site.outFeatures;
      // Matrices whose channels are cut into other units (keys and values of several query heads) have no say.
      if (site.coupling.shared && channels % units) continue;
      const p = paramNamed(plan.layerParams, `${site.module}.weight`);
      const raw = await device.read({ cls: "weights", group: layer, offset: p.offset, words: manifest.model.format === "f16" ? p.words / 2 : p.words });
      const w = manifest.model.format === "f16" ? unpackHalfPanels(raw, p.n, p.k, plan.panel) : unpackPanels(raw, p.n, p.k, plan.panel);
      const size = channels / units;
      for (let o = 0; o < p.n; o++)
        for (let i = 0; i < p.k; i++) {
          const u = Math.floor((inner ? i : o) / size);
          squares[u] = squares[u]! + w[o * p.k + i]! ** 2;
        }
    }
    return squares.map(Math.sqrt);
  };
}
