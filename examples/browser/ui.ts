/** The page's own elements, and what all of its parts do with them. */
export const $ = <E extends HTMLElement = HTMLElement>(id: string): E => {
  const found = document.getElementById(id);
  if (!found) throw new Error(`the page has no #${id}`);
  return found as E;
};
export const input = (id: string): HTMLInputElement => $<HTMLInputElement>(id);
export const button = (id: string): HTMLButtonElement => $<HTMLButtonElement>(id);

export function element<K extends keyof HTMLElementTagNameMap>(
  tag: K,
  of: Partial<HTMLElementTagNameMap[K]> = {},
  ...inside: (Node | string)[]
): HTMLElementTagNameMap[K] {
  const made = Object.assign(document.createElement(tag), of);
  made.append(...inside);
  return made;
}
/** Show an element without moving others: its place is there either way. */
export const show = (id: string, on: boolean): void => void $(id).classList.toggle("off", !on);

/** What a screen reader says, once what it was saying is over. */
export const aloud = (text: string): void => {
  $("aloud").textContent = text;
};
/** Something that went wrong, in a sentence, until it is closed or something else is said. */
export function notice(text: string | null): void {
  $("said").textContent = text;
  $("notice").hidden = text === null;
}
