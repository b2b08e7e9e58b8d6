/** The main process has the engine; a window asks over IPC, and hears each piece of an answer as it comes. */
import { fileURLToPath } from "node:url";
import { load } from "@weft/sdk";
import { app, BrowserWindow, ipcMain } from "electron";

const here = (name) => fileURLToPath(new URL(name, import.meta.url));
const engine = load(process.env.WEFT_BUNDLE ?? "./story.weft");
const NAME = "lessons";
const said = (role, content) => ({ role, content });

/** What went wrong crosses as a sentence: IPC keeps no more of an error. */
const answering = (work) => async (event, value) => {
  try {
    return { value: await work(value, event.sender) };
  } catch (e) {
    return { error: e.message };
  }
};
ipcMain.handle(
  "ask",
  answering(async ({ id, text }, window) => {
    const weft = await engine;
    const adapter = weft.adapters.list().some((a) => a.name === NAME) && { adapter: NAME };
    let by = "base";
    for await (const piece of weft.generate({ messages: [said("user", text)], ...adapter })) {
      // Leaving the loop ends the answer.
      if (window.isDestroyed()) break;
      window.send("piece", { id, text: piece.text });
      by = piece.adapter;
    }
    return by;
  }),
);
ipcMain.handle(
  "teach",
  answering(async ({ text, answer }) => {
    const data = [{ messages: [said("user", text), said("assistant", answer)] }];
    const job = await (await engine).finetune({ name: NAME, data, steps: 30 });
    return (await job.done).generation;
  }),
);

await app.whenReady();
const window = new BrowserWindow({
  width: 720,
  height: 640,
  webPreferences: { preload: here("preload.cjs") },
});
await window.loadFile(here("index.html"));
app.on("window-all-closed", async () => {
  await (await engine).dispose();
  app.quit();
});
