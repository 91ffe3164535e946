// Asks the test's questions through Vercel's AI SDK, with its two providers for servers of this API.
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateText, streamText } from "ai";
import { apiKey, baseURL, followUp, printAnswers, question, read } from "./cases.mjs";

const models = {
  compatible: createOpenAICompatible({ name: "omni", baseURL, apiKey })("qwen3-omni"),
  openai: createOpenAI({ baseURL, apiKey }).chat("qwen3-omni"),
};
const image = { type: "image", image: read("cars.jpg") };
const typed = [{ role: "user", content: [{ type: "text", text: question }, image] }];
const spoken = [
  { role: "user", content: [image, { type: "file", data: read("query_to_cars.wav"), mediaType: "audio/wav" }] },
];

const cases = {};
for (const [provider, model] of Object.entries(models)) {
  const ask = (messages) => generateText({ model, messages, maxRetries: 0 });
  cases[`picture, ${provider}`] = async () => (await ask(typed)).text;
  cases[`sound, ${provider}`] = async () => (await ask(spoken)).text;
  cases[`stream, ${provider}`] = async () => {
    let text = "";
    for await (const piece of streamText({ model, messages: typed, maxRetries: 0 }).textStream) text += piece;
    return text;
  };
  cases[`follow-up, ${provider}`] = async () => {
    const first = await ask(typed);
    return (await ask([...typed, ...first.response.messages, { role: "user", content: followUp }])).text;
  };
}
await printAnswers(cases);
