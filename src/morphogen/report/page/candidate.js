// One candidate, whole: what made it, its figures, its blueprint, what it has other than its parents, its curve.
const yaml = (one) => one.blueprint.map((piece) => data.pieces[piece]).join("");

/** Lines of two texts, aligned by their longest common subsequence: [" " | "-" | "+", line]. */
function differences(before, after) {
  let [a, b] = [before.split("\n"), after.split("\n")];
  let head = 0, tail = 0;
  while (head < Math.min(a.length, b.length) && a[head] === b[head]) head++;
  while (tail < Math.min(a.length, b.length) - head && a[a.length - 1 - tail] === b[b.length - 1 - tail]) tail++;
  const [first, last] = [a.slice(0, head), a.slice(a.length - tail)];
  [a, b] = [a.slice(head, a.length - tail), b.slice(head, b.length - tail)];
  if (a.length * b.length > 4e6) return [...first.map(kept), ...a.map((text) => ["-", text]), ...b.map((text) => ["+", text]), ...last.map(kept)];
  const long = Array.from({ length: a.length + 1 }, () => new Uint16Array(b.length + 1));
  for (let i = a.length - 1; i >= 0; i--)
    for (let j = b.length - 1; j >= 0; j--)
      long[i][j] = a[i] === b[j] ? long[i + 1][j + 1] + 1 : Math.max(long[i + 1][j], long[i][j + 1]);
  const found = [];
  let [i, j] = [0, 0];
  while (i < a.length || j < b.length)
    if (i < a.length && j < b.length && a[i] === b[j]) { found.push([" ", a[i]]); i++; j++; }
    else if (i < a.length && (j === b.length || long[i + 1][j] >= long[i][j + 1])) found.push(["-", a[i++]]);
    else found.push(["+", b[j++]]);
  return [...first.map(kept), ...found, ...last.map(kept)];
}
const kept = (text) => [" ", text];

/** The lines that differ, with three around them. */
function shownDifference(before, after) {
  const lines = differences(before, after);
  const near = lines.map((_, k) => lines.slice(Math.max(0, k - 3), k + 4).some(([mark]) => mark !== " "));
  if (!near.some(Boolean)) return element("p", { class: "note" }, "no difference");
  const box = element("pre", { class: "diff" });
  lines.forEach(([mark, text], k) => {
    if (near[k]) box.append(element("span", { class: { " ": "same", "-": "gone", "+": "new" }[mark] }, `${mark} ${text}`));
    else if (k && near[k - 1]) box.append(element("span", { class: "same" }, "…"));
  });
  return box;
}

const anchor = (one) => `#${one.run}/${encodeURIComponent(one.id)}`;
/** The page's address leads to the candidate that is shown, where the browser lets it. */
function mark(hash) { try { history.replaceState(null, "", location.href.split("#")[0] + hash); } catch { /* not from a file */ } }

/** Puts text where it can be pasted from. */
async function copy(text, button) {
  try { await navigator.clipboard.writeText(text); } catch {
    const field = element("textarea", {});
    field.value = text;
    button.after(field); field.select(); document.execCommand("copy"); field.remove();
  }
  button.textContent = "copied";
  setTimeout(() => { button.textContent = "copy"; }, 1500);
}

function figuresOf(one) {
  const rows = data.names.filter((name) => value(one, name) !== null).map((name) => {
    const error = one.errors && one.errors[name];
    return element("tr", { title: meaning(name) }, element("td", { class: "t" }, name),
      element("td", { class: "n" }, `${number(value(one, name))}${error ? ` ± ${Number(error.toPrecision(2))}` : ""}`),
      element("td", { class: "t" }, data.figures[name] ? data.figures[name].unit : ""));
  });
  return element("table", {}, element("tbody", {}, ...rows));
}

function parentsOf(one) {
  return one.parents.flatMap((place) => {
    const parent = data.candidates[place];
    return [element("h3", {}, "against its parent ", element("button", { class: "link", onclick: () => openCandidate(place) }, parent.id)),
      one.blueprint.length && parent.blueprint.length ? shownDifference(yaml(parent), yaml(one)) : element("p", { class: "note" }, "no blueprint is known")];
  });
}

/** Shows a candidate over the page. */
function openCandidate(place) {
  const one = data.candidates[place], box = $("candidate"), text = yaml(one);
  const told = [cellOf(one, "status"), `generation ${value(one, "generation")}`, ...(several ? [data.runs[one.run].name] : []),
    ...(one.proposer ? [`proposed by ${one.proposer}`] : [])].join(" · ");
  const lines = [...(one.changes || [one.edits]), ...(one.origins || []), ...(one.grew || []), ...(one.reason ? [`because: ${one.reason}`] : [])];
  const button = element("button", { onclick: () => copy(text, button) }, "copy");
  const curves = element("div", { class: "plot" });
  box.replaceChildren(
    element("header", {}, element("h2", {}, one.id), element("button", { onclick: () => box.close(), "aria-label": "close" }, "close")),
    element("p", { class: "note" }, told), element("pre", { class: "story" }, lines.join("\n")),
    element("div", { class: "halves" },
      element("div", {}, ...parentsOf(one), element("h3", {}, "blueprint ", button), element("pre", { class: "yaml" }, text || "not known")),
      element("div", {}, element("h3", {}, "figures"), figuresOf(one), element("h3", {}, "training loss, after its first parents'"), curves)));
  if (!box.open) box.showModal();
  box.scrollTop = 0;
  mark(anchor(one));
  drawLosses(curves, [one]);
}
