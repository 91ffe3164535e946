// Asks the test's questions through OpenAI's own library for Node.
import OpenAI from "openai";
import { apiKey, baseURL, followUp, picture, printAnswers, question, sound, speech } from "./cases.mjs";

const { completions } = new OpenAI({ baseURL, apiKey }).chat;
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

await printAnswers({
  picture: async () => (await ask(typed)).content,
  sound: async () => (await ask(spoken)).content,
  stream,
  "stream helper": () => completions.stream({ model, messages: typed }).finalContent(),
  speech: async () => {
    const { content, audio } = await ask(typed, speech);
    return { text: content, sound: audio.data };
  },
  "streamed speech": spokenStream,
  "follow-up": () => followingUp({}),
  "follow-up to speech": () => followingUp(speech),
});
