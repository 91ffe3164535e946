// Asks the test's questions through OpenAI's own library for Node.
import OpenAI, { toFile } from "openai";
import { apiKey, baseURL, followUp, picture, printAnswers, question, sound, speech } from "./cases.mjs";

const { audio: sounds, chat } = new OpenAI({ baseURL, apiKey });
const { completions } = chat;
const model = "qwen3-omni";
const picturePart = { type: "image_url", image_url: { url: picture } };
const typed = [{ role: "user", content: [{ type: "text", text: question }, picturePart] }];
const spoken = [
  { role: "user", content: [picturePart, { type: "input_audio", input_audio: { data: sound, format: "wav" } }] },
];

const ask = async (messages, options = {}) =>
  (await completions.create({ model, messages, ...options })).choices[0].message;

async function stream() {
  let text = "";
  for await (const chunk of await completions.create({ model, messages: typed, stream: true })) {
    text += chunk.choices[0]?.delta?.content ?? "";
  }
  return text;
}

async function followingUp(options) {
  const first = await ask(typed, options);
  return (await ask([...typed, first, { role: "user", content: followUp }], options)).content;
}

async function spokenStream() {
  const helper = completions.stream({
    model,
    messages: typed,
    modalities: ["text", "audio"],
    audio: { voice: "ethan", format: "pcm16" },
  });
  const { content, audio } = (await helper.finalChatCompletion()).choices[0].message;
  return { text: content, id: audio.id, transcript: audio.transcript, sound: audio.data };
}

async function transcripts() {
  const file = await toFile(Buffer.from(sound, "base64"), "question.wav");
  const { text: whole, usage } = await sounds.transcriptions.create({ file, model, language: "en" });
  let streamed = "";
  let done = "";
  for await (const event of await sounds.transcriptions.create({ file, model, language: "en", stream: true })) {
    if (event.type === "transcript.text.delta") streamed += event.delta;
    else done = event.text;
  }
  const { text: translated } = await sounds.translations.create({ file, model });
  return { whole, streamed, done, translated, heard: usage.input_token_details.audio_tokens };
}

async function readAloud() {
  const { audio } = new OpenAI({ baseURL, apiKey });
  const asked = { model, voice: "ethan", input: "There are three cars.", response_format: "wav" };
  const whole = Buffer.from(await (await audio.speech.create(asked)).arrayBuffer());
  let pieces = 0;
  for await (const piece of (await audio.speech.create(asked)).body) {
    pieces += piece.length > 0 ? 1 : 0;
  }
  return { sound: whole.toString("base64"), pieces };
}

await printAnswers({
  "read aloud": readAloud,
  picture: async () => (await ask(typed)).content,
  sound: async () => (await ask(spoken)).content,
  stream,
  "stream helper": () => completions.stream({ model, messages: typed }).finalContent(),
  speech: async () => {
    const { content, audio } = await ask(typed, speech);
    return { text: content, sound: audio.data };
  },
  "streamed speech": spokenStream,
  transcripts,
  "follow-up": () => followingUp({}),
  "follow-up to speech": () => followingUp(speech),
});
