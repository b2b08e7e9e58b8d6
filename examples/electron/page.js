const $ = (id) => document.getElementById(id);
const { weft } = window;
const on = (id, act) =>
  $(id).addEventListener("submit", (e) => {
    e.preventDefault();
    act().catch((error) => {
      $("state").textContent = error.message;
    });
  });

on("ask", async () => {
  $("said").textContent = "";
  const by = await weft.ask($("question").value, (text) => $("said").append(text));
  $("state").textContent = `said by ${by}`;
});
on("teach", async () => {
  $("state").textContent = "learning…";
  $("state").textContent = `learned, as ${await weft.teach($("question").value, $("answer").value)}`;
});
