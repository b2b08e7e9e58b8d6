/** The API over one engine: which path is whose, and who may ask. */
import { sha256 } from "../../runtime/hash.ts";
import { checked } from "../../runtime/options.ts";
import type { Engine } from "../index.ts";
import { chat } from "./chat.ts";
import { completions } from "./completions.ts";
import { ApiError, apiError } from "./errors.ts";
import { Files } from "./files.ts";
import { json, jsonOf } from "./http.ts";
import { Jobs } from "./jobs.ts";
import { Models } from "./models.ts";
import { HandlerOptions } from "./options.ts";

interface Asked {
  readonly request: Request;
  readonly url: URL;
  /** What stands in the path where the route has a colon. */
  readonly id: string;
}
type Route = (api: Api, asked: Asked) => Promise<unknown> | unknown;
const body = (api: Api, request: Request) => jsonOf(request, api.limits.body);
/** Method and path; what is returned is told as JSON. */
const routes: Readonly<Record<string, Route>> = {
  "GET /health": (api) => api.health(),
  "GET /v1/models": (api) => api.models.list(),
  "GET /v1/models/:id": (api, { id }) => api.models.retrieve(id),
  "DELETE /v1/models/:id": (api, { id }) => api.models.remove(id),
  "POST /v1/chat/completions": async (api, { request }) => chat(api, request, await body(api, request)),
  "POST /v1/completions": async (api, { request }) => completions(api, request, await body(api, request)),
  "GET /v1/files": (api, { url }) => api.files.list(url),
  "POST /v1/files": (api, { request }) => api.files.upload(request),
  "GET /v1/files/:id": (api, { id }) => api.files.retrieve(id),
  "GET /v1/files/:id/content": (api, { id }) => api.files.content(id),
  "DELETE /v1/files/:id": (api, { id }) => api.files.remove(id),
  "GET /v1/fine_tuning/jobs": (api, { url }) => api.jobs.list(url),
  "POST /v1/fine_tuning/jobs": async (api, { request }) => api.jobs.create(await body(api, request)),
  "GET /v1/fine_tuning/jobs/:id": (api, { id }) => api.jobs.retrieve(id),
  "POST /v1/fine_tuning/jobs/:id/cancel": (api, { id }) => api.jobs.cancel(id),
  "GET /v1/fine_tuning/jobs/:id/events": (api, { id, url }) => api.jobs.events(id, url),
  "GET /v1/fine_tuning/jobs/:id/checkpoints": (api, { id, url }) => api.jobs.checkpoints(id, url),
};
const compiled = Object.entries(routes).map(([key, route]) => {
  const [method, path] = key.split(" ") as [string, string];
  return { method, route, path: new RegExp(`^${path.replace(":id", "([^/]+)")}/?$`) };
});

export class Api {
  readonly models: Models;
  readonly files: Files;
  readonly jobs: Jobs;
  readonly limits: { readonly body: number };
  /** Tokens of a chat's answer where the client does not say. */
  readonly maxTokens: number;
  private readonly key: Promise<string> | null;
  constructor(
    readonly engine: Engine,
    private readonly o: HandlerOptions = {},
  ) {
    checked(HandlerOptions, o);
    this.limits = { body: o.maxBodyBytes ?? 16 * 2 ** 20 };
    this.maxTokens = o.maxTokens ?? 512;
    this.key = o.apiKey === undefined ? null : sha256(o.apiKey);
    this.models = new Models(engine, o.model ?? "base");
    this.files = new Files(o.maxFileBytes ?? 256 * 2 ** 20);
    this.jobs = new Jobs(
      engine,
      this.models,
      this.files,
      async (name) => void (await o.onAdapter?.(name)),
      (e) => this.failed(e),
    );
  }
  /** What a client is told of an error; one that is the server's own fault is reported. */
  failed(e: unknown): ApiError {
    const error = apiError(e);
    // Who leaves in the middle of an answer has ended it: nobody's fault.
    if (error.status >= 500 && (e as Error).name !== "AbortError") this.o.onError?.(e);
    return error;
  }
  async respond(request: Request): Promise<Response> {
    try {
      const url = new URL(request.url);
      if (url.pathname !== "/health") await this.allow(request);
      const here = compiled.flatMap((r) => {
        const id = r.path.exec(url.pathname);
        return id ? [{ ...r, id: id[1] ?? "" }] : [];
      });
      if (!here.length) throw new ApiError(404, `There is no ${url.pathname}`, "unknown_url");
      const found = here.find((r) => r.method === request.method);
      if (!found)
        return json(new ApiError(405, `${request.method} is not for ${url.pathname}`), 405, {
          allow: here.map((r) => r.method).join(", "),
        });
      const said = await found.route(this, { request, url, id: decoded(found.id) });
      return said instanceof Response ? said : json(said);
    } catch (e) {
      // Nobody hears it.
      if (request.signal.aborted) return json(new ApiError(499, "The client has gone"), 499);
      const error = this.failed(e);
      const after = error.retryAfter;
      return json(error, error.status, after === null ? {} : { "retry-after": String(after) });
    }
  }
  /** Throws 401 without the key. Hashes are compared, all of them: how long it takes says nothing. */
  private async allow(request: Request): Promise<void> {
    if (!this.key) return;
    const said = /^Bearer (.+)$/i.exec(request.headers.get("authorization") ?? "")?.[1] ?? "";
    const [want, found] = await Promise.all([this.key, sha256(said)]);
    let differ = 0;
    for (let i = 0; i < want.length; i++) differ |= want.charCodeAt(i) ^ found.charCodeAt(i);
    if (differ) throw new ApiError(401, "The API key is wrong, or missing", "invalid_api_key");
  }
  health(): Response {
    const { core, device } = this.engine;
    const ok = !core.disposed;
    return json(
      { status: ok ? "ok" : "ended", model: this.models.base, device: device.name },
      ok ? 200 : 503,
    );
  }
}
const decoded = (part: string): string => {
  try {
    return decodeURIComponent(part);
  } catch {
    throw new ApiError(400, `${part} is no part of a path`, "invalid_value");
  }
};
