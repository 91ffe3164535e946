// Talks with the model through the OpenAI Agents SDK for Node, with its default settings.

import { readFileSync } from "node:fs";
import { OpenAIRealtimeWebSocket, RealtimeAgent, RealtimeSession, tool } from "@openai/agents-realtime";
import { apiKey, baseURL, followUp, picture, stock as stockTool } from "./cases.mjs";

const PACKET = 960; // bytes: 20 ms of pcm16 at 24 kHz
const SPEED = 4; // factor by which packets are sent faster than by a real microphone, to save time
const LONGEST = 40_000; // maximum milliseconds for one case
const LISTENED = 800; // milliseconds of an answer that a listener hears before the interruption
const LONG_QUESTION = "What is in the picture?";
const QUESTION_PCM = readFileSync(new URL("query_to_cars.pcm", import.meta.url));

const pause = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));

// A connected session, with the contents of the events so far.
class Talk {
  constructor(options = {}, tools = []) {
    const agent = new RealtimeAgent({ name: "guide", instructions: "", tools });
    const transport = new OpenAIRealtimeWebSocket({ url: `${baseURL.replace(/^http/, "ws")}/realtime?model=qwen3-omni` });
    this.session = new RealtimeSession(agent, { transport, model: "qwen3-omni", ...options });
    this.sounds = [];
    this.words = "";
    this.error = null;
    this.seen = [];
    this.waiting = Buffer.alloc(0);
    this.session.on("error", (error) => (this.error = error));
    this.session.on("audio", (event) => this.sounds.push(Buffer.from(event.data)));
    this.session.on("audio_interrupted", () => this.seen.push({ type: "audio_interrupted" }));
    this.session.on("transport_event", (event) => {
      this.seen.push(event);
      if (event.type === "response.output_audio_transcript.delta") this.words += event.delta;
    });
  }

  async open() {
    await this.session.connect({ apiKey });
    return this;
  }

  // The next event of this type, starting at the index `from` of the events.
  async until(type, from = this.seen.length) {
    for (let at = from; ; ) {
      if (this.error) throw new Error(JSON.stringify(this.error.error ?? this.error, null, 1));
      const index = this.seen.findIndex((event, place) => place >= at && event.type === type);
      if (index >= 0) return this.seen[index];
      at = this.seen.length;
      await pause(5);
    }
  }

  async answer() {
    this.words = "";
    this.sounds = [];
    const done = await this.until("response.done");
    return { text: this.words, sound: Buffer.concat(this.sounds).toString("base64"), status: done.response.status };
  }

  // Send packets forever: silence, or the sound that was passed to `say`.
  async listen() {
    while (!this.closed) {
      const packet = Buffer.alloc(PACKET);
      this.waiting.copy(packet, 0, 0, PACKET);
      this.waiting = this.waiting.subarray(PACKET);
      this.session.sendAudio(packet.buffer.slice(packet.byteOffset, packet.byteOffset + PACKET));
      await pause(20 / SPEED);
    }
  }

  say(pcm) {
    this.waiting = Buffer.concat([this.waiting, pcm]);
  }

  close() {
    this.closed = true;
    this.session.close();
  }
}

async function pictureTurn() {
  const talk = await new Talk().open();
  talk.session.addImage(picture, { triggerResponse: false });
  talk.listen();
  talk.say(QUESTION_PCM);
  const answer = await talk.answer();
  talk.close();
  return answer;
}

// When the user begins to speak, the SDK itself truncates the answer to the part that has been played.
async function bargeIn() {
  const talk = await new Talk().open();
  talk.session.addImage(picture, { triggerResponse: false });
  talk.listen();
  talk.session.sendMessage(LONG_QUESTION);
  await talk.until("response.output_audio.delta");
  await pause(LISTENED);
  const said = talk.seen.length;
  talk.say(QUESTION_PCM);
  await talk.until("audio_interrupted", said);
  await talk.until("conversation.item.truncated", said);
  const before = talk.words;
  const retrieved = await talk.until("conversation.item.retrieved", said); // the SDK requests the item
  let answer;
  do answer = await talk.answer();
  while (answer.status !== "completed" || !answer.text);
  talk.close();
  return { ...answer, before, heard: retrieved.item.content[0].transcript };
}

async function toolCall() {
  const called = [];
  let talk;
  const stock = tool({
    name: stockTool.name,
    description: stockTool.description,
    parameters: stockTool.parameters,
    strict: true,
    execute: async (input) => {
      called.push({ name: stockTool.name, arguments: input });
      // With the choice of this tool, the model would call the tool again instead of speaking about the result.
      talk.session.transport.updateSessionConfig({ toolChoice: "auto" });
      return "3";
    },
  });
  talk = await new Talk({ config: { toolChoice: { type: "function", name: stockTool.name } } }, [stock]).open();
  talk.listen();
  talk.say(QUESTION_PCM);
  let answer;
  do answer = await talk.answer();
  while (!answer.text);
  talk.close();
  return { ...answer, called: called[0], calls: called.length };
}

// The SDK puts the history of an earlier session into a new session.
async function history() {
  const first = await new Talk().open();
  first.session.addImage(picture, { triggerResponse: false });
  first.listen();
  first.say(QUESTION_PCM);
  await first.answer();
  await pause(200);
  const kept = first.session.history;
  first.close();
  const talk = await new Talk().open();
  talk.session.addImage(picture, { triggerResponse: false });
  talk.session.updateHistory([...talk.session.history, ...kept.filter((item) => item.role === "assistant").map(written)]);
  talk.session.sendMessage(followUp);
  const answer = await talk.answer();
  talk.close();
  return { ...answer, kept: kept.length };
}

// An answer from the history, in the form in which the SDK can replay it: as text only.
function written(item) {
  return { ...item, content: item.content.map((part) => ({ type: "output_text", text: part.transcript })) };
}

const cases = { picture: pictureTurn, "barge-in": bargeIn, tool: toolCall, history };
const results = {};
for (const [name, run] of Object.entries(cases)) {
  if (process.argv.length > 4 && !process.argv.slice(4).includes(name)) continue;
  try {
    const late = pause(LONGEST).then(() => Promise.reject(new Error("too late")));
    results[name] = await Promise.race([run(), late]);
  } catch (error) {
    results[name] = { error: `${error.name}: ${error.message}` };
  }
}
process.stdout.write(`${JSON.stringify(results)}\n`, () => process.exit(0));
