// One answer: asks the server, shows the text while it streams, plays the speech, and measures both.

import { events, explain, send } from "./api.js";
import { el, icon, iconButton, seconds } from "./dom.js";
import { Markdown } from "./markdown.js";
import { player } from "./player.js";
import { bodyOf } from "./request.js";
import { bytesOfBase64, RATE, samplesOfPcm, WAV_HEADER, wavFile } from "./sound.js";
import { showSnippets } from "./snippets.js";
import { showTimeline } from "./timeline.js";
import { Waveform } from "./waveform.js";

const TIMED = { "X-Omni-Timeline": "keep" };

/** Shows a text that is not Markdown, because it follows a schema. */
function plain(element) {
  const code = el("code");
  const block = el("pre", { tabIndex: 0 }, code);
  return {
    write(piece) {
      code.append(piece);
      element.append(block);
    },
    end() {},
  };
}

export class Answer {
  role = "assistant";
  text = "";
  reasoning = "";
  calls = [];
  state = "asking"; // then: streaming, complete, stopped, failed
  chunks = []; // samples of the speech

  #abort = new AbortController();
  #began = performance.now();
  #firstText = null;
  #firstSound = null;
  #lastSound = null;
  #late = 0; // seconds of the longest wait for a chunk, if all chunks were played as they arrive
  #length = 0; // seconds of speech so far
  #sound = null;
  #waveform = null;
  #file = []; // the encoded speech, in formats that are one file
  #shown; // shows the text

  /**
   * `turns` and `options` are the arguments of `bodyOf`. `acts` has two functions: `retry`, and `giveResults` for the
   * results of the answer's calls.
   */
  constructor(turns, options, acts) {
    this.turns = turns;
    this.options = options;
    this.acts = acts;
    this.body = el("div", { class: "text" });
    this.#shown = options.fields.response_format ? plain(this.body) : new Markdown(this.body);
    this.thoughts = el("details", { class: "thoughts", hidden: true }, el("summary", {}, "Reasoning"), el("p"));
    this.speech = el("div", { class: "speech", hidden: true });
    this.called = el("div", { class: "calls" });
    this.problem = el("p", { class: "problem", role: "alert", hidden: true });
    this.figures = el("p", { class: "figures" });
    this.more = el("div", { class: "more" });
    this.buttons = el("div", { class: "buttons", hidden: true },
      iconButton("copy", "Copy the answer", () => this.copy()),
      iconButton("retry", "Ask again", () => acts.retry(this)),
      this.saveButton = iconButton("save", "Save the speech as a file", () => this.save()),
      this.timeButton = this.#panelButton("time", "Show the timeline over the stages", () => showTimeline(this.id)),
      this.#panelButton("code", "Show the request as a program", () => showSnippets(turns, options)),
    );
    this.saveButton.hidden = true;
    this.element = el("article", { class: "turn answer", "aria-label": "Answer", "aria-busy": "true" },
      this.thoughts, this.body, this.speech, this.called, this.problem,
      el("footer", {}, this.figures, this.buttons), this.more);
  }

  /** Asks for the answer, and returns when it is complete, stopped or failed. Throws nothing. */
  async ask() {
    const body = bodyOf(this.turns, this.options);
    try {
      if (body.audio) await player.prepare();
      this.#began = performance.now();
      const response = await send("v1/chat/completions", { body, signal: this.#abort.signal, headers: TIMED });
      this.state = "streaming";
      for await (const chunk of events(response)) this.#take(chunk);
      if (!this.finish) throw new TypeError("the stream ended early");
      if (this.#file.length) await this.#playFile();
      this.state = "complete";
    } catch (error) {
      this.#fail(error);
    }
    this.#shown.end();
    this.#sound?.end();
    this.element.setAttribute("aria-busy", "false");
    this.#waveform?.end();
    this.buttons.hidden = false;
    this.saveButton.hidden = !this.chunks.length && !this.#file.length;
    this.timeButton.hidden = !this.id;
    if (this.state === "complete" && this.calls.length) this.#askForResults();
    this.#showFigures();
  }

  stop() {
    this.#abort.abort();
    this.#sound?.stop();
  }

  get speaking() {
    return Boolean(this.#sound && !this.#sound.over);
  }

  /** The measurements, for programs that drive the page. Times are in seconds. */
  get measured() {
    const sound = this.#sound;
    return {
      state: this.state,
      firstText: this.#firstText,
      firstSound: this.#firstSound,
      soundSeconds: this.#length,
      late: this.#late,
      realTimeFactor: this.#lastSound && this.#lastSound / this.#length,
      played: sound?.played ?? 0,
      over: sound?.over ?? true,
      underruns: sound?.underruns ?? 0,
      silence: sound?.silence ?? 0,
      startDelay: sound?.startDelay ?? null,
      id: this.id ?? null,
    };
  }

  copy() {
    return navigator.clipboard.writeText(this.text);
  }

  /** Lets the browser save the speech. */
  save() {
    const file = this.#file.length ? new Blob(this.#file) : wavFile(this.chunks, RATE);
    const address = URL.createObjectURL(file);
    el("a", { href: address, download: `answer.${this.#file.length ? this.options.format : "wav"}` }).click();
    setTimeout(() => URL.revokeObjectURL(address), 10_000);
  }

  /** A button that shows something below the answer, and hides it again. */
  #panelButton(name, label, make) {
    const button = iconButton(name, label, async () => {
      const open = button.getAttribute("aria-expanded") === "true";
      for (const other of this.buttons.querySelectorAll("[aria-expanded]")) other.setAttribute("aria-expanded", "false");
      this.more.replaceChildren();
      if (open) return;
      button.setAttribute("aria-expanded", "true");
      try {
        this.more.replaceChildren(await make());
      } catch (error) {
        this.more.replaceChildren(el("p", { class: "problem", role: "alert" }, explain(error)));
      }
      this.more.scrollIntoView({ block: "nearest" });
    });
    button.setAttribute("aria-expanded", "false");
    return button;
  }

  /** Asks the person for the results of the called functions. */
  #askForResults() {
    const fields = this.calls.map((call) => el("input", { "aria-label": `Result of ${call.function.name}`, placeholder: "result", required: true }));
    const form = el("form", { class: "results", on: { submit: (event) => {
      event.preventDefault();
      form.remove();
      this.acts.giveResults(this.calls.map((call, i) => ({ role: "tool", id: call.id, text: fields[i].value })));
    } } }, ...fields, el("button", { class: "quiet" }, this.calls.length > 1 ? "Send the results" : "Send the result"));
    this.called.append(form);
  }

  #fail(error) {
    if (error.name === "AbortError") {
      this.state = "stopped";
      return;
    }
    this.state = "failed";
    this.error = error;
    this.problem.textContent = explain(error);
    this.problem.hidden = false;
  }

  #take(chunk) {
    this.id ??= chunk.id;
    if (chunk.usage) this.usage = chunk.usage;
    const choice = chunk.choices[0];
    if (!choice) return;
    if (choice.finish_reason) this.finish = choice.finish_reason;
    const { content, reasoning_content: reasoning, audio, tool_calls: calls } = choice.delta;
    if (content || reasoning || calls) this.#firstText ??= this.#since();
    if (content) {
      this.text += content;
      this.#shown.write(content);
    }
    if (reasoning) {
      this.reasoning += reasoning;
      this.thoughts.hidden = false;
      this.thoughts.lastChild.append(reasoning);
    }
    for (const call of calls ?? []) this.#takeCall(call);
    if (audio?.data) this.#takeSound(bytesOfBase64(audio.data));
  }

  /** Plays a chunk at once if it can be decoded alone. In other formats, the chunks are one file, played when complete. */
  #takeSound(bytes) {
    const format = this.options.format || "pcm16";
    if (format === "pcm16") this.#hear(samplesOfPcm(bytes));
    else if (format === "wav") this.#hear(samplesOfPcm(bytes.subarray(WAV_HEADER)));
    else this.#file.push(bytes);
  }

  async #playFile() {
    try {
      this.#hear(await player.decode(await new Blob(this.#file).arrayBuffer()));
    } catch (error) {
      if (!(error instanceof DOMException)) throw error;
      this.problem.textContent = `This browser cannot play ${this.options.format}. You can save the file.`;
      this.problem.hidden = false;
    }
  }

  #takeCall({ index, id, function: piece }) {
    const call = (this.calls[index] ??= { id, type: "function", function: { name: "", arguments: "" } });
    call.function.name += piece.name ?? "";
    call.function.arguments += piece.arguments ?? "";
    this.called.replaceChildren(...this.calls.map((each) => el("code", { class: "call" },
      `${each.function.name}(${each.function.arguments})`)));
  }

  #hear(samples) {
    if (!samples.length) return;
    if (!this.#sound) {
      this.#firstSound = this.#since();
      this.#begin();
      this.#waveform = new Waveform((at) => this.#replay(at));
      this.speech.prepend(this.playButton, this.#waveform.element);
      this.speech.hidden = false;
    }
    this.chunks.push(samples);
    this.#late = Math.max(this.#late, this.#since() - this.#firstSound - this.#length);
    this.#length += samples.length / RATE;
    this.#lastSound = this.#since();
    this.#waveform.add(samples);
    this.#sound.add(samples);
  }

  #begin() {
    this.playButton ??= el("button", { type: "button", class: "icon", on: { click: () => this.#toggle() } });
    this.#sound = player.begin((sound) => this.#showPlayback(sound));
    this.offset = 0;
    this.#showButton();
  }

  #toggle() {
    if (this.speaking) this.#sound.stop();
    else this.#replay(0);
  }

  /** Plays the received speech from a time in seconds. */
  async #replay(from) {
    if (this.state === "streaming") return;
    await player.prepare();
    this.#begin();
    this.offset = from;
    let skip = Math.round(from * RATE);
    for (const chunk of this.chunks) {
      if (skip < chunk.length) this.#sound.add(chunk.subarray(skip));
      skip = Math.max(0, skip - chunk.length);
    }
    this.#sound.end();
  }

  #showPlayback(sound) {
    this.#waveform.show(sound.over && sound.played + this.offset >= this.#length - 0.01 ? 0 : sound.played + this.offset);
    this.#showButton();
    if (this.state !== "streaming") this.#showFigures();
  }

  #showButton() {
    const name = this.speaking ? "Stop the speech" : "Play the speech";
    if (this.playButton.getAttribute("aria-label") === name) return;
    this.playButton.setAttribute("aria-label", name);
    this.playButton.title = name;
    this.playButton.replaceChildren(icon(this.speaking ? "stop" : "play"));
  }

  #showFigures() {
    const { firstText, firstSound, soundSeconds, realTimeFactor, underruns, silence } = this.measured;
    const parts = [];
    if (this.state === "stopped") parts.push("stopped");
    if (this.finish === "length") parts.push("cut at the token limit");
    if (firstText !== null) parts.push(`first text ${seconds(firstText)}`);
    if (firstSound !== null) {
      parts.push(`first sound ${seconds(firstSound)}`, `${seconds(soundSeconds)} of speech`,
        `real-time factor ${realTimeFactor.toFixed(2)}`,
        underruns ? `${underruns} ${underruns === 1 ? "gap" : "gaps"}, ${seconds(silence)}` : "no gaps");
    }
    if (this.usage) parts.push(`${this.usage.prompt_tokens} tokens in, ${this.usage.completion_tokens} out`);
    this.figures.replaceChildren(...parts.map((part) => el("span", {}, part)));
  }

  #since() {
    return (performance.now() - this.#began) / 1000;
  }
}
