// The only player of the page: plays streamed speech as it arrives, and measures the playback.

import { RATE } from "./sound.js";

// Limits, in seconds, of the time for which the jitter buffer delays the first sound. After an answer with a gap, this
// time doubles. After an answer without a gap, it shrinks. So speech starts early on a fast network.
const SHALLOWEST = 0.06;
const DEEPEST = 0.64;

class Player {
  #context = null;
  #node = null;
  #ready = null;
  #depth = SHALLOWEST;
  #playing = null; // the sound that plays now
  #count = 0;

  /** The node from which everything that the page plays goes to the loudspeaker; null before the first sound. */
  get output() {
    return this.#node;
  }

  get context() {
    return this.#context;
  }

  get depth() {
    return this.#depth;
  }

  /** Makes the sound ready. A browser allows sound only if this is first called while it handles a click or a key. */
  prepare() {
    this.#ready ??= this.#open();
    this.#context.resume();
    return this.#ready;
  }

  /** The samples of a file, at 24 kHz. Throws a DOMException if the browser cannot decode the file. */
  async decode(file) {
    await this.prepare();
    return (await this.#context.decodeAudioData(file)).getChannelData(0);
  }

  async #open() {
    this.#context = new AudioContext({ sampleRate: RATE, latencyHint: "interactive" });
    await this.#context.audioWorklet.addModule(new URL("./worklets.js", import.meta.url));
    this.#node = new AudioWorkletNode(this.#context, "playback", { numberOfInputs: 0, outputChannelCount: [1] });
    this.#node.port.onmessage = ({ data }) => this.#hear(data);
    this.#node.connect(this.#context.destination);
  }

  /** Stops the current sound, and begins a new one. `changed` is called with each report of the playback. */
  begin(changed) {
    this.stop();
    const sound = new PlayedSound(this, ++this.#count, changed);
    this.#playing = sound;
    this.#post({ type: "begin", id: sound.id, delay: this.#depth });
    return sound;
  }

  stop() {
    if (this.#playing) this.#post({ type: "stop", id: this.#playing.id });
  }

  /** For `PlayedSound`: sends a message to the worklet. */
  #post(message, transfer = []) {
    this.#ready.then(() => this.#node.port.postMessage(message, transfer));
  }

  post(message, transfer) {
    this.#post(message, transfer);
  }

  #hear(report) {
    const sound = this.#playing;
    if (!sound || sound.id !== report.id) return;
    if (report.type === "finished" || report.type === "stopped") {
      const change = report.underruns ? 2 : 0.75;
      this.#depth = Math.min(DEEPEST, Math.max(SHALLOWEST, this.#depth * change));
      this.#playing = null;
    }
    sound.hear(report);
  }
}

/** One sound while it plays. Times are in seconds. */
class PlayedSound {
  #player;
  #changed;
  #cameFirst = null;

  constructor(player, id, changed) {
    this.#player = player;
    this.#changed = changed;
    this.id = id;
    this.over = false;
    this.played = 0;
    this.underruns = 0;
    this.silence = 0;
    this.startDelay = null; // from the arrival of the first sound until the loudspeaker gets it
  }

  /** Adds samples, a Float32Array at 24 kHz. */
  add(samples) {
    this.#cameFirst ??= performance.now();
    const copy = samples.slice();
    this.#player.post({ type: "samples", id: this.id, samples: copy }, [copy.buffer]);
  }

  end() {
    this.#player.post({ type: "end", id: this.id });
  }

  stop() {
    this.#player.post({ type: "stop", id: this.id });
  }

  hear({ type, played, underruns, silence }) {
    if (type === "began") this.startDelay = (performance.now() - this.#cameFirst) / 1000;
    this.played = played / RATE;
    this.underruns = underruns;
    this.silence = silence / RATE;
    this.over = type === "finished" || type === "stopped";
    this.#changed(this);
  }
}

export const player = new Player();
