/** /v1/files: rows to learn from, in memory as long as the server runs. */

import { showBytes } from "../../runtime/bundle.ts";
import { parseJsonl } from "../data.ts";
import type { DataRow } from "../index.ts";
import { ApiError } from "./errors.ts";
import { bodyOf, page } from "./http.ts";

export interface FileObject {
  readonly id: string;
  readonly object: "file";
  readonly bytes: number;
  readonly created_at: number;
  readonly filename: string;
  readonly purpose: "fine-tune";
  readonly status: "processed";
}
/** What the form around a file may take beside it. */
const FORM = 65536;

export class Files {
  private readonly files = new Map<string, { about: FileObject; bytes: Uint8Array<ArrayBuffer> }>();
  private held = 0;
  /** `limit`: bytes of all files together. */
  constructor(private readonly limit: number) {}

  /** Take a file of a form, with its purpose. Every row is read now. Throws 400 that names the line. */
  async upload(request: Request): Promise<FileObject> {
    const type = request.headers.get("content-type") ?? "";
    if (!/^multipart\/form-data\b/i.test(type))
      throw new ApiError(415, `The body must be multipart/form-data, found ${type || "no content-type"}`);
    const body = await bodyOf(request, this.limit - this.held + FORM);
    let form: FormData;
    try {
      form = await new Response(body, { headers: { "content-type": type } }).formData();
    } catch (e) {
      throw new ApiError(400, `The form cannot be read: ${(e as Error).message}`, "invalid_form");
    }
    const [file, purpose] = [form.get("file"), form.get("purpose")];
    if (!(file instanceof Blob)) throw new ApiError(400, "The form has no file", "missing", "file");
    if (purpose !== "fine-tune")
      throw new ApiError(400, "The only purpose is 'fine-tune'", "invalid_value", "purpose");
    const bytes = new Uint8Array(await file.arrayBuffer());
    if (bytes.length > this.limit - this.held)
      throw new ApiError(
        413,
        `Files may have ${showBytes(this.limit)} together, ${showBytes(this.held)} are in use: delete some`,
        "request_too_large",
      );
    const filename = (file as File).name || "file.jsonl";
    parseJsonl(bytes, filename);
    const about: FileObject = {
      id: `file-${crypto.randomUUID().replaceAll("-", "")}`,
      object: "file",
      bytes: bytes.length,
      created_at: Math.floor(Date.now() / 1000),
      filename,
      purpose: "fine-tune",
      status: "processed",
    };
    this.files.set(about.id, { about, bytes });
    this.held += bytes.length;
    return about;
  }
  private file(id: string, param: string | null = null) {
    const file = this.files.get(id);
    if (!file) throw new ApiError(404, `No such file: ${id}`, "not_found", param);
    return file;
  }
  list(url: URL): object {
    return page([...this.files.values()].map((f) => f.about).reverse(), url, 10_000);
  }
  retrieve(id: string): FileObject {
    return this.file(id).about;
  }
  content(id: string): Response {
    return new Response(this.file(id).bytes, { headers: { "content-type": "application/octet-stream" } });
  }
  remove(id: string): object {
    const { bytes } = this.file(id);
    this.files.delete(id);
    this.held -= bytes.length;
    return { id, object: "file", deleted: true };
  }
  /** Rows of a file that a request names as its `param`. */
  rows(id: string, param: string): DataRow[] {
    const { about, bytes } = this.file(id, param);
    return parseJsonl(bytes, about.filename);
  }
}
