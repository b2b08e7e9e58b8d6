/**
 * The little language of the example model: short stories about people with a pet, a hat, a food and a place,
 * told by themselves or when somebody asks for one, and questions about them. Every choice is a draw with a
 * known probability, so the entropy of what it writes can be counted exactly.
 */
export const names = [
  "Tom",
  "Mia",
  "Ben",
  "Lily",
  "Sam",
  "Anna",
  "Max",
  "Zoe",
  "Leo",
  "Emma",
  "Jack",
  "Ella",
  "Finn",
  "Ruby",
  "Hugo",
  "Nora",
  "Owen",
  "Lucy",
  "Theo",
  "Iris",
  "Adam",
  "Rose",
  "Carl",
  "June",
] as const;
export const values = {
  pet: ["cat", "dog", "bird", "fish", "frog", "fox", "mouse", "duck", "horse", "goat"],
  hat: ["red", "blue", "green", "yellow", "black", "white", "pink", "purple", "brown", "gray"],
  food: ["bread", "cake", "rice", "soup", "honey", "cheese", "pie", "corn", "nuts", "fruit"],
  home: ["lake", "park", "hill", "farm", "beach", "forest", "river", "school", "bridge", "mill"],
} as const;
export type Attribute = keyof typeof values;
export const attributes = Object.keys(values) as Attribute[];

/** Ways to state, to ask and to answer; `N` is the person, `V` the value. */
const statements: Readonly<Record<Attribute, readonly string[]>> = {
  pet: ["N has a pet V.", "N plays with a little V every day.", "The best friend of N is a V."],
  hat: ["N wears a V hat.", "The hat of N is V.", "N likes a V hat best."],
  food: ["N loves to eat V.", "Every morning N eats V.", "The food of N is V."],
  home: ["N lives near the V.", "The house of N is by the V.", "N goes home to the V."],
};
export const questions: Readonly<Record<Attribute, readonly string[]>> = {
  pet: [
    "What pet does N have?",
    "Which animal lives with N?",
    "What is the pet of N?",
    "Tell me the animal of N.",
  ],
  hat: [
    "What color is the hat of N?",
    "Which hat does N wear?",
    "What is the color N wears?",
    "Tell me the hat color of N.",
  ],
  food: ["What does N eat?", "Which food does N love?", "What is the food of N?", "Tell me what N eats."],
  home: [
    "Where does N live?",
    "Near what is the house of N?",
    "What is near the home of N?",
    "Tell me where N lives.",
  ],
};
/** Ways to ask for a story. */
const wishes = ["Tell me a story about N.", "Tell me a story.", "Tell a story of N.", "Who is N?"];
const openings = [
  "One sunny day, N went out.",
  "It was a cold morning.",
  "N woke up early.",
  "Once there was a child named N.",
  "The sun was warm and N was happy.",
];
const events = [
  "N saw a big tree and sat under it.",
  "It began to rain, so N ran home.",
  "N sang a song and smiled.",
  "N found a shiny stone.",
  "The wind was strong, but N was not afraid.",
  "N helped an old man carry wood.",
  "Then N took a long nap.",
  "N laughed and jumped up and down.",
  "N wanted to fly like a kite.",
  "A friend came to play with N.",
];
const endings = [
  "Then the day was over.",
  "N was very happy.",
  "And so N went to sleep.",
  "It was a good day.",
  "They all smiled.",
];

/** A stream of draws that counts the information it gives out, in nats. */
export class Draws {
  nats = 0;
  constructor(private state: number) {}
  private next(): number {
    this.state = (this.state + 0x9e3779b9) >>> 0;
    let h = this.state;
    h = Math.imul(h ^ (h >>> 16), 0x7feb352d) >>> 0;
    h = Math.imul(h ^ (h >>> 15), 0x846ca68b) >>> 0;
    return (h ^ (h >>> 16)) >>> 0;
  }
  below(n: number): number {
    this.nats += Math.log(n);
    return this.next() % n;
  }
  of<T>(list: readonly T[]): T {
    return list[this.below(list.length)]!;
  }
  /** An event of probability `part` / `whole`. */
  chance(part: number, whole: number): boolean {
    const hit = this.next() % whole < part;
    this.nats -= Math.log(hit ? part / whole : 1 - part / whole);
    return hit;
  }
}
const fill = (template: string, name: string, value = ""): string =>
  template.replaceAll(/\bN\b/g, name).replaceAll(/\bV\b/g, value);
export const ask = (question: string, name: string): string => `Question: ${fill(question, name)}\nAnswer:`;
export const answer = (value: string): string => ` ${value}.`;
/** Ends every answer, as the assistant's turns of a chat do, and every story nobody asks about. */
export const end = "</s>";
/**
 * How a chat is written in this language: a user's turn is a question, an assistant's its answer, and a
 * system message the story that they are about (Jinja, as in `tokenizer_config.json`).
 */
export const chatTemplate =
  "{% for m in messages %}{% if m.role == 'user' %}Question: {{ m.content }}\nAnswer:" +
  "{% elif m.role == 'assistant' %} {{ m.content }}{{ eos_token }}{% else %}{{ m.content }}\n{% endif %}" +
  "{% endfor %}";

/**
 * One document: a story about one or two people, then questions it answers; or questions alone, about people
 * of whom nothing was told. It ends with the end mark.
 */
export function document(d: Draws): string {
  const first = d.of(names);
  if (d.chance(1, 8)) {
    // Nothing is known about this person: the same answer must be kept through the document.
    const a = d.of(attributes);
    const v = d.of(values[a]);
    const turn = (): string => ask(d.of(questions[a]), first) + answer(v) + end;
    return turn() + turn();
  }
  const people: string[] = [first];
  if (d.chance(1, 2)) people.push(d.of(names.filter((n) => n !== first)));
  const facts: { name: string; attribute: Attribute; value: string }[] = [];
  const lines = [fill(d.of(openings), first)];
  for (const name of people) {
    const about = d.of(attributes);
    const other = d.of(attributes.filter((a) => a !== about));
    for (const attribute of d.chance(1, 2) ? [about, other] : [about]) {
      const value = d.of(values[attribute]);
      facts.push({ name, attribute, value });
      lines.push(fill(d.of(statements[attribute]), name, value));
    }
    if (d.chance(1, 2)) lines.push(fill(d.of(events), name));
  }
  lines.push(fill(d.of(endings), first));
  let text = lines.join(" ");
  text = d.chance(1, 4) ? `${ask(d.of(wishes), first)} ${text}${end}` : `${text}\n`;
  const n = 1 + d.below(3);
  for (let i = 0; i < n; i++) {
    const f = d.of(facts);
    text += ask(d.of(questions[f.attribute]), f.name) + answer(f.value) + end;
  }
  return text;
}
