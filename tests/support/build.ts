/**
 * Tests as JavaScript, built once for all of a run: a loader of TypeScript takes most of a second in every
 * process, and there are two hundred.
 */
import { mkdirSync, mkdtempSync, readFileSync, rmSync } from "node:fs";
import { join } from "node:path";
import { pathToFileURL } from "node:url";
import { build, type Plugin } from "esbuild";
import { root } from "./program.ts";

/** What tests start, beside the files of tests: the command line, and the doors of the package. */
const started = [
  ...["child", "weft", "quick", "released", "relaxed"].map((name) => `tests/support/${name}.ts`),
  ...["sdk", "runtime", "sdk/openai", "sdk/worker"].map((folder) => `${folder}/index.ts`),
  ...["compiler/compile.ts", "sdk/worker/entry.ts"],
];
/** A module is still where its source is: files that it reads lie beside that. */
const inPlace: Plugin = {
  name: "in place",
  setup: (b) =>
    b.onLoad({ filter: /\.ts$/ }, ({ path }) => {
      const url = JSON.stringify(pathToFileURL(path).href);
      const contents = readFileSync(path, "utf8").replace(/^(?:#!.*\n)?/, `$&const whereItIs = ${url};\n`);
      return { contents, loader: "ts" };
    }),
};
/**
 * Build test files, as paths from the root, into a new folder of the repository, where packages are found;
 * it goes with this process.
 */
export async function buildTests(files: readonly string[]): Promise<string> {
  mkdirSync(join(root, ".weft"), { recursive: true });
  const outdir = mkdtempSync(join(root, ".weft/tests-"));
  process.on("exit", () => rmSync(outdir, { recursive: true, force: true }));
  await build({
    entryPoints: [...files, ...started],
    ...{ bundle: true, splitting: true, format: "esm", platform: "node", packages: "external" },
    ...{ target: "node20", absWorkingDir: root, outbase: ".", outdir, plugins: [inPlace] },
    ...{ define: { "import.meta.url": "whereItIs" }, logLevel: "warning" },
  });
  return outdir;
}
