// Records the microphone as a WAV file.

import { wavFile } from "./sound.js";

const LONGEST = 300; // seconds
const MICROPHONE = { channelCount: 1, echoCancellation: true, noiseSuppression: true, autoGainControl: true };

/** Opens the microphone; `heard` gets its samples, at `context.sampleRate`. Throws a DOMException if it is not allowed. */
export async function openMicrophone(heard, rate) {
  if (!navigator.mediaDevices) throw new Error("browsers allow microphones only over https or on localhost");
  const stream = await navigator.mediaDevices.getUserMedia({ audio: MICROPHONE });
  const context = new AudioContext(rate ? { sampleRate: rate } : {});
  await context.audioWorklet.addModule(new URL("./worklets.js", import.meta.url));
  const capture = new AudioWorkletNode(context, "capture", { numberOfOutputs: 0 });
  capture.port.onmessage = ({ data }) => heard(data);
  context.createMediaStreamSource(stream).connect(capture);
  return {
    rate: context.sampleRate,
    async close() {
      for (const track of stream.getTracks()) track.stop();
      await context.close();
    },
  };
}

/**
 * Begins to record. `changed` gets the loudness, from 0 to 1, and the length in seconds; `full` is called when the
 * recording has its maximum length. The result's `end` closes the microphone and returns the file.
 */
export async function recordSound(changed, full) {
  const chunks = [];
  let length = 0;
  let rate = Infinity;
  const microphone = await openMicrophone((samples) => {
    chunks.push(samples);
    length += samples.length / rate;
    changed(Math.min(1, 3 * Math.sqrt(samples.reduce((sum, each) => sum + each * each, 0) / samples.length)), length);
    if (length >= LONGEST) full();
  });
  rate = microphone.rate;
  return {
    async end() {
      await microphone.close();
      return new File([wavFile(chunks, rate)], "recording.wav", { type: "audio/wav" });
    },
  };
}
