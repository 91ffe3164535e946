// The timeline of one answer: when each stage waited, worked, and received messages.

import { send } from "./api.js";
import { el, seconds, svg } from "./dom.js";

const SHOWN = { transfer: "on the way", queue: "in the queue", step: "at work" }; // by name of a span
const ROW = 22; // pixels
const HEIGHT = { transfer: 4, queue: 6, step: 14 };
const WIDTH = 1000; // in units of the drawing; the browser scales it

/** An element that shows the timeline of the answer with this id. Throws as `send`. */
export async function showTimeline(id) {
  const found = await (await send(`v1/pipeline/timelines/${id}`)).json();
  const stages = found.tracks.filter((track) => track.stage !== "gateway");
  const whole = Math.max(found.seconds, ...stages.map((track) => track.end));
  return el("figure", { class: "timeline", "aria-label": "Timeline" },
    el("figcaption", {}, ...legend(), el("span", {}, `${seconds(whole)} in all`)),
    ...stages.map((track) => row(track, whole)),
    axis(whole), table(stages));
}

function legend() {
  return Object.entries(SHOWN).map(([name, words]) => el("span", { class: `key ${name}` }, words));
}

function row(track, whole) {
  const x = (when) => (WIDTH * when) / whole;
  const bars = track.spans.filter(([name]) => name in SHOWN).map(([name, begin, end]) => svg("rect", {
    class: name, x: x(begin), width: Math.max(1.5, x(end) - x(begin)), y: (ROW - HEIGHT[name]) / 2, height: HEIGHT[name],
  }));
  const held = svg("rect", { class: "held", x: x(track.begin), width: Math.max(1.5, x(track.end - track.begin)), y: ROW / 2 - 1, height: 2 });
  return el("div", { class: "track" }, el("span", {}, track.stage),
    svg("svg", { viewBox: `0 0 ${WIDTH} ${ROW}`, preserveAspectRatio: "none", "aria-hidden": "true" }, held, ...bars));
}

function axis(whole) {
  const step = [0.05, 0.1, 0.25, 0.5, 1, 2, 5, 10, 30, 60].find((each) => whole / each <= (innerWidth < 600 ? 3 : 6)) ?? whole;
  const marks = el("span", { class: "marks" });
  for (let at = 0; at <= 0.93 * whole; at += step) {
    const mark = el("span", {}, at ? `${Number(at.toFixed(2))} s` : "0");
    mark.style.left = `${(100 * at) / whole}%`;
    marks.append(mark);
  }
  return el("div", { class: "track axis", "aria-hidden": "true" }, el("span"), marks);
}

/** The timeline as numbers, which screen readers can read. */
function table(stages) {
  const milliseconds = (value) => (value === undefined ? "–" : `${Math.round(1000 * value)} ms`);
  return el("details", {}, el("summary", {}, "As numbers"), el("div", { class: "scroll", tabIndex: 0 }, el("table", {},
    el("thead", {}, el("tr", {}, ...["stage", "from", "to", ...Object.values(SHOWN), "steps"].map((name) => el("th", { scope: "col" }, name)))),
    el("tbody", {}, ...stages.map((track) => el("tr", {}, el("th", { scope: "row" }, track.stage),
      ...[track.begin, track.end, ...Object.keys(SHOWN).map((name) => track.seconds[name])].map((value) => el("td", {}, milliseconds(value))),
      el("td", {}, String(track.counts.step ?? 0))))))));
}
