// Asks the test's questions through the Responses API of OpenAI's library for Node.
import OpenAI from "openai";
import { apiKey, baseURL, followUp, picture, printAnswers, question, sound } from "./cases.mjs";

const { responses } = new OpenAI({ baseURL, apiKey });
const model = "qwen3-omni";
const picturePart = { type: "input_image", image_url: picture, detail: "auto" };
const typed = [{ role: "user", content: [{ type: "input_text", text: question }, picturePart] }];
const soundPart = { type: "input_audio", input_audio: { data: sound, format: "wav" } };

const ask = (input) => responses.create({ model, input });

async function stream() {
  let text = "";
  for await (const event of await responses.create({ model, input: typed, stream: true })) {
    if (event.type === "response.output_text.delta") text += event.delta;
  }
  return text;
}

async function followingUp() {
  const { output } = await ask(typed);
  return (await ask([...typed, ...output, { role: "user", content: followUp }])).output_text;
}

await printAnswers({
  picture: async () => (await ask(typed)).output_text,
  sound: async () => (await ask([{ role: "user", content: [picturePart, soundPart] }])).output_text,
  stream,
  "stream helper": async () => (await responses.stream({ model, input: typed }).finalResponse()).output_text,
  "follow-up": followingUp,
});
