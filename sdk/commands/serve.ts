/** weft serve: an engine as OpenAI's API, over HTTP. */
import { unless } from "../../runtime/disk.ts";
import { node } from "../../runtime/node.ts";
import { claimCheckpoints } from "../checkpoint.ts";
import type { Engine } from "../index.ts";
import { Api } from "../openai/api.ts";
import { isLoopback, listen } from "../openai/node.ts";
import { loadFlags, openBundle } from "./bundle.ts";
import { type Command, fail, given, needed, number, optional, text } from "./command.ts";
import { say } from "./progress.ts";

/** Load every adapter that lies in `dir`, under the name of its folder. */
async function loadAdapters(engine: Engine, dir: string): Promise<string[]> {
  const { fs, path } = await node();
  const loaded: string[] = [];
  for (const e of await unless(["ENOENT"], () => fs.readdir(dir, { withFileTypes: true }), [])) {
    const folder = path.join(dir, e.name);
    if (!(await fs.stat(path.join(folder, "adapter_config.json")).catch(() => null))) continue;
    const { warnings } = await engine.adapters.load(e.name, folder);
    for (const w of warnings) say(`${e.name}: ${w}`);
    loaded.push(e.name);
  }
  return loaded;
}

export const serve: Command = {
  summary: "an OpenAI-compatible server for answers and fine-tuning jobs",
  synopsis: "BUNDLE [--adapters DIR] [--port N]",
  details:
    "The base is the model NAME, an adapter NAME:adapter, a generation of it NAME:adapter@3. Paths " +
    "begin with /v1; /health tells whether it runs.\nCtrl-C or SIGTERM: running answers are " +
    "finished, running jobs kept with --checkpoints. A second one stops at once.",
  flags: {
    adapters: text("DIR", "a folder of adapter folders: loaded at the start, and jobs save theirs there"),
    checkpoints: text("DIR", "where jobs that run when the server stops leave DIR/<name> to go on from"),
    port: text("N", "default 8080; 0 for any that is free"),
    host: text("ADDRESS", "default 127.0.0.1: this machine alone"),
    "api-key": text("KEY", "what clients must send; default: $WEFT_API_KEY, else nothing"),
    model: text("NAME", "what clients call the base; default: the bundle's folder without .weft"),
    "max-tokens": text("N", "tokens of a chat's answer where the client does not say; default 512"),
    ...loadFlags,
  },
  run: async (positional, f, json) => {
    const { path } = await node();
    const bundle = needed(positional, "serve", "a bundle");
    const host = optional(f, "host") ?? "127.0.0.1";
    const port = number(f, "port") ?? 8080;
    if (!Number.isInteger(port) || port < 0 || port > 65535) fail("--port", "0 to 65535", String(f.port));
    const apiKey = optional(f, "api-key") ?? (process.env.WEFT_API_KEY || undefined);
    await using engine = await openBundle("serve", bundle, f);
    const dir = optional(f, "adapters");
    const adapters = dir === undefined ? [] : await loadAdapters(engine, dir);
    if (dir !== undefined && !adapters.length) say(`no adapter in ${dir} yet: jobs save theirs there`);
    const checkpoints = optional(f, "checkpoints");
    const onError = (e: unknown): void => say(e instanceof Error ? (e.stack ?? e.message) : String(e));
    const api = new Api(engine, {
      model: optional(f, "model") ?? path.basename(path.resolve(bundle)).replace(/\.weft$/, ""),
      ...given({ apiKey, maxTokens: number(f, "max-tokens") }),
      ...(dir !== undefined && {
        onAdapter: (name: string) => engine.adapters.get(name).save(path.join(dir, name)),
      }),
      onError,
    });
    const server = await listen((request) => api.respond(request), { port, host, onError });
    // Before anybody is told that it runs: who is told may stop it.
    let stopping = false;
    const stopped = new Promise<void>((resolve) => {
      for (const signal of ["SIGINT", "SIGTERM", "SIGHUP"] as const)
        process.on(signal, () => {
          if (stopping) process.exit(1);
          stopping = true;
          say(`${signal}: finishing what runs; again to stop at once`);
          resolve();
        });
    });
    const about = { url: `${server.url}/v1`, model: api.models.base, adapters, device: engine.device.name };
    console.log(
      json
        ? JSON.stringify(about)
        : `${about.url}: ${[about.model, ...adapters.map((a) => `${about.model}:${a}`)].join(", ")}, ` +
            `on ${about.device}`,
    );
    if (!isLoopback(host) && apiKey === undefined)
      say(`whoever reaches ${host} can use it: --api-key KEY asks for a key`);

    const ended = await Promise.race([stopped, engine.closed]);
    const closed = server.close();
    if (ended) {
      say(ended.message);
      return 1;
    }
    await Promise.all(
      api.jobs.close().map(async ({ job, name }) => {
        try {
          if (checkpoints === undefined) return say(`the job ${name} is lost: --checkpoints DIR keeps jobs`);
          const to = path.join(checkpoints, name);
          await claimCheckpoints(to);
          await job.checkpoint(to);
          say(`the job ${name} is kept in ${to}, at step ${job.step}`);
        } finally {
          job.cancel();
          await job.done.catch(() => {});
        }
      }),
    );
    await closed;
    return 0;
  },
};
