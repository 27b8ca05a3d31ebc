"use strict";
// What the page holds, and how it is put into words.
const $ = (id) => document.getElementById(id);
const data = JSON.parse($("data").textContent);
const several = data.runs.length > 1;
const column = new Map(data.names.map((name, place) => [name, place]));
const byId = new Map(data.candidates.map((one, place) => [`${one.run}/${one.id}`, place]));

/** A candidate's figure; null where it has none. */
const value = (one, name) => { const found = one.values[column.get(name)]; return found === undefined ? null : found; };
const arrow = (name) => ({ min: " ↓", max: " ↑" })[better(name)] || "";

/** Which way a figure is better: as the objectives say, else as it was declared. */
function better(name) {
  for (const run of data.runs) for (const [objective, way] of run.objectives) if (objective === name) return way;
  return data.figures[name] ? data.figures[name].better : "none";
}

/** Four significant digits, with k, M, G, T, P above 10,000; a dash for nothing. */
function number(x) {
  if (x === null || x === undefined) return "-";
  const size = Math.abs(x);
  for (const [unit, name] of [[1e15, "P"], [1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"]])
    if (size >= Math.max(unit, 1e4)) return `${Number((x / unit).toPrecision(4))}${name}`;
  return String(Number(x.toPrecision(4)));
}

/** Text as Plotly shows it, which reads tags and entities in it. */
const plain = (text) => String(text).replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
const clipped = (text, most) => (text.length > most ? `${text.slice(0, most - 1)}…` : text);

/** An element with attributes and children; strings among these are text, never markup. */
function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, given] of Object.entries(attributes))
    if (key.startsWith("on")) made.addEventListener(key.slice(2), given);
    else if (given !== null && given !== false) made.setAttribute(key, given === true ? "" : given);
  made.append(...children);
  return made;
}

/** What a figure is, for tooltips. */
function meaning(name) {
  const found = data.figures[name];
  return found ? `${name} [${found.unit}]: ${found.summary}` : name;
}

/** What was chosen last time, for as long as the tab is open. */
const memory = {
  get(key) { try { return JSON.parse(sessionStorage.getItem(`${document.title}/${key}`)); } catch { return null; } },
  set(key, given) { try { sessionStorage.setItem(`${document.title}/${key}`, JSON.stringify(given)); } catch { /* private */ } },
};
