/**
 * The page: it looks at what a load would take, loads when the visitor says so (at once where all of it is
 * here already), and then talks and learns at the same time. `?bundle=URL` plays another bundle, `?device=`
 * another device.
 */
import { availability, type DeviceChoice, type LoadProgress } from "../../sdk/index.ts";
import { type AsyncEngine, createWorkerEngine, type RecoverEvent } from "../../sdk/worker/index.ts";
import { Chat } from "./chat.ts";
import { Kept } from "./kept.ts";
import { line, pair, rowsOf } from "./lessons.ts";
import { Losses, Rates } from "./plots.ts";
import { Shelf } from "./shelf.ts";
import { Teacher } from "./teacher.ts";
import { $, aloud, button, element, input, notice } from "./ui.ts";
import { bytes, sentence } from "./words.ts";

const given = new URLSearchParams(location.search);
const bundle = given.get("bundle") ?? "story.weft";
const options = { device: (given.get("device") ?? "auto") as DeviceChoice };
/** What the example model knows to answer and to go on with. */
const hints = given.has("bundle")
  ? []
  : ["Where does Mia live?", "What pet does Tom have?", "Once there was a child named Zoe."];

const go = button("go");
const plots = { losses: new Losses(), rates: new Rates() };
let engine: AsyncEngine | null = null;
let teacher: Teacher | null = null;
let shelf: Shelf | null = null;
const kept = new Kept(
  () => engine,
  () => teacher,
  () => shelf !== null,
);
const failed = (e: unknown): void => notice(sentence(e));

/** Which part a narrow window shows. */
for (const b of document.querySelectorAll<HTMLButtonElement>("nav button"))
  b.addEventListener("click", () => {
    document.body.dataset.panel = b.dataset.shows!;
    for (const other of document.querySelectorAll("nav button")) other.ariaPressed = String(other === b);
  });
button("dismiss").addEventListener("click", () => notice(null));

/** Say what a load would take. `here`: nothing has to be fetched; `no`: it would not load. */
async function look(): Promise<"here" | "fetch" | "no"> {
  const { ok, problems, target, why, memory, storage } = await availability(bundle, options);
  if (!ok) {
    $("takes").textContent = problems.map(sentence).join(" ");
    return "no";
  }
  const device = target === "webgpu" ? "your graphics card" : "your processor";
  const fetches = !storage
    ? "The model is fetched, and not kept."
    : storage.download
      ? `The model is ${bytes(storage.download)}. It is fetched once and kept, for visits without a ` +
        "network too."
      : "The model is here already.";
  const takes = memory ? `It takes ${bytes(memory.total)} of memory and ` : "It ";
  $("takes").textContent = `${fetches} ${takes}runs on ${device}: ${why}.`;
  return storage?.download === 0 ? "here" : "fetch";
}

const phases: Readonly<Record<LoadProgress["phase"], string>> = {
  fetch: "Fetching",
  plan: "Making room",
  upload: "Unpacking",
  check: "Checking that it computes right",
  ready: "Ready",
};
function progress(p: LoadProgress): void {
  const inBytes = p.phase === "fetch" || p.phase === "upload";
  if (p.total) $<HTMLProgressElement>("loading").value = p.done / p.total;
  const text = `${phases[p.phase]}${inBytes && p.total ? `: ${bytes(p.done)} of ${bytes(p.total)}` : "…"}`;
  if (p.phase !== "plan") $("phase").textContent = text;
}
function recovered(e: RecoverEvent): void {
  if (e.type === "lost") notice("The device stopped computing. It starts again, and goes on where it was…");
  else notice(null);
}

async function start(): Promise<void> {
  go.disabled = true;
  notice(null);
  try {
    engine = await createWorkerEngine(bundle, { ...options, onProgress: progress, onRecover: recovered });
  } catch (e) {
    failed(e);
    $("phase").textContent = "";
    go.textContent = "Try again";
    go.disabled = false;
    return kept.draw();
  }
  void engine.closed.then((why) => failed(why));
  shelf = await Shelf.open(engine.base);
  teacher = new Teacher(engine, shelf, plots, changed);
  await teacher.open();
  const chat = new Chat({
    ...{ engine, rates: plots.rates },
    adapter: () => (input("use").checked ? teacher!.adapter : null),
    answeredBy: (adapter) => teacher!.answeredBy(adapter),
  });
  opened(chat);
  await kept.draw();
}
/** The page is in use from here on. */
function opened(chat: Chat): void {
  const focused = document.activeElement;
  const ready = `It runs on ${engine!.device.name}.`;
  $("start").replaceWith(element("p", { className: "small middle", textContent: `${ready} Say something.` }));
  if (focused === go || focused === document.body) $("message").focus();
  aloud(`Ready. ${ready}`);
  for (const text of hints)
    $("hints").append(
      element("button", { type: "button", textContent: text, onclick: () => void chat.ask(text) }),
    );
  $<HTMLFieldSetElement>("lessons").disabled = false;
  changed();
}
function changed(): void {
  const n = teacher!.generation;
  $("version").textContent = n ? `version ${n}` : "nothing yet";
  void kept.draw();
}

/** Teach what a form says, or a file. */
function teach(id: string, rows: () => void): void {
  $(id).addEventListener("submit", (e) => {
    e.preventDefault();
    notice(null);
    rows();
    (e.target as HTMLFormElement).reset();
  });
}
teach("lesson", () => {
  const [ask, answer] = ["question", "answer"].map((id) => input(id).value.trim());
  if (ask && answer) teacher!.add([pair(engine!.manifest, ask, answer)]);
  $("question").focus();
});
teach("lines", () => {
  const lines = $<HTMLTextAreaElement>("many")
    .value.split("\n")
    .filter((l) => l.trim());
  if (lines.length) teacher!.add(lines.map((l) => line(engine!.manifest, l.trim())));
});
const learnFile = (file: File | undefined): void => {
  if (!file || !teacher) return;
  notice(null);
  rowsOf(file).then((rows) => teacher!.add(rows), failed);
};
input("file").addEventListener("change", () => {
  learnFile(input("file").files?.[0]);
  input("file").value = "";
});
addEventListener("dragover", (e) => {
  e.preventDefault();
  document.body.classList.add("drops");
});
addEventListener("dragleave", () => document.body.classList.remove("drops"));
addEventListener("drop", (e) => {
  e.preventDefault();
  document.body.classList.remove("drops");
  learnFile(e.dataTransfer?.files[0]);
});

go.addEventListener("click", () => void start());
void kept.draw();
try {
  const found = await look();
  go.disabled = found === "no";
  if (found === "here") await start();
} catch (e) {
  $("takes").textContent = sentence(e);
  go.disabled = false;
}
