// CommonJS: `require` of an ES module, where Node can.
const { load } = require("@weft/sdk");

const { bundle, prompt } = JSON.parse(process.argv[2]);
load(bundle, { device: "wasm", threads: 1 }).then(async (engine) => {
  const { ids } = await engine.complete({ prompt, maxTokens: 6 });
  await engine.dispose();
  console.log(JSON.stringify({ ids }));
});
