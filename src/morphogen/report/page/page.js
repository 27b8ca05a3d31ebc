// Puts the page together.
drawCharts();
setUpTable();
for (const head of document.querySelectorAll("th[data-figure]"))
  if (data.figures[head.dataset.figure]) head.title = meaning(head.dataset.figure);
document.querySelectorAll(".picture").forEach((picture, run) => picture.addEventListener("click", (event) => {
  const station = event.target.closest("[data-id]");
  const place = station ? byId.get(`${run}/${station.dataset.id}`) : undefined;
  if (place !== undefined) openCandidate(place);
}));
$("candidate").addEventListener("close", () => mark(""));
$("candidate").addEventListener("click", (event) => { if (event.target === $("candidate")) $("candidate").close(); });
const asked = data.candidates.findIndex((one) => location.hash === anchor(one));
if (asked >= 0) openCandidate(asked);
if ($("follow")) {
  $("follow").checked = memory.get("follow") ?? true;
  $("follow").addEventListener("change", () => memory.set("follow", $("follow").checked));
  setInterval(() => { if ($("follow").checked && !$("candidate").open) location.reload(); }, 30000);
}
