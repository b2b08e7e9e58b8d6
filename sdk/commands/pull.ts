/**
 * weft pull: a model of the Hugging Face Hub becomes a bundle in one step. Files are downloaded beside it,
 * go on where they ended, and are checked against the Hub's SHA-256 where it says one.
 */
import { downloadFile, HubApiError, type ListFileEntry, listFiles } from "@huggingface/hub";
import { showBytes, WeftError } from "../../runtime/bundle.ts";
import { makeFolder, onDisk, unless } from "../../runtime/disk.ts";
import { claimFolder } from "../../runtime/folder.ts";
import { node } from "../../runtime/node.ts";
import { type Command, type Flags, fail, optional, text, toggle } from "./command.ts";
import { compileFlags, compileTo } from "./compile.ts";
import { clearLine, progress } from "./progress.ts";

/** What a model is compiled from. */
const isWanted = (file: string): boolean =>
  /^(config|generation_config|tokenizer\w*|model\.safetensors\.index)\.json$/.test(file) ||
  /^(chat_template\.jinja|[\w.-]+\.safetensors)$/.test(file);
interface Hub {
  readonly repo: string;
  readonly revision: string;
  readonly hubUrl: string;
  readonly accessToken?: string;
}
/** What an error says, and what it says of why: "fetch failed" alone helps nobody. */
const reasons = (e: unknown): string[] =>
  e instanceof Error ? [e.message || String((e as { code?: unknown }).code), ...reasons(e.cause)] : [];
/** Errors of the Hub, and of the way there, in words. */
async function asked<T>({ repo, revision, hubUrl }: Hub, f: () => Promise<T>): Promise<T> {
  try {
    return await f();
  } catch (cause) {
    if (cause instanceof WeftError) throw cause;
    const status = cause instanceof HubApiError ? cause.statusCode : null;
    const gated = status === 401 || status === 403;
    throw new WeftError({
      code: "WEFT_IO",
      where: `${hubUrl}/${repo}, ${revision}`,
      expected: "a model that can be downloaded",
      found: status === null ? reasons(cause).join(": ") : `${status}: ${(cause as Error).message}`,
      ...(gated && { hint: "HF_TOKEN=… names who asks; some models must be asked for on their page" }),
      ...(!gated && status !== 404 && { hint: "run it again: what is there is kept", retryable: true }),
      cause,
    });
  }
}
/** Bring one file into `dir`, or the rest of it. */
async function bring(hub: Hub, file: ListFileEntry, dir: string, told: (n: number) => void): Promise<void> {
  const { fs, path, crypto } = await node();
  const to = path.join(dir, file.path);
  const size = file.lfs?.size ?? file.size;
  if ((await unless(["ENOENT"], () => fs.stat(to), null))?.size === size) return told(size);
  const part = `${to}.part`;
  let have = (await unless(["ENOENT"], () => fs.stat(part), null))?.size ?? 0;
  if (have > size) {
    await fs.rm(part);
    have = 0;
  }
  told(have);
  if (have < size) {
    const blob = await asked(hub, () => downloadFile({ ...hub, path: file.path, xet: false }));
    if (!blob) fail("weft pull", `${file.path} in ${hub.repo}`, "no such file");
    const handle = await fs.open(part, "a");
    try {
      const reader = blob!.slice(have, size).stream().getReader();
      for (;;) {
        const got = await asked(hub, () => reader.read());
        if (got.done) break;
        await handle.writeFile(got.value);
        told(got.value.length);
      }
      await handle.sync();
    } finally {
      await handle.close();
    }
  }
  const refuse = async (expected: string, found: string): Promise<never> => {
    await fs.rm(part, { force: true });
    throw new WeftError({ code: "WEFT_IO", where: to, expected, found, hint: "run it again" });
  };
  const there = (await fs.stat(part)).size;
  if (there !== size) await refuse(`${size} bytes`, String(there));
  if (file.lfs) {
    const hash = crypto.createHash("sha256");
    const handle = await fs.open(part, "r");
    for await (const piece of handle.createReadStream()) hash.update(piece as Uint8Array);
    const found = hash.digest("hex");
    if (found !== file.lfs.oid) await refuse(`sha-256 ${file.lfs.oid}`, found);
  }
  await fs.rename(part, to);
}
/** Bring a model's files into `dir`. */
async function download(hub: Hub, dir: string): Promise<void> {
  const files: ListFileEntry[] = [];
  await asked(hub, async () => {
    for await (const f of listFiles(hub)) if (f.type === "file" && isWanted(f.path)) files.push(f);
  });
  // Of two copies of the weights, the one that config.json's index names, or the one that is a whole.
  const names = files.map((f) => f.path);
  const shards = names.some((n) => n === "model.safetensors.index.json");
  const needed = files.filter(
    ({ path }) =>
      !path.endsWith(".safetensors") ||
      (shards ? /^model-\d+-of-\d+\.safetensors$/.test(path) : path === "model.safetensors"),
  );
  if (!names.includes("config.json") || !needed.some((f) => f.path.endsWith(".safetensors")))
    fail(
      "weft pull",
      "a model with config.json and safetensors",
      `${names.join(", ") || "neither"} in ${hub.repo}`,
    );
  const total = needed.reduce((n, f) => n + (f.lfs?.size ?? f.size), 0);
  let done = 0;
  await onDisk(dir, "a folder that can be written", async () => {
    await makeFolder(dir);
    for (const file of needed)
      await bring(hub, file, dir, (n) => {
        done += n;
        if (process.stderr.isTTY) progress(`${file.path}: ${showBytes(done)} of ${showBytes(total)}`);
      });
  });
  clearLine();
}

export const pull: Command = {
  summary: "a model of the Hugging Face Hub becomes a bundle",
  synopsis: "ORG/MODEL[@REVISION] [-o BUNDLE]",
  details:
    "HF_ENDPOINT names another Hub, HF_TOKEN who asks. A download that was cut off goes on when it " +
    "is asked for again.",
  flags: {
    output: text("BUNDLE", "the folder to write; default: ./MODEL.weft", { short: "o" }),
    folder: text("DIR", "where the model's files go; default: BUNDLE.model, which is removed in the end"),
    keep: toggle("keep the model's files also there"),
    ...compileFlags,
  },
  run: async ([said], f: Flags, json) => {
    const { fs } = await node();
    const [, repo, model, revision] = /^([\w.-]+\/([\w.-]+))(?:@([\w./-]+))?$/.exec(said ?? "") ?? [];
    if (!repo) fail("weft pull", "org/model, or org/model@revision", said ?? "nothing");
    const out = optional(f, "output") ?? `./${model}.weft`;
    // What cannot be written is told before anything is downloaded.
    await claimFolder(out, "bundle");
    const folder = optional(f, "folder") ?? `${out.replace(/[\\/]+$/, "")}.model`;
    const token = process.env.HF_TOKEN;
    const hub: Hub = {
      repo: repo!,
      revision: revision ?? "main",
      hubUrl: (process.env.HF_ENDPOINT || "https://huggingface.co").replace(/\/+$/, ""),
      ...(token && { accessToken: token }),
    };
    await download(hub, folder);
    await compileTo(folder, out, f, json);
    if (f.folder === undefined && !f.keep) await fs.rm(folder, { recursive: true });
  },
};
