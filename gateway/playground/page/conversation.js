// Keeps the turns of the conversation, and asks for answers.

import { Answer } from "./answer.js";
import { byId, el, iconButton } from "./dom.js";
import { showItem } from "./items.js";
import { player } from "./player.js";
import { showWrongOption } from "./options.js";
import { itemOf } from "./request.js";

export class Conversation {
  turns = [];
  #list = byId("turns");
  #atEnd = true; // whether the person looks at the end of the conversation

  /** `options` returns the options of the next request; `composer` gets a message to edit. */
  constructor(options, composer) {
    this.options = options;
    this.composer = composer;
    byId("stop").addEventListener("click", () => this.stop());
    byId("clear").addEventListener("click", () => this.clear());
    new ResizeObserver(() => this.#follow()).observe(this.#list);
    addEventListener("scroll", () => {
      this.#atEnd = innerHeight + scrollY >= document.documentElement.scrollHeight - 40;
    }, { passive: true });
  }

  /** The answer in progress; undefined if there is none. */
  get current() {
    return this.turns.findLast((turn) => turn.role === "assistant" && ["asking", "streaming"].includes(turn.state));
  }

  /** Adds the person's message and asks for the answer. */
  async ask(text, items) {
    if (this.current) return;
    player.prepare().catch(() => {}); // called now, because browsers allow sound only during a click or a key press
    const turn = { role: "user", text, items };
    turn.element = el("article", { class: "turn question", "aria-label": "You" },
      el("div", { class: "items" }, ...items.map((item) => (item.element = showItem(item)))),
      text ? el("p", {}, text) : null,
      el("footer", {}, el("div", { class: "buttons" }, iconButton("edit", "Edit and ask again", () => this.edit(turn)))));
    this.#add(turn);
    await this.#answer();
  }

  /** Removes a message and all later turns, and puts the message into the form. */
  edit(turn) {
    this.stop();
    this.#cut(this.turns.indexOf(turn));
    this.composer.fill(turn.text, turn.items);
    this.composer.focus();
  }

  /** Removes an answer and all later turns, and asks again. */
  async retry(answer) {
    this.stop();
    this.#cut(this.turns.indexOf(answer));
    await this.#answer();
  }

  /** Stops the answer in progress, and all speech. */
  stop() {
    this.current?.stop();
    player.stop();
  }

  clear() {
    this.stop();
    this.#cut(0);
    this.composer.focus();
  }

  async #answer() {
    const options = this.options();
    const asked = [...this.turns];
    const answer = new Answer(asked, options, {
      retry: (each) => this.retry(each),
      giveResults: (results) => this.#giveResults(results),
    });
    this.#add(answer);
    this.composer.busy = true;
    for (const item of asked.flatMap((turn) => turn.items ?? [])) this.#complain(item, "");
    await answer.ask();
    this.composer.busy = Boolean(this.current);
    if (this.#atEnd) this.#showEnd();
    if (answer.state === "failed") this.#showPlace(answer.error, asked, options);
  }

  /** Adds the results of the latest answer's calls, and asks for the answer to them. */
  async #giveResults(results) {
    for (const result of results) {
      this.#add({ ...result, element: el("article", { class: "turn result", "aria-label": "Result" }, el("p", {}, result.text)) });
    }
    await this.#answer();
  }

  /** Shows the server's message also at the attached file or the option that caused it. */
  #showPlace(error, asked, options) {
    const item = itemOf(error.param, asked, options);
    if (item) this.#complain(item, error.message);
    else showWrongOption(error.param, error.message);
  }

  #complain(item, message) {
    const caption = item.element?.querySelector("figcaption");
    if (!caption) return;
    caption.textContent = message;
    caption.hidden = !message;
    item.element.classList.toggle("wrong", Boolean(message));
  }

  #add(turn) {
    this.turns.push(turn);
    this.#list.append(turn.element);
    this.#welcome();
    this.#atEnd = true;
    this.#follow();
  }

  /** Keeps the end in sight while it grows, unless the person has scrolled away. */
  #follow() {
    if (this.#atEnd && this.current) this.#showEnd();
  }

  #showEnd() {
    if (byId("chat").hidden) return; // the person looks at another view
    scrollTo({ top: document.documentElement.scrollHeight });
  }

  #cut(from) {
    for (const turn of this.turns.splice(from)) turn.element.remove();
    this.#welcome();
  }

  #welcome() {
    byId("welcome").hidden = this.turns.length > 0;
    byId("clear").hidden = this.turns.length === 0;
  }
}
