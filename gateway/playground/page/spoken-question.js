// One question of a spoken conversation: its sound, and its words as soon as the server has transcribed them.

import { el } from "./dom.js";
import { showItem } from "./items.js";

export class SpokenQuestion {
  text = "";
  #words = el("p", { hidden: true });
  #note = el("small", { class: "soft" });
  #doubt;

  /** `file` is the sound, `length` its length as text, `doubt` a remark for the transcript. */
  constructor(file, length, doubt) {
    this.#doubt = doubt;
    const sound = showItem({ kind: "audio", name: `of ${length}`, url: URL.createObjectURL(file) });
    this.element = el("article", { class: "turn question", "aria-label": "You" },
      el("div", { class: "items" }, sound), this.#words, this.#note);
  }

  write(piece) {
    this.end(this.text + piece);
  }

  end(text) {
    this.text = text;
    this.#words.textContent = text;
    this.#words.hidden = !text;
    this.#note.textContent = text ? this.#doubt : "";
  }

  fail(reason) {
    this.#note.textContent = `No transcript: ${reason}`;
  }
}
