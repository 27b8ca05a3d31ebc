// Charts. Those in which nothing is chosen stand in the page as data; the others are made of its candidates.
const INK = "#7d8590", GRID = "rgba(125,133,144,0.22)", GREY = "#9aa4af", RED = "#e4453a", BLUE = "#1f78d1";
const COLOURS = [BLUE, RED, "#22a155", "#f0a202", "#8e4ec6", "#00a0b0", "#e26bb0", "#a0683a"];
const LINES = ["#1f78d1", "#e4453a", "#22a155", "#f0a202", "#8e4ec6", "#00a0b0", "#e26bb0", "#a0683a", "#7f9a1a", "#5366d6"];
const CONFIG = { displaylogo: false, responsive: true, displayModeBar: "hover", modeBarButtonsToRemove: ["select2d", "lasso2d"] };
const AXIS = { gridcolor: GRID, linecolor: INK, zeroline: false, exponentformat: "SI", automargin: true };

function layout(more) {
  return {
    font: { color: INK, size: 12 }, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", height: 360,
    margin: { l: 56, r: 16, t: 30, b: 48 }, hovermode: "closest",
    legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom" }, modebar: { bgcolor: "rgba(0,0,0,0)", color: INK }, ...more,
  };
}

/** Plotly stands in the page as text, and is read with the first chart: that takes longer than all else. */
function readPlotly() {
  if (!globalThis.Plotly) document.head.append(element("script", {}, $("plotly").textContent));
}

/** Draws into a place, and opens the candidate whose spot is clicked. */
function draw(place, traces, arranged) {
  const at = typeof place === "string" ? $(place) : place;
  readPlotly();
  Plotly.react(at, traces, arranged, CONFIG);
  if (at.dataset.heard) return;
  at.dataset.heard = "yes";
  at.on("plotly_click", (event) => {
    const spot = event.points[0].customdata;
    const found = Array.isArray(spot) ? byId.get(`${spot[0]}/${spot[1]}`) : spot;
    if (found !== undefined && found !== null) openCandidate(found);
  });
}

/** What a spot is. */
function tip(one, names) {
  const mark = one.root ? "root, " : one.frontier ? "frontier, " : "";
  const told = names.map((name) => `${plain(name)} ${number(value(one, name))}`).join(", ");
  const run = several ? `${plain(data.runs[one.run].name)}: ` : "";
  return `${run}<b>${plain(one.id)}</b><br>${mark}${one.status}, generation ${value(one, "generation")}` +
    `<br>${plain(clipped(one.edits, 90))}<br>${told}`;
}

/** Kinds of spots of a run, from the least worth a look to the most: name, whom they are of, their marks. */
function kinds(run) {
  const colour = COLOURS[run % COLOURS.length];
  return [
    ["gated", (one) => one.status === "gated", { color: GREY, size: 7, symbol: "circle-open", opacity: 0.7 }],
    ["trained", (one) => one.status === "trained" && !one.frontier && !one.root,
      { color: several ? colour : GREY, size: 7, opacity: several ? 0.4 : 0.6 }],
    ["frontier", (one) => one.frontier && !one.root, { color: several ? colour : RED, size: 11, line: { width: 1, color: "#fff" } }],
    ["root", (one) => one.root, { color: several ? colour : BLUE, size: 15, symbol: "star", line: { width: 1.2, color: "#fff" } }],
  ];
}

function drawPareto() {
  const [x, y] = [$("across").value, $("up").value];
  memory.set("axes", [x, y, $("across-log").checked, $("up-log").checked]);
  const traces = [];
  data.runs.forEach((run, place) => {
    const of = several ? ` · ${plain(run.name)}` : "";
    const here = data.candidates.map((one, at) => [one, at])
      .filter(([one]) => one.run === place && value(one, x) !== null && value(one, y) !== null);
    const front = firstFront(here.filter(([one]) => one.status === "trained"), x, y);
    if (front.length > 1)
      traces.push({ type: "scatter", mode: "lines", name: `best by these two${of}`, hoverinfo: "skip",
        x: front.map(([one]) => value(one, x)), y: front.map(([one]) => value(one, y)),
        line: { color: several ? COLOURS[place % COLOURS.length] : RED, width: 1.3, dash: "dot",
          shape: better(x) === better(y) ? (better(x) === "min" ? "hv" : "vh") : "linear" } });
    for (const [name, belongs, marker] of kinds(place)) {
      const shown = here.filter(([one]) => belongs(one));
      if (!shown.length) continue;
      const errors = (figure) => ({ type: "data", visible: name === "frontier" && shown.some(([one]) => one.errors && one.errors[figure]),
        array: shown.map(([one]) => (one.errors && one.errors[figure]) || 0), color: marker.color, thickness: 1.2, width: 3 });
      traces.push({ type: "scatter", mode: "markers", name: `${name}${of}`, marker, hoverinfo: "text",
        x: shown.map(([one]) => value(one, x)), y: shown.map(([one]) => value(one, y)), customdata: shown.map(([, at]) => at),
        text: shown.map(([one]) => tip(one, [...new Set([x, y])])), error_x: errors(x), error_y: errors(y) });
    }
  });
  const title = (name) => ({ text: plain(name) + arrow(name) });
  const scale = (id) => ($(id).checked ? "log" : "linear");
  draw("pareto", traces, layout({ height: 440, showlegend: true,
    xaxis: { ...AXIS, title: title(x), type: scale("across-log") }, yaxis: { ...AXIS, title: title(y), type: scale("up-log") } }));
  $("pareto-note").textContent = [...new Set([x, y])].map(meaning).join("   ");
}

/** Those that no other is better than by both figures, in order of the first; none where it is open which way is better. */
function firstFront(spots, x, y) {
  const sign = (name) => ({ min: 1, max: -1 })[better(name)] || 0;
  if (!sign(x) || !sign(y) || x === y) return [];
  const at = ([one], name) => sign(name) * value(one, name);
  const order = [...spots].sort((a, b) => at(a, x) - at(b, x) || at(a, y) - at(b, y));
  const front = [];
  for (const spot of order) if (!front.length || at(spot, y) < at(front.at(-1), y)) front.push(spot);
  return front;
}

/** Every trained candidate as a line over the objectives, each axis from its worst at the bottom to its best at the top. */
function drawParallel() {
  const names = [...new Set(data.runs.flatMap((run) => run.objectives.map(([name]) => name)))];
  for (const more of ["params", "tokens"]) if (names.length < 3 && column.has(more) && !names.includes(more)) names.push(more);
  const shown = data.candidates.map((one, at) => [one, at])
    .filter(([one]) => one.status === "trained" && names.every((name) => value(one, name) !== null));
  const ends = names.map((name) => {
    const all = shown.map(([one]) => value(one, name));
    const [low, high] = [all.reduce((a, b) => Math.min(a, b), Infinity), all.reduce((a, b) => Math.max(a, b), -Infinity)];
    return better(name) === "min" ? [high, low] : [low, high];
  });
  const height = (one, k) => (ends[k][0] === ends[k][1] ? 0.5 : (value(one, names[k]) - ends[k][0]) / (ends[k][1] - ends[k][0]));
  const traces = [];
  data.runs.forEach((run, place) => {
    for (const [name, belongs, marker] of kinds(place)) {
      const lines = shown.filter(([one]) => one.run === place && belongs(one));
      if (!lines.length) continue;
      const trace = { type: "scatter", mode: "lines+markers", name: several ? `${name} · ${plain(run.name)}` : name,
        x: [], y: [], text: [], customdata: [], hoverinfo: "text", line: { color: marker.color, width: name === "trained" ? 0.8 : 2.2 },
        marker: { color: marker.color, size: name === "trained" ? 3 : 7, symbol: marker.symbol || "circle" },
        opacity: name === "trained" ? 0.35 : 1 };
      for (const [one, at] of lines) {
        names.forEach((_, k) => { trace.x.push(k); trace.y.push(height(one, k)); trace.text.push(tip(one, names)); trace.customdata.push(at); });
        trace.x.push(null); trace.y.push(null); trace.text.push(""); trace.customdata.push(null);
      }
      traces.push(trace);
    }
  });
  const label = (k, end, y, anchor) => ({ x: k, y, yanchor: anchor, showarrow: false, text: number(ends[k][end]), font: { size: 11, color: INK } });
  const marks = shown.length ? names.flatMap((_, k) => [label(k, 1, 1.03, "bottom"), label(k, 0, -0.03, "top")]) : [];
  draw("parallel", traces, layout({ height: 340, showlegend: true, annotations: marks,
    legend: { orientation: "h", x: 0, y: 1.1, yanchor: "bottom" },
    xaxis: { ...AXIS, range: [-0.3, names.length - 0.7], tickvals: names.map((_, k) => k), gridcolor: INK,
      ticktext: names.map((name) => plain(clipped(name, 18)) + arrow(name)) },
    yaxis: { ...AXIS, range: [-0.14, 1.14], showgrid: false, tickvals: [0, 1], ticktext: ["worst", "best"] } }));
}

/** The curve of a candidate over the training tokens of its lineage. */
function curve(one) {
  if (!one.losses) return { x: [], y: [] };
  const [own, all, last] = [value(one, "tokens"), value(one, "lineage_tokens"), one.steps.at(-1)];
  return { x: one.steps.map((step) => all - own + (own * step) / last), y: one.losses };
}

/** A candidate after its first parents, the root first. */
function line(one) {
  const found = [one];
  while (found[0].parents.length && found.length < 10000) found.unshift(data.candidates[found[0].parents[0]]);
  return found;
}

/** Losses of candidates, each with those that it goes on from. */
function drawLosses(place, chosen) {
  const traces = chosen.map((one, k) => {
    const trace = { type: "scatter", mode: "lines", name: plain(clipped(one.id, 40)), x: [], y: [], text: [], customdata: [], hoverinfo: "text",
      line: { width: 1.6, color: LINES[k % LINES.length] } };
    for (const each of line(one)) {
      const { x, y } = curve(each);
      trace.x.push(...x, null); trace.y.push(...y, null); trace.customdata.push(...x.map(() => byId.get(`${each.run}/${each.id}`)), null);
      trace.text.push(...y.map((loss, at) => `${plain(each.id)}<br>loss ${loss} at step ${each.steps[at]}`), "");
    }
    return trace;
  }).filter((trace) => trace.y.some((loss) => loss !== null));
  const at = typeof place === "string" ? $(place) : place;
  if (!traces.length) { at.textContent = "no curve was kept"; return; }
  const below = 20 + 17 * traces.length;  // the names, one a line
  draw(at, traces, layout({ height: 310 + below, showlegend: true, margin: { l: 56, r: 16, t: 12, b: 48 + below },
    legend: { orientation: "v", x: 0, yref: "container", y: 0, yanchor: "bottom", font: { size: 10 }, maxheight: below },
    xaxis: { ...AXIS, title: { text: "training tokens of the lineage" } }, yaxis: { ...AXIS, title: { text: "nats per token" } } }));
}

function drawCharts() {
  const names = data.names.filter((name) => data.candidates.some((one) => value(one, name) !== null));
  const objectives = data.runs.flatMap((run) => run.objectives.map(([name]) => name)).filter((name) => names.includes(name));
  const [x, y, logX, logY] = memory.get("axes") || [];
  for (const [id, chosen] of [["across", names.includes(x) ? x : objectives[0]], ["up", names.includes(y) ? y : objectives[1] || "params"]]) {
    $(id).append(...names.map((name) => element("option", { value: name, title: meaning(name), selected: name === chosen }, name)));
    $(id).addEventListener("change", drawPareto);
    $(`${id}-log`).checked = id === "across" ? logX : logY;
    $(`${id}-log`).addEventListener("change", drawPareto);
  }
  const waiting = new Map(data.charts.map((chart, k) => [`chart-${k}`, () => draw(`chart-${k}`, chart.data, chart.layout)])
    .filter(([id]) => $(id)));
  waiting.set("pareto", drawPareto).set("parallel", drawParallel);
  const best = data.candidates.filter((one) => one.frontier);
  waiting.set("losses", () => drawLosses("losses", best.length ? best.slice(0, 12) : data.candidates.slice(-1)));
  const seen = new IntersectionObserver((entries) => {  // each when it comes near, one at a time, so that a large page opens at once
    for (const entry of entries) if (entry.isIntersecting) { seen.unobserve(entry.target); setTimeout(waiting.get(entry.target.id)); }
  }, { rootMargin: "600px" });
  for (const id of waiting.keys()) seen.observe($(id));
}
