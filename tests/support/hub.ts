/** A server with the Hugging Face Hub's layout, of one model's files, for `weft pull`. */
import { createHash } from "node:crypto";
import { existsSync, readdirSync, readFileSync, statSync } from "node:fs";
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";

export interface Hub {
  /** What HF_ENDPOINT is. */
  readonly url: string;
  /** Longer answers are cut off after so many bytes, as soon as `arrived`; 0: none. */
  cut: number;
  arrived: () => boolean;
  /** Bytes of files that were sent whole. */
  sent: number;
  /** What it says the SHA-256 of the weights is. */
  oid: string;
  /** Files that were asked for. */
  readonly asked: string[];
  readonly close: () => void;
}
/** The files of the folder `model` as `repo` (org/name) at `revision`; `token`: what clients must send. */
export async function openHub(
  model: string,
  { repo, revision, token }: { readonly repo: string; readonly revision: string; readonly token?: string },
): Promise<Hub> {
  const weights = readFileSync(`${model}/model.safetensors`);
  const server = createServer((req, res) => {
    const url = new URL(req.url!, "http://hub");
    if (token !== undefined && req.headers.authorization !== `Bearer ${token}`)
      return void res.writeHead(401).end("{}");
    if (url.pathname === `/api/models/${repo}/tree/${revision}`) {
      const list = readdirSync(model).map((path) => {
        const { size } = statSync(`${model}/${path}`);
        const lfs = path.endsWith(".safetensors") && { lfs: { oid: hub.oid, size, pointerSize: 130 } };
        return { type: "file", path, size, oid: "0".repeat(40), ...lfs };
      });
      return void res.writeHead(200, { "content-type": "application/json" }).end(JSON.stringify(list));
    }
    const files = `/${repo}/resolve/${revision}/`;
    const path = url.pathname.startsWith(files) && url.pathname.slice(files.length);
    if (!path || !/^[\w.]+$/.test(path) || !existsSync(`${model}/${path}`))
      return void res.writeHead(404, { "content-type": "application/json" }).end('{"error":"none"}');
    hub.asked.push(path);
    const all = readFileSync(`${model}/${path}`);
    const [, from, to] = /^bytes=(\d+)-(\d*)$/.exec(req.headers.range ?? "") ?? [];
    const part = from === undefined ? all : all.subarray(Number(from), to ? Number(to) + 1 : all.length);
    const range = from !== undefined && {
      "content-range": `bytes ${from}-${Number(from) + part.length - 1}/${all.length}`,
    };
    res.writeHead(from === undefined ? 200 : 206, {
      ...{ "content-length": part.length, etag: '"x"', "accept-ranges": "bytes", ...range },
    });
    if (req.method === "HEAD") return void res.end();
    if (hub.cut && part.length > hub.cut) {
      const look = setInterval(() => {
        if (!hub.arrived()) return;
        clearInterval(look);
        res.destroy();
      }, 5);
      res.write(part.subarray(0, hub.cut));
      return;
    }
    if (part.length > 1000) hub.sent += part.length;
    res.end(part);
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const hub: Hub = {
    url: `http://127.0.0.1:${(server.address() as AddressInfo).port}/`,
    ...{ cut: 0, arrived: () => true, sent: 0, asked: [] },
    oid: createHash("sha256").update(weights).digest("hex"),
    close: () => {
      server.close();
      server.closeAllConnections();
    },
  };
  return hub;
}
