/** The command line's words: help for all there is, and what to do where one is wrong. */
import { writeFileSync } from "node:fs";
import * as assert from "uvu/assert";
import { commands } from "../sdk/commands/index.ts";
import { clearLine, progress } from "../sdk/commands/progress.ts";
import { weft } from "./support/console.ts";
import { bundle, configs } from "./support/engines.ts";
import { suite } from "./support/suite.ts";
import { scratch, writeModel } from "./support/tiny.ts";

const test = suite("help");

test("every command's help says every flag, in lines that fit", async () => {
  const all = await weft("--help");
  assert.is(all.code, 0);
  for (const [name, { flags, synopsis, summary }] of Object.entries(commands)) {
    assert.match(all.out, `weft ${name} `);
    assert.match(all.out, summary);
    const { code, out } = await weft(name, "--help");
    assert.is(code, 0);
    assert.ok(out.startsWith(`weft ${name} ${synopsis}`.trimEnd()));
    for (const [flag, { help, value }] of Object.entries(flags)) {
      assert.match(out, `--${flag}${value && ` ${value}`}`);
      assert.ok(help.length > 8, `${name} --${flag} has a meaning`);
    }
    for (const line of out.split("\n")) assert.ok(line.length <= 100, line);
  }
});

test("a wrong word is answered with the nearest; a model, with what makes a bundle", async () => {
  const dir = scratch();
  const model = writeModel(configs.even);
  const bundled = await bundle(configs.even);
  writeFileSync(`${dir}/adapter_config.json`, "{}");
  for (const [says, ...args] of [
    [/did you mean weft generate\?/, "genrate"],
    [/did you mean weft finetune\?/, "fine-tune"],
    [/did you mean --prompt\? weft generate --help/, "generate", dir, "--promt", "x"],
    [/did you mean --learning-rate\? weft finetune --help/, "finetune", dir, "--learningRate", "1"],
    [/did you mean --learning-rate\? weft finetune --help/, "finetune", dir, "--lr", "1"],
    [/'--heat'.*\(weft inspect --help\)/, "inspect", dir, "--heat"],
    [/weft compile -o, --output: .*nothing \(weft compile --help\)/, "compile", model],
    [/weft inspect --for: .*lots \(weft inspect --help\)/, "inspect", bundled, "--for", "lots"],
    [
      /make one with: weft compile \.\/x\/tiny\.Q8_0\.gguf -o \.\/tiny\.Q8_0\.weft/,
      "generate",
      "./x/tiny.Q8_0.gguf",
    ],
    [/make one with: weft compile .* -o \.\/weft-test-.*\.weft/, "generate", model],
    [/weft pull HuggingFaceTB\/SmolLM2-135M-Instruct -o/, "generate", "HuggingFaceTB/SmolLM2-135M-Instruct"],
    [/weft pull org\/model@main -o/, "finetune", "org/model@main"],
    [/name its bundle; the adapter goes behind --adapter/, "inspect", dir],
    [/weft inspect --help/, "inspect"],
    [/weft inspect --help/, "inspect", dir, dir],
  ] as [RegExp, ...string[]][]) {
    const more = args[0] === "generate" && !args.includes("--promt") ? ["--prompt", "x"] : [];
    const needs = args[0] === "finetune" ? ["--out", `${dir}/o`, "--data", "x", "--name", "n"] : [];
    const { code, err } = await weft(...args, ...more, ...needs);
    assert.is(code, 1);
    assert.match(err, says, args.join(" "));
    assert.not.match(err, /\n\s+at /);
  }
});
test("a line that moves is as wide as the terminal, or as most are where one does not know", () => {
  const { stderr } = process;
  const kept = ["isTTY", "columns", "write"].map(
    (k) => [k, Object.getOwnPropertyDescriptor(stderr, k)] as const,
  );
  let said = "";
  Object.assign(stderr, { isTTY: true, write: (s: string) => Boolean((said += s)) });
  try {
    for (const [columns, letters] of [
      [40, 38],
      [0, 78],
    ] as const) {
      said = "";
      Object.defineProperty(stderr, "columns", { value: columns, configurable: true });
      progress("x".repeat(200));
      assert.is(said, `\r\x1b[2K${"x".repeat(letters)}…`);
    }
    clearLine();
  } finally {
    for (const [key, was] of kept) {
      delete (stderr as never)[key];
      if (was) Object.defineProperty(stderr, key, was);
    }
  }
});
test.run();
