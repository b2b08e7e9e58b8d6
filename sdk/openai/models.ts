/**
 * Models of the API: the base under its name, and adapters behind a colon: `base:notes` for the latest
 * generation of an adapter, `base:notes@3` for that one.
 */
import { WeftError } from "../../runtime/bundle.ts";
import { didYouMean } from "../../runtime/schema.ts";
import type { Engine } from "../index.ts";
import { ApiError } from "./errors.ts";

/** What the base can be called whatever its name is. */
const BASE = "base";
/** So many models an error still names; of more, the one that is near. */
const LISTED = 8;
export interface Model {
  readonly id: string;
  readonly object: "model";
  /** Seconds since 1970. */
  readonly created: number;
  readonly owned_by: "weft";
}

export class Models {
  private readonly since = Math.floor(Date.now() / 1000);
  constructor(
    private readonly engine: Engine,
    /** What the base is called. */
    readonly base: string,
  ) {}
  /** The name of what answered: `base`, or `name@generation`. */
  idOf(adapter: string): string {
    return adapter === BASE ? this.base : `${this.base}:${adapter}`;
  }
  /** The adapter that a model's name means; undefined for the base. Throws 404. */
  adapter(model: string): string | undefined {
    for (const base of [this.base, BASE]) {
      if (model === base) return undefined;
      if (!model.startsWith(`${base}:`)) continue;
      const ref = model.slice(base.length + 1);
      try {
        return this.engine.adapters.get(ref).ref;
      } catch (e) {
        if (WeftError.from(e)?.code !== "WEFT_NOT_FOUND") throw e;
      }
    }
    throw this.unknown(model);
  }
  private unknown(model: string): ApiError {
    const ids = this.list().data.map(({ id }) => id);
    const there = ids.length <= LISTED ? `there are ${ids.join(", ")}` : didYouMean(model, ids);
    const message = `The model '${model}' does not exist${there ? `: ${there}` : ""}`;
    return new ApiError(404, message, "model_not_found", "model");
  }
  private model(id: string): Model {
    return { id, object: "model", created: this.since, owned_by: "weft" };
  }
  list(): { object: "list"; data: Model[] } {
    const names = this.engine.adapters.list().map(({ name }) => name);
    return { object: "list", data: [BASE, ...new Set(names)].map((name) => this.model(this.idOf(name))) };
  }
  retrieve(id: string): Model {
    const ref = this.adapter(id);
    return this.model(ref === undefined ? this.base : this.idOf(ref));
  }
  /** Forget an adapter; requests that run on it finish. */
  remove(id: string): { id: string; object: "model"; deleted: true } {
    const ref = this.adapter(id);
    if (ref === undefined) throw new ApiError(400, "The base cannot be deleted", "invalid_value", "model");
    if (ref.includes("@"))
      throw new ApiError(400, "All generations of an adapter are deleted together", "invalid_value", "model");
    this.engine.adapters.remove(ref);
    return { id, object: "model", deleted: true };
  }
}
