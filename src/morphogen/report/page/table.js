// The table of all candidates: sorted by a click on a column, filtered by words and conditions.
const WORDS = ["run", "id", "status", "edits", "reason"];
const state = { by: null, up: true, columns: [], ...(memory.get("table") || {}), turn: 0 };
const errorOf = (name) => `${name} ±`;

function defaultColumns() {
  const objectives = [...new Set(data.runs.flatMap((run) => run.objectives.map(([name]) => name)))];
  const known = (name) => data.candidates.some((one) => value(one, name) !== null);
  const costs = ["params", "flops_per_token", "kv_bytes_per_token"].filter((name) => column.has(name) && known(name));
  return [...new Set([...(several ? ["run"] : []), "id", "generation", "status", ...objectives, ...costs, "tokens", "lineage_tokens", "edits",
    ...(data.candidates.some((one) => one.reason) ? ["reason"] : [])])];
}

/** What stands in a cell, before it is put into words. */
function cellOf(one, name) {
  if (name === "run") return data.runs[one.run].name;
  if (name === "status") return `${one.status}${one.frontier ? ", frontier" : ""}${one.survivor ? ", survivor" : ""}${one.root ? ", root" : ""}`;
  if (WORDS.includes(name)) return one[name] || "";
  return value(one, name);
}

const CONDITION = /^([^<>=]+)(<=|>=|<|>|=)(-?[\d.]+(?:e[-+]?\d+)?)([kMGTP]?)$/;
const UNITS = { "": 1, k: 1e3, M: 1e6, G: 1e9, T: 1e12, P: 1e15 };

/** Whether a candidate meets every word and condition. */
function meets(one, words) {
  const text = `${several ? data.runs[one.run].name : ""} ${one.id} ${one.edits} ${cellOf(one, "status")} ${one.reason || ""}`.toLowerCase();
  return words.every((word) => {
    const found = CONDITION.exec(word);
    if (!found || !column.has(found[1])) return text.includes(word.toLowerCase());
    const [has, bound] = [value(one, found[1]), Number(found[3]) * UNITS[found[4]]];
    if (has === null) return false;
    return { "<": has < bound, ">": has > bound, "<=": has <= bound, ">=": has >= bound, "=": has === bound }[found[2]];
  });
}

function ordered(shown) {
  if (!state.by) return shown;
  const way = state.up ? 1 : -1;
  return shown.sort((a, b) => {
    const [one, other] = [cellOf(data.candidates[a], state.by), cellOf(data.candidates[b], state.by)];
    if (one === other) return a - b;
    if (one === null || one === "") return 1;  // what is not known stands last, whichever way
    if (other === null || other === "") return -1;
    return one < other ? -way : way;
  });
}

function drawTable() {
  const words = $("filter").value.split(/\s+/).filter(Boolean), status = $("status").value;
  memory.set("table", state); memory.set("filter", [$("filter").value, status]);
  const all = data.candidates.map((_, place) => place);
  const shown = ordered(all.filter((place) => {
    const one = data.candidates[place];
    return (status === "all" || one.status === status || one[status]) && meets(one, words);
  }));
  $("count").textContent = `${shown.length} of ${all.length}`;
  const heads = state.columns.map((name) => element("th", {
    class: WORDS.includes(name) ? "t" : "n", title: meaning(name), "aria-sort": state.by !== name ? null : state.up ? "ascending" : "descending",
    onclick: () => { [state.by, state.up] = [name, state.by === name ? !state.up : better(name) !== "max"]; drawTable(); },
  }, `${name}${state.by === name ? (state.up ? " ▲" : " ▼") : ""}`));
  const body = element("tbody", {});
  $("candidates").replaceChildren(element("thead", {}, element("tr", {}, ...heads)), body);
  const turn = ++state.turn;
  const more = (from) => {  // the first rows at once, the rest as the browser finds the time
    if (turn !== state.turn) return;
    body.append(...shown.slice(from, from + 100).map(rowOf));
    if (from + 100 < shown.length) setTimeout(more, 15, from + 100);
  };
  more(0);
}

function rowOf(place) {
  const one = data.candidates[place];
  const cells = state.columns.map((name) => {
    const has = cellOf(one, name), text = WORDS.includes(name);
    const error = !text && one.errors ? one.errors[name] : undefined;
    return element("td", { class: text ? "t" : "n", title: text || has === null ? null : String(has) },
      text ? clipped(has, 90) : `${number(has)}${error === undefined ? "" : ` ± ${Number(error.toPrecision(2))}`}`);
  });
  return element("tr", { class: `${one.status}${one.frontier ? " frontier" : ""}`, onclick: () => openCandidate(place) }, ...cells);
}

function setUpTable() {
  const all = [...(several ? ["run"] : []), "id", "generation", "status", "edits", "reason", ...data.names.filter((name) => name !== "generation")];
  if (!state.columns.length || !state.columns.every((name) => all.includes(name))) state.columns = defaultColumns();
  if (!all.includes(state.by)) state.by = null;
  const found = ["all", ...["frontier", "survivor"].filter((mark) => data.candidates.some((one) => one[mark])),
    ...new Set(data.candidates.map((one) => one.status))];
  const [text, chosen] = memory.get("filter") || ["", "all"];
  $("status").append(...found.map((name) => element("option", { value: name, selected: name === chosen }, name)));
  $("filter").value = text;
  $("filter").addEventListener("input", drawTable);
  $("status").addEventListener("change", drawTable);
  $("columns").append(...all.map((name) => element("label", { title: meaning(name) },
    element("input", { type: "checkbox", checked: state.columns.includes(name), onchange: (event) => {
      state.columns = event.target.checked ? [...state.columns, name] : state.columns.filter((other) => other !== name);
      drawTable();
    } }), ` ${name}`)));
  drawTable();
}
