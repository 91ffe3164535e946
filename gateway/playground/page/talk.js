// A spoken conversation: the microphone is always on, and the person can interrupt.

import { explain } from "./api.js";
import { openCamera } from "./camera.js";
import { byId, el, seconds } from "./dom.js";
import { showItem } from "./items.js";
import { itemOfFile, kindOf } from "./media.js";
import { player } from "./player.js";
import { openSession } from "./realtime.js";
import { openMicrophone } from "./recorder.js";
import { base64OfBytes, bytesOfBase64, pcmOfSamples, RATE, samplesOfPcm, wavFile } from "./sound.js";
import { SpokenAnswer } from "./spoken-answer.js";
import { SpokenQuestion } from "./spoken-question.js";

const WORDS = {
  off: "",
  opening: "opening the microphone",
  listening: "listening",
  hearing: "hearing you",
  thinking: "thinking",
  speaking: "speaking: you can interrupt",
};
const TAIL = 160; // milliseconds after the last word that the server counts as part of the turn
const KEPT = 60 * RATE; // samples of the microphone that are kept, to show the questions

export class Talk {
  turns = []; // the answers with their measurements, for programs that drive the page
  #session = null;
  #microphone = null;
  #heard = []; // chunks of the microphone that have been sent
  #sent = 0; // samples that have been sent
  #began = 0; // time at which the first sent sample was spoken
  #speechBegin = 0; // milliseconds of sent sound
  #speechEnd = null; // time at which the person stopped speaking
  #answer = null;
  #question = null; // the latest question
  #questions = new Map(); // questions by the id of their item
  #held = false; // whether the button of push to talk is held

  /** `voice` returns the chosen voice, and `doubt` a remark for the transcripts of the person's speech. */
  constructor(voice, doubt) {
    this.voice = voice;
    this.doubt = doubt;
    byId("talk-start").addEventListener("click", () => (this.#session ? this.end() : this.start()));
    byId("push").addEventListener("change", () => this.#configure());
    byId("talk-show").addEventListener("click", () => byId("talk-files").click());
    byId("talk-files").addEventListener("change", () => {
      for (const file of byId("talk-files").files) this.#showPicture(file);
      byId("talk-files").value = "";
    });
    new ResizeObserver(() => {
      if (this.#session && !byId("talk").hidden) scrollTo({ top: document.documentElement.scrollHeight });
    }).observe(byId("talk-turns"));
    byId("talk-camera").addEventListener("click", () => openCamera((file) => this.#showPicture(file)));
    this.#prepareHold();
  }

  /** Opens a session and the microphone. */
  async start() {
    this.#show("opening");
    byId("talk-problem").textContent = "";
    try {
      await player.prepare();
      this.#sent = 0;
      this.#heard = [];
      this.#question = null;
      this.#session = await openSession((event) => this.#take(event), (reason) => this.#closed(reason));
      this.#configure();
      this.#microphone = await openMicrophone((samples) => this.#hear(samples), RATE);
      this.#show("listening");
    } catch (error) {
      byId("talk-problem").textContent = error instanceof DOMException
        ? `The microphone cannot be used: ${error.message}.` : explain(error);
      this.end();
    }
  }

  end() {
    player.stop();
    this.#session?.close();
    this.#microphone?.close();
    this.#session = this.#microphone = this.#answer = null;
    this.#show("off");
  }

  #closed(reason) {
    if (!this.#session) return;
    byId("talk-problem").textContent = reason;
    this.end();
  }

  #show(state) {
    const running = state !== "off";
    byId("talk").dataset.state = state;
    byId("talk-state").textContent = WORDS[state];
    byId("talk-start").textContent = running ? "End the conversation" : "Start talking";
    byId("hold").hidden = !running || !byId("push").checked;
    byId("talk-show").disabled = byId("talk-camera").disabled = !running || state === "opening";
  }

  #configure() {
    byId("hold").hidden = !this.#session || !byId("push").checked;
    const detection = byId("push").checked ? null : { type: "server_vad" };
    const voice = this.voice();
    this.#session?.send({
      type: "session.update",
      session: { type: "realtime", audio: { input: { turn_detection: detection, transcription: {} }, ...(voice ? { output: { voice } } : {}) } },
    });
  }

  // --- to the server ---

  #hear(samples) {
    if (!this.#session || (byId("push").checked && !this.#held)) return;
    if (!this.#sent) this.#began = performance.now() - (1000 * samples.length) / RATE;
    this.#sent += samples.length;
    this.#heard.push(samples);
    while (this.#heard.length * samples.length > KEPT) this.#heard.shift();
    this.#session.send({ type: "input_audio_buffer.append", audio: base64OfBytes(pcmOfSamples(samples)) });
  }

  async #showPicture(file) {
    if (kindOf(file) !== "image") {
      byId("talk-problem").textContent = `${file.name}: only pictures can be shown in a conversation.`;
      return;
    }
    const item = await itemOfFile(file);
    this.#session?.send({
      type: "conversation.item.create",
      item: { type: "message", role: "user", content: [{ type: "input_image", image_url: item.data }] },
    });
    this.#add(el("article", { class: "turn question", "aria-label": "You" }, el("div", { class: "items" }, showItem(item))));
  }

  #prepareHold() {
    const hold = byId("hold");
    const down = () => {
      if (this.#held) return;
      this.#held = true;
      if (this.#answer) {
        this.#session.send({ type: "response.cancel" });
        this.#interrupt();
      }
      this.#session.send({ type: "input_audio_buffer.clear" });
      this.#sent = 0;
      this.#show("hearing");
    };
    const up = () => {
      if (!this.#held) return;
      this.#held = false;
      this.#speechEnd = performance.now();
      this.#addQuestion(0, this.#sent);
      this.#session?.send({ type: "input_audio_buffer.commit" });
      this.#session?.send({ type: "response.create" });
      this.#show("thinking");
    };
    const isKey = (event) => event.key === " " || event.key === "Enter";
    hold.addEventListener("pointerdown", (event) => { hold.setPointerCapture(event.pointerId); down(); });
    hold.addEventListener("pointerup", up);
    hold.addEventListener("pointercancel", up);
    hold.addEventListener("keydown", (event) => { if (isKey(event)) { event.preventDefault(); down(); } });
    hold.addEventListener("keyup", (event) => { if (isKey(event)) up(); });
    hold.addEventListener("blur", up);
  }

  // --- from the server ---

  #take(event) {
    switch (event.type) {
      case "input_audio_buffer.speech_started":
        this.#interrupt();
        this.#speechBegin = event.audio_start_ms;
        this.#show("hearing");
        break;
      case "input_audio_buffer.speech_stopped":
        this.#speechEnd = this.#began + event.audio_end_ms - TAIL;
        this.#addQuestion((this.#speechBegin * RATE) / 1000, (event.audio_end_ms * RATE) / 1000);
        this.#show("thinking");
        break;
      case "input_audio_buffer.committed":
        if (this.#question) this.#questions.set(event.item_id, this.#question);
        this.#question = null;
        break;
      case "conversation.item.input_audio_transcription.delta":
        this.#questions.get(event.item_id)?.write(event.delta);
        break;
      case "conversation.item.input_audio_transcription.completed":
        this.#questions.get(event.item_id)?.end(event.transcript);
        break;
      case "conversation.item.input_audio_transcription.failed":
        this.#questions.get(event.item_id)?.fail(event.error.message);
        break;
      case "response.created":
        this.#answer = new SpokenAnswer(this.#speechEnd);
        this.turns.push(this.#answer);
        this.#add(this.#answer.element);
        break;
      case "response.output_item.added":
        if (this.#answer && event.item.type === "message") this.#answer.item = event.item.id;
        break;
      case "response.output_audio_transcript.delta":
      case "response.output_text.delta":
        this.#answer?.write(event.delta);
        break;
      case "response.output_audio.delta":
        if (!this.#answer) break; // the answer was interrupted
        this.#answer.speak(samplesOfPcm(bytesOfBase64(event.delta)), () => this.#played());
        this.#show("speaking");
        break;
      case "response.done":
        this.#answer?.end(event.response);
        if (!this.#answer?.speaking) this.#played();
        break;
      case "error":
        byId("talk-problem").textContent = event.error.message;
        break;
    }
  }

  /** Stops the speech, and reports to the server how much of it was heard. */
  #interrupt() {
    const answer = this.#answer;
    this.#answer = null;
    if (!answer?.speaking) return;
    const heard = answer.interrupt();
    if (answer.item) {
      this.#session?.send({
        type: "conversation.item.truncate", item_id: answer.item, content_index: 0, audio_end_ms: Math.round(1000 * heard),
      });
    }
  }

  /** Called when an answer has ended, and its speech has been played. */
  #played() {
    if (!this.#answer || this.#answer.speaking || !this.#answer.done) return;
    this.#answer = null;
    if (this.#session && !this.#held) this.#show("listening");
  }

  /** Shows a question: the sent samples from `begin` to `end`. */
  #addQuestion(begin, end) {
    const kept = this.#heard.reduce((sum, chunk) => sum + chunk.length, 0);
    const first = this.#sent - kept; // number of the first kept sample
    let at = first;
    const spoken = this.#heard.flatMap((chunk) => {
      const part = chunk.subarray(Math.max(0, begin - at), Math.max(0, end - at));
      at += chunk.length;
      return part.length ? [part] : [];
    });
    this.#question = new SpokenQuestion(wavFile(spoken, RATE), seconds((end - begin) / RATE), this.doubt());
    this.#add(this.#question.element);
  }

  #add(element) {
    byId("talk-turns").append(element);
  }
}
