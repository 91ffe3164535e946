// Draws the outline of a sound. The played part has the accent's colour. A click plays from that point.

import { el } from "./dom.js";
import { extendOutline, RATE } from "./sound.js";

const STEP = 960; // samples of one bar, 40 ms
const BAR = 3; // pixels of one bar with its gap

export class Waveform {
  #outline = [];
  #rest = new Float32Array(0);
  #samples = 0;
  #played = 0;
  #waiting = false; // whether a redraw is planned

  constructor(seek) {
    this.canvas = el("canvas", { "aria-hidden": "true" });
    this.time = el("span", { class: "time" });
    this.element = el("div", { class: "waveform" }, this.canvas, this.time);
    this.canvas.addEventListener("click", (event) => {
      const bar = event.offsetX / this.#width();
      seek(Math.min(bar * STEP, this.#samples) / RATE);
    });
    new ResizeObserver(() => this.#plan()).observe(this.canvas);
  }

  add(samples) {
    this.#rest = extendOutline(this.#outline, this.#rest, samples, STEP);
    this.#samples += samples.length;
    this.#plan();
  }

  end() {
    this.#plan();
  }

  /** Moves the playhead to a time in seconds. */
  show(played) {
    this.#played = played;
    this.#plan();
  }

  #width() {
    return Math.min(BAR, this.canvas.clientWidth / Math.max(1, this.#outline.length));
  }

  #plan() {
    if (this.#waiting) return;
    this.#waiting = true;
    requestAnimationFrame(() => {
      this.#waiting = false;
      this.#draw();
    });
  }

  #draw() {
    const { clientWidth: width, clientHeight: height } = this.canvas;
    const ratio = devicePixelRatio;
    this.canvas.width = width * ratio;
    this.canvas.height = height * ratio;
    const pen = this.canvas.getContext("2d");
    pen.scale(ratio, ratio);
    const style = getComputedStyle(this.canvas);
    const [bright, pale] = [style.getPropertyValue("--accent"), style.getPropertyValue("--wave")];
    const bar = this.#width();
    const playhead = (this.#played * RATE) / STEP;
    this.#outline.forEach((peak, i) => {
      const tall = Math.max(2, peak * height);
      pen.fillStyle = i < playhead ? bright : pale;
      pen.beginPath();
      pen.roundRect(i * bar, (height - tall) / 2, Math.max(1, bar - 1), tall, 1);
      pen.fill();
    });
    this.time.textContent = `${this.#played.toFixed(1)} / ${(this.#samples / RATE).toFixed(1)} s`;
  }
}
