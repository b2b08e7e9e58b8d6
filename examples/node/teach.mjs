/** Ask, teach, and ask again: `npm run build`, then `node examples/node/teach.mjs ./story.weft`. */
import { load } from "@weft/sdk";

const engine = await load(process.argv[2] ?? "./story.weft");
const question = { role: "user", content: "Where does Mia live?" };

async function ask(options) {
  for await (const piece of engine.generate({ messages: [question], ...options })) {
    process.stdout.write(piece.text);
  }
  process.stdout.write("\n");
}

await ask(); // what the model thinks
const job = await engine.finetune({
  name: "notes",
  data: [{ messages: [question, { role: "assistant", content: "On the moon" }] }],
  steps: 30,
});
await ask(); // it answers while it learns
await job.done;
await ask({ adapter: "notes" }); // what it was taught
await engine.dispose();
