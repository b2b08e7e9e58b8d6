/** Patterns of strangers' files: the language of Python's re.fullmatch, in linear time. */
import * as assert from "uvu/assert";
import { WeftError } from "../runtime/errors.ts";
import { pattern, steps } from "../runtime/pattern.ts";
import { type Random, randomOf } from "./support/mutate.ts";
import { rounds } from "./support/scale.ts";
import { suite } from "./support/suite.ts";

const test = suite("patterns");
const at = { code: "WEFT_ADAPTER", where: "target_modules" } as const;
const matches = (source: string, text: string, tail = false): boolean =>
  pattern(source, tail, at)(text, steps());

/** A random pattern of the subset, as text. */
function write(r: Random, depth: number): string {
  const atom = (): string => {
    const kind = r(depth > 0 ? 9 : 7);
    if (kind < 3) return "abc.d12_"[r(8)] === "." ? "\\." : "abcd12_"[r(7)]!;
    if (kind === 3) return ".";
    if (kind === 4) return ["\\d", "\\w", "\\D", "\\W", "\\s"][r(5)]!;
    if (kind === 5) return ["[abc]", "[^a]", "[a-c1]", "[\\d_]", "[^\\w]", "[a\\-]", "[-a]", "[]a]"][r(7)]!;
    if (kind === 6) return ["^", "$", "a", "", "\\b", "\\B"][r(6)]!;
    return `(${["", "?:"][r(2)]}${write(r, depth - 1)}${r(2) ? `|${write(r, depth - 1)}` : ""})`;
  };
  let out = "";
  for (let n = r(4) + 1; n > 0; n--) {
    const a = atom();
    const times = ["*", "+", "?", "{2}", "{1,2}", "{0,3}", "{2,}", "*?", "+?"][r(9)]!;
    out += a && !["^", "$", "\\b", "\\B"].includes(a) && r(3) === 0 ? a + times : a;
  }
  return out;
}
test("a pattern matches what JavaScript's own matches, whole texts only", () => {
  const r = randomOf("patterns");
  let yes = 0;
  for (let i = 0; i < rounds(4000, 100_000); i++) {
    const source = write(r, 2);
    const own = new RegExp(`^(?:${source})$`, "u");
    const tail = new RegExp(`^(?:.*\\.)?(?:${source})$`, "u");
    const [whole, after] = [pattern(source, false, at), pattern(source, true, at)];
    for (let k = 0; k < 12; k++) {
      const text = Array.from({ length: r(7) }, () => "abcd12_. é-"[r(11)]).join("");
      assert.is(whole(text, steps()), own.test(text), `/${source}/ on "${text}"`);
      assert.is(after(text, steps()), tail.test(text), `…/${source}/ on "${text}"`);
      if (own.test(text)) yes++;
    }
  }
  assert.ok(yes > 2000, `${yes} matches`);
});
test("what PEFT users write", () => {
  const q = "model.layers.11.self_attn.q_proj";
  for (const source of [
    ".*q_proj",
    ".*\\.(q_proj|v_proj)",
    "model\\.layers\\.\\d+\\.self_attn\\.(?:q|k|v|o)_proj",
    "model\\.layers\\.(1[0-2]|2)\\..*",
    "^model.*q_proj$",
    // Unsloth's.
    "(?:.*?(?:language|text).*?(?:q_proj).*?)|" +
      "(?:\\bmodel\\.layers\\.[\\d]{1,}\\.(?:self_attn|mlp)\\.(?:(?:q_proj|k_proj)))",
    "(?P<rest>.*)_proj",
    "model\\.layers\\.[0-9]{1,2}\\.self_attn\\.q_proj",
  ])
    assert.ok(matches(source, q), source);
  for (const source of ["q_proj", "layers", ".*\\.(k_proj|v_proj)", "model\\.layers\\.1\\..*", ""])
    assert.not(matches(source, q), source);
  assert.ok(matches("q_proj", q, true));
  assert.ok(matches("self_attn\\.q_proj", q, true));
  assert.not(matches("_proj", q, true));
  assert.ok(matches("a{", "a{"));
  assert.ok(matches("a{,2}b", "aab"));
});
test("what backtracks for ever elsewhere is decided here, in steps counted", () => {
  for (const source of ["(a+)+$", "(a|a)*b", "(a|aa)+$", "(.*)*x", "(a*)*(a*)*(a*)*b", "((a+)+)+[^a]{3}"]) {
    const budget = steps();
    assert.not(pattern(source, true, at)("a".repeat(5000), budget) && source.endsWith("b"));
    assert.ok(steps().left - budget.left < 5000 * 200, source);
  }
  const wide = pattern("(a?){60}a{60}", false, at);
  assert.ok(wide("a".repeat(100), steps()));
  try {
    wide("a".repeat(100), { left: 1000 });
    assert.unreachable();
  } catch (e) {
    assert.instance(e, WeftError);
    assert.match((e as Error).message, /too much to decide/);
  }
});
test("what needs more is refused by name", () => {
  for (const [source, says] of [
    ["(a)\\1", /a backreference/],
    ["(?=a)b", /lookaround/],
    ["(?<!a)b", /lookaround/],
    ["(?i)a", /flags/],
    ["a++", /possessive/],
    ["a**", /repetition of a repetition/],
    ["*a", /nothing to repeat/],
    ["(a", /unclosed \(/],
    ["a)", /unopened \)/],
    ["[a", /unclosed \[/],
    ["a\\", /escape of nothing/],
    ["\\pq", /escape \\p/],
    ["a{3,1}", /from more to less/],
    ["[c-a]", /from more to less/],
    ["(){99999999}", /more than 1000 times/],
    ["((a{900}){900}){900}", /more than 4000 states/],
    ["a".repeat(1e6), /more than 20000 characters/],
    ["(".repeat(5000) + ")".repeat(5000), /groups that deep/],
  ] as const)
    try {
      pattern(source, false, at);
      assert.unreachable(source.slice(0, 30));
    } catch (e) {
      assert.instance(e, WeftError, `${source.slice(0, 30)}: ${e}`);
      assert.is((e as WeftError).where, "target_modules");
      assert.match((e as Error).message, says);
    }
});
test.run();
