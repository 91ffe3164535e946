// One answer of a spoken conversation: its words, its speech, and its latency.

import { el, seconds } from "./dom.js";
import { player } from "./player.js";

export class SpokenAnswer {
  text = "";
  done = false;
  interrupted = false;
  latency = null; // seconds from the end of the question to the first sound at the loudspeaker
  item = null;
  #asked;
  #sound = null;
  #played = () => {};

  /** `asked` is the time at which the person stopped speaking, or null. */
  constructor(asked) {
    this.#asked = asked;
    this.words = el("p");
    this.figures = el("p", { class: "figures" });
    this.element = el("article", { class: "turn answer", "aria-label": "Answer" }, el("div", { class: "text" }, this.words), this.figures);
  }

  get speaking() {
    return Boolean(this.#sound && !this.#sound.over);
  }

  get underruns() {
    return this.#sound?.underruns ?? 0;
  }

  write(piece) {
    this.text += piece;
    this.words.append(piece);
  }

  speak(samples, played) {
    this.#played = played;
    this.#sound ??= player.begin((sound) => this.#follow(sound));
    this.#sound.add(samples);
  }

  #follow(sound) {
    if (sound.startDelay !== null && this.latency === null && this.#asked !== null) {
      this.latency = (performance.now() - this.#asked) / 1000;
      this.#showFigures();
    }
    if (sound.over) {
      this.#showFigures();
      this.#played();
    }
  }

  /** Ends the speech at once. Returns the seconds that were heard. */
  interrupt() {
    this.interrupted = true;
    this.#sound?.stop();
    this.#showFigures();
    return this.#sound?.played ?? 0;
  }

  end({ status, status_details: details }) {
    this.done = true;
    this.#sound?.end();
    if (status === "failed") this.element.append(el("p", { class: "problem", role: "alert" }, details?.error?.message ?? "The answer failed."));
    if (status === "cancelled") this.interrupted = true;
    this.#showFigures();
  }

  #showFigures() {
    const parts = [
      this.latency === null ? null : `first sound ${seconds(this.latency)} after your last word`,
      this.#sound ? `you heard ${seconds(this.#sound.played)}` : null,
      this.interrupted ? "interrupted" : null,
      this.underruns ? `${this.underruns} ${this.underruns === 1 ? "gap" : "gaps"}` : null,
    ];
    this.figures.replaceChildren(...parts.filter(Boolean).map((part) => el("span", {}, part)));
  }
}
