// The form in which the person writes a message and attaches media.

import { byId } from "./dom.js";
import { showItem } from "./items.js";
import { itemOfFile, kindOf } from "./media.js";
import { recordSound } from "./recorder.js";

export class Composer {
  #items = [];
  #form = byId("composer");
  #question = byId("question");
  #recording = null;

  /** `ask` is called with the text and the items of a message. */
  constructor(ask) {
    this.#form.addEventListener("submit", async (event) => {
      event.preventDefault();
      if (this.#recording) await this.#endRecording();
      const text = this.#question.value.trim();
      if ((!text && !this.#items.length) || this.busy) return;
      const items = this.#items;
      this.fill("", []);
      ask(text, items);
    });
    this.#question.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
        event.preventDefault();
        this.#form.requestSubmit();
      }
    });
    this.#question.addEventListener("input", () => this.#fit());
    byId("attach").addEventListener("click", () => byId("files").click());
    byId("files").addEventListener("change", async () => {
      await this.attach(byId("files").files);
      byId("files").value = "";
    });
    byId("mic").addEventListener("click", () => (this.#recording ? this.#endRecording() : this.#record()));
    this.#takeDropped();
    document.addEventListener("paste", (event) => {
      const { files } = event.clipboardData;
      if (!files.length) return;
      event.preventDefault();
      this.attach(files);
    });
  }

  async #record() {
    byId("notice").textContent = "";
    try {
      this.#recording = await recordSound((level, length) => {
        byId("level").value = level;
        byId("recorded").textContent = `${length.toFixed(1)} s`;
      }, () => this.#endRecording());
    } catch (error) {
      byId("notice").textContent = `The microphone cannot be used: ${error.message}.`;
      return;
    }
    this.#showRecording(true);
  }

  async #endRecording() {
    const recording = this.#recording;
    this.#recording = null;
    this.#showRecording(false);
    await this.attach([await recording.end()]);
  }

  #showRecording(on) {
    byId("recording").hidden = !on;
    byId("mic").setAttribute("aria-pressed", String(on));
    const name = on ? "Stop the recording" : "Record a sound";
    byId("mic").setAttribute("aria-label", name);
    byId("mic").title = name;
  }

  /** Attaches files that are dropped anywhere on the page. */
  #takeDropped() {
    let inside = 0; // elements of the page that the dragged files have entered and not left
    const show = (change) => {
      inside = Math.max(0, inside + change);
      byId("drop").hidden = inside === 0;
    };
    const withFiles = (act) => (event) => {
      if (!event.dataTransfer?.types.includes("Files")) return;
      event.preventDefault();
      act(event);
    };
    document.addEventListener("dragenter", withFiles(() => show(1)));
    document.addEventListener("dragleave", withFiles(() => show(-1)));
    document.addEventListener("dragover", withFiles(() => {}));
    document.addEventListener("drop", withFiles((event) => {
      show(-Infinity);
      this.attach(event.dataTransfer.files);
    }));
  }

  get busy() {
    return byId("send").hidden;
  }

  /** Shows the button that stops an answer, or the button that sends. */
  set busy(busy) {
    byId("send").hidden = busy;
    byId("stop").hidden = !busy;
  }

  /** Attaches files. Lists the files that are not pictures, sounds or clips. */
  async attach(files) {
    const refused = [...files].filter((file) => !kindOf(file));
    const made = await Promise.all([...files].filter(kindOf).map(itemOfFile));
    this.#items.push(...made);
    this.#show();
    byId("notice").textContent = refused.length
      ? `${refused.map((file) => file.name).join(", ")}: only pictures, sounds and clips can be attached.` : "";
    this.#question.focus();
  }

  /** Replaces the contents of the form. */
  fill(text, items) {
    this.#question.value = text;
    this.#items = [...items];
    this.#show();
    this.#fit();
  }

  focus() {
    this.#question.focus();
  }

  #show() {
    byId("attached").hidden = !this.#items.length;
    byId("attached").replaceChildren(...this.#items.map((item) => showItem(item, () => {
      this.#items = this.#items.filter((other) => other !== item);
      this.#show();
      this.#question.focus();
    })));
  }

  /** Makes the field as high as its text. */
  #fit() {
    this.#question.style.height = "auto";
    this.#question.style.height = `${this.#question.scrollHeight}px`;
  }
}
