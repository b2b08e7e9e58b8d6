/** All that the page may ask of the main process. */
const { contextBridge, ipcRenderer } = require("electron");

let asked = 0;
const call = async (what, value) => {
  const { value: answer, error } = await ipcRenderer.invoke(what, value);
  if (error) throw new Error(error);
  return answer;
};
contextBridge.exposeInMainWorld("weft", {
  /** `hear` gets each piece; resolves with which generation answered. */
  async ask(text, hear) {
    const id = asked++;
    const piece = (_, p) => p.id === id && hear(p.text);
    ipcRenderer.on("piece", piece);
    try {
      return await call("ask", { id, text });
    } finally {
      ipcRenderer.off("piece", piece);
    }
  },
  /** Resolves with the generation that learned it. */
  teach: (text, answer) => call("teach", { text, answer }),
});
