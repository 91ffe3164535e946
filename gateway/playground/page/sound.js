// Sound as numbers: 16-bit PCM to samples, samples to a WAV file, samples to the outline that a waveform shows.

export const RATE = 24000; // of the server's speech, in samples per second

export const WAV_HEADER = 44; // bytes of the header of WAV files, from the server and from this page

/** The bytes of a base64 text. */
export function bytesOfBase64(text) {
  const binary = atob(text);
  const bytes = new Uint8Array(binary.length);
  for (let i = 0; i < binary.length; i++) bytes[i] = binary.charCodeAt(i);
  return bytes;
}

/** Samples between -1 and 1 of 16-bit little-endian PCM. */
export function samplesOfPcm(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const samples = new Float32Array(bytes.byteLength >> 1);
  for (let i = 0; i < samples.length; i++) samples[i] = view.getInt16(2 * i, true) / 32768;
  return samples;
}

/** 16-bit PCM of samples. */
export function pcmOfSamples(samples) {
  const view = new DataView(new ArrayBuffer(2 * samples.length));
  samples.forEach((sample, i) => {
    view.setInt16(2 * i, Math.round(Math.max(-1, Math.min(1, sample)) * 32767), true);
  });
  return new Uint8Array(view.buffer);
}

/** Bytes as base64. */
export function base64OfBytes(bytes) {
  let binary = "";
  for (const byte of bytes) binary += String.fromCharCode(byte);
  return btoa(binary);
}

/** All chunks in one array. */
export function joined(chunks) {
  const all = new Float32Array(chunks.reduce((sum, chunk) => sum + chunk.length, 0));
  let at = 0;
  for (const chunk of chunks) {
    all.set(chunk, at);
    at += chunk.length;
  }
  return all;
}

/** A WAV file with one channel of 16-bit samples. */
export function wavFile(chunks, rate) {
  const pcm = pcmOfSamples(joined(chunks));
  const view = new DataView(new ArrayBuffer(WAV_HEADER));
  const text = (at, letters) => [...letters].forEach((letter, i) => view.setUint8(at + i, letter.charCodeAt(0)));
  text(0, "RIFF");
  view.setUint32(4, 36 + pcm.length, true);
  text(8, "WAVEfmt ");
  view.setUint32(16, 16, true);
  view.setUint16(20, 1, true); // PCM
  view.setUint16(22, 1, true); // channels
  view.setUint32(24, rate, true);
  view.setUint32(28, 2 * rate, true);
  view.setUint16(32, 2, true);
  view.setUint16(34, 16, true);
  text(36, "data");
  view.setUint32(40, pcm.length, true);
  return new Blob([view, pcm], { type: "audio/wav" });
}

/** Appends the loudest sample of each `step` samples to `outline`; returns the remaining samples. */
export function extendOutline(outline, rest, samples, step) {
  const all = joined([rest, samples]);
  let at = 0;
  for (; at + step <= all.length; at += step) {
    let peak = 0;
    for (let i = at; i < at + step; i++) peak = Math.max(peak, Math.abs(all[i]));
    outline.push(peak);
  }
  return all.slice(at);
}
