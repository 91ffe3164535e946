// Runs tool loops with OpenAI's own library for Node.
import OpenAI from "openai";
import { apiKey, baseURL, picture, printAnswers, question, sound, speech, stock } from "./cases.mjs";

const { completions } = new OpenAI({ baseURL, apiKey }).chat;
const model = "qwen3-omni";
const picturePart = { type: "image_url", image_url: { url: picture } };
const soundPart = { type: "input_audio", input_audio: { data: sound, format: "wav" } };
const text = [{ role: "user", content: question }];
const typed = [{ role: "user", content: [{ type: "text", text: question }, picturePart] }];
const spoken = [{ role: "user", content: [picturePart, soundPart] }];

const ask = async (messages, options) =>
  (await completions.create({ model, messages, ...options })).choices[0].message;

const askStreamed = async (messages, options) =>
  (await completions.stream({ model, messages, ...options }).finalChatCompletion()).choices[0].message;

// Calls a tool, sends its result back, and returns the call and the last answer.
async function toolLoop(messages, { streamed = false, ...last } = {}) {
  const tools = [{ type: "function", function: streamed ? { ...stock, strict: true } : stock }];
  const options = { tools, tool_choice: "required", parallel_tool_calls: false };
  const first = await (streamed ? askStreamed : ask)(messages, options);
  const [call] = first.tool_calls;
  const result = { role: "tool", tool_call_id: call.id, content: "3" };
  const { content, audio } = await ask([...messages, first, result], { tools, ...last });
  const called = { name: call.function.name, arguments: JSON.parse(call.function.arguments) };
  return { called, text: content, sound: audio?.data };
}

await printAnswers({
  "tools, text": () => toolLoop(text),
  "tools, picture": () => toolLoop(typed),
  "tools, sound": () => toolLoop(spoken),
  "tools, streamed": () => toolLoop(typed, { streamed: true }),
  "tools, speech": () => toolLoop(spoken, speech),
});
