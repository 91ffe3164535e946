// Shows the stages of the pipeline as a graph, with the current state of each stage.

import { events, send } from "./api.js";
import { byId, el, svg } from "./dom.js";
import { layersOf } from "./layers.js";

const WORDS = { ok: "ready", degraded: "ready, a replica is restarting", starting: "starting", unavailable: "a worker is restarting", unhealthy: "unhealthy", stopping: "stopping" };
const AGAIN = 2000; // milliseconds until a lost stream is asked for again

export class PipelineView {
  #cards = new Map();
  #shape = ""; // of the graph that is drawn
  #abort = null;
  #edges = []; // of the latest view
  #known = new Map(); // edges of all views
  #lost = false;

  /** `back` is called when the server can be reached again. */
  constructor(back) {
    this.back = back;
    new ResizeObserver(() => this.#drawEdges()).observe(byId("graph"));
    document.addEventListener("visibilitychange", () => (document.hidden ? this.#abort?.abort() : this.#watch()));
    this.#watch();
  }

  /** Follows the pipeline, as long as the page is visible. */
  async #watch() {
    this.#abort?.abort();
    const abort = (this.#abort = new AbortController());
    while (!abort.signal.aborted) {
      try {
        const response = await send("v1/pipeline", { signal: abort.signal });
        for await (const view of events(response)) this.#show(view);
      } catch (error) {
        if (error.status === 401) showHealth("lost", "no key");
        if (abort.signal.aborted || error.status === 401) return;
      }
      if (abort.signal.aborted) return;
      showHealth("lost", "not reachable");
      this.#lost = true;
      await new Promise((resolve) => setTimeout(resolve, AGAIN));
    }
  }

  #show(view) {
    showHealth(view.status, WORDS[view.status]);
    if (this.#lost) this.back();
    this.#lost = false;
    byId("load").textContent = `${view.requests} ${view.requests === 1 ? "request" : "requests"}, ${view.voices} of them with speech, ${view.waiting} of them waiting`;
    byId("pipeline-problem").textContent = view.problem ?? "";
    byId("pipeline-problem").hidden = !view.problem;
    this.#arrange(view);
    for (const stage of view.stages) this.#showStage(stage);
    this.#edges = view.edges;
    this.#drawEdges();
  }

  /**
   * Arranges the cards when there are new stages or edges. Edges are remembered, because a dead worker does not report
   * the edges to its stages.
   */
  #arrange(view) {
    const names = view.stages.map((stage) => stage.name);
    for (const { source, target } of view.edges) this.#known.set(`${source} ${target}`, { source, target });
    const shape = JSON.stringify([names, [...this.#known.keys()]]);
    if (shape === this.#shape) return;
    this.#shape = shape;
    this.#cards = new Map(names.map((name) => [name, card(name)]));
    byId("layers").replaceChildren(...layersOf(names, [...this.#known.values()]).map((layer) => el("div", { class: "layer" },
      ...layer.map((name) => this.#cards.get(name).element))));
  }

  #showStage(stage) {
    const { element, state, facts, busy, kv } = this.#cards.get(stage.name);
    element.dataset.state = stage.state;
    state.textContent = stage.state === "ready" ? "" : stage.last_end ? `${stage.state}: ${stage.last_end}` : stage.state;
    const shown = [
      stage.replicas > 1 ? `${stage.replicas_ready} of ${stage.replicas} replicas` : null,
      `busy ${Math.round(100 * stage.busy)} %`,
      `${stage.live} ${stage.live === 1 ? "request" : "requests"}`,
      `${stage.queued} queued`,
      stage.batch === null ? null : `batch ${stage.batch}`,
      stage.restarts ? restarts(stage) : null,
      stage.kv_limit === null ? null : `KV cache ${stage.kv_used} of ${stage.kv_limit}`,
    ];
    facts.replaceChildren(...shown.filter(Boolean).map((fact) => el("span", {}, fact)));
    setAmount(busy, stage.busy);
    kv.hidden = stage.kv_limit === null;
    if (stage.kv_limit !== null) setAmount(kv, stage.kv_used / stage.kv_limit);
  }

  /** Draws the edges behind the cards, thicker and brighter where messages flow. */
  #drawEdges() {
    const area = byId("graph").getBoundingClientRect();
    const drawing = byId("edges");
    if (!area.width) return;
    drawing.setAttribute("viewBox", `0 0 ${area.width} ${area.height}`);
    const place = (name) => {
      const box = this.#cards.get(name)?.element.getBoundingClientRect();
      return box && { x: box.left - area.left + box.width / 2, top: box.top - area.top, bottom: box.bottom - area.top };
    };
    drawing.replaceChildren(...this.#edges.flatMap(({ source, target, messages }) => {
      const [from, to] = [place(source), place(target)];
      if (!from || !to || to.top <= from.bottom) return []; // edges up, and edges of the gateway
      const middle = (from.bottom + to.top) / 2;
      const path = `M${from.x} ${from.bottom} C${from.x} ${middle} ${to.x} ${middle} ${to.x} ${to.top}`;
      return [svg("path", { d: path, class: messages ? "flowing" : "", "stroke-width": 1.5 + Math.min(3, Math.log10(1 + messages)) })];
    }));
  }
}

/** Shows in the page's header whether the server can answer. */
function showHealth(state, words) {
  byId("health").dataset.state = state;
  const shown = byId("health").querySelector(".words");
  if (shown.textContent !== words) shown.textContent = words; // so that a screen reader does not repeat it
}

/** The number of restarts. Also the reason for the last restart, unless the card's state shows the reason. */
function restarts({ restarts: count, state, last_end: why }) {
  return `${count} ${count === 1 ? "restart" : "restarts"}${state === "ready" && why ? `: ${why}` : ""}`;
}

/** A bar that shows a value from 0 to 1. */
function amount(label) {
  return el("div", { class: "amount", role: "meter", "aria-label": label, "aria-valuemin": "0", "aria-valuemax": "100", "aria-valuenow": "0" }, el("span"));
}

function setAmount(bar, share) {
  const percent = String(Math.round(100 * share));
  bar.setAttribute("aria-valuenow", percent);
  bar.firstChild.style.width = `${percent}%`;
}

function card(name) {
  const state = el("span", { class: "state" });
  const facts = el("p", { class: "facts" });
  const busy = amount(`Busy share of ${name}`);
  const kv = amount(`KV cache of ${name}`);
  const element = el("article", { class: "stage", "aria-label": name },
    el("h3", {}, el("span", { class: "dot" }), name, " ", state), busy, kv, facts);
  return { element, state, facts, busy, kv };
}
