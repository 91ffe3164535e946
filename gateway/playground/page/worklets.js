// The page's work on the audio thread: playing speech without gaps, and recording.

// Plays the sound of one answer after the other, and counts the gaps.
//
// The processor is a jitter buffer. Before it starts, and each time it has run dry, it waits for `delay` seconds after
// the first samples arrive. So later samples can be late by this time without an audible gap.

const REPORT_SAMPLES = 1200; // 50 ms at 24 kHz

class Playback extends AudioWorkletProcessor {
  constructor() {
    super();
    this.forget();
    this.port.onmessage = ({ data }) => this.take(data);
  }

  forget() {
    this.chunks = [];
    this.offset = 0; // samples of the first chunk that have been played
    this.waiting = 0; // received samples that have not been played
    this.delay = 0;
    this.since = null; // arrival time of the first samples that wait for the start
    this.ended = true;
    this.filling = true;
    this.played = 0;
    this.underruns = 0;
    this.silence = 0; // samples of silence in the middle of the sound
    this.reported = 0;
    this.id = null;
  }

  take(message) {
    if (message.type === "begin") {
      this.forget();
      this.id = message.id;
      this.delay = message.delay;
      this.ended = false;
    } else if (message.id !== this.id) {
      return; // that sound was stopped
    } else if (message.type === "samples") {
      this.chunks.push(message.samples);
      this.waiting += message.samples.length;
      this.since ??= currentTime;
    } else if (message.type === "end") {
      this.ended = true;
    } else if (message.type === "stop") {
      this.report("stopped");
      this.forget();
    }
  }

  report(type) {
    const { id, played, underruns, silence, waiting } = this;
    this.port.postMessage({ type, id, played, underruns, silence, waiting, at: currentTime });
    this.reported = played;
  }

  process(_inputs, outputs) {
    const out = outputs[0][0];
    if (this.id === null) return true;
    if (this.filling) {
      if (!this.ended && (this.since === null || currentTime - this.since < this.delay)) {
        if (this.played) this.silence += out.length;
        return true;
      }
      if (this.waiting) {
        this.filling = false;
        this.report(this.played ? "playing" : "began");
      }
    }
    let at = 0;
    while (at < out.length && this.chunks.length) {
      const chunk = this.chunks[0];
      const count = Math.min(out.length - at, chunk.length - this.offset);
      out.set(chunk.subarray(this.offset, this.offset + count), at);
      at += count;
      this.offset += count;
      if (this.offset === chunk.length) {
        this.chunks.shift();
        this.offset = 0;
      }
    }
    this.played += at;
    this.waiting -= at;
    if (at < out.length && this.ended) {
      this.report("finished");
      this.forget();
    } else if (at < out.length && !this.filling) {
      this.underruns += 1;
      this.silence += out.length - at;
      this.filling = true;
      this.delay *= 2;
      this.since = null;
      this.report("dry");
    } else if (this.played - this.reported >= REPORT_SAMPLES) {
      this.report("playing");
    }
    return true;
  }
}

registerProcessor("playback", Playback);

// Sends the samples of the microphone to the page, about twenty times a second.
class Capture extends AudioWorkletProcessor {
  constructor() {
    super();
    this.kept = new Float32Array(sampleRate / 20);
    this.count = 0;
  }

  process(inputs) {
    const input = inputs[0][0];
    if (!input) return true;
    for (const sample of input) {
      this.kept[this.count++] = sample;
      if (this.count === this.kept.length) {
        this.port.postMessage(this.kept.slice());
        this.count = 0;
      }
    }
    return true;
  }
}

registerProcessor("capture", Capture);
