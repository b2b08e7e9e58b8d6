/** GGUF out: what the SDK asks of the compiler, which alone knows families and how llama.cpp has them. */
export { type AdapterPart, adapterAsGguf, adapterFromGguf } from "./gguf/adapter.ts";
export { kindWritten } from "./gguf/file.ts";
export { modelAsGguf, type StoredTensor } from "./gguf/model.ts";
export { vocabularyOf } from "./gguf/vocabulary.ts";
export type { GgufValue } from "./gguf/write.ts";
