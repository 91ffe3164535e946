// Turns the conversation and the options into the body of a chat request.
//
// A user's turn is {role: "user", text, items}; an item is {kind, name, type, data} with its bytes as a data URL. An
// answer is {role: "assistant", text, calls}; the result of a call is {role: "tool", id, text}.

const PART = { image: "image_url", audio: "audio_url", video: "video_url" };

/** The parts of a user's message: its media, then its text. */
function partsOf(turn, address) {
  const parts = turn.items.map((item) => ({ type: PART[item.kind], [PART[item.kind]]: { url: address(item) } }));
  return turn.text ? [...parts, { type: "text", text: turn.text }] : parts;
}

function messageOf(turn, address) {
  if (turn.role === "user") return { role: "user", content: turn.items.length ? partsOf(turn, address) : turn.text };
  if (turn.role === "tool") return { role: "tool", tool_call_id: turn.id, content: turn.text };
  const message = { role: "assistant", content: turn.text || (turn.calls?.length ? null : "") };
  if (turn.calls?.length) message.tool_calls = turn.calls;
  return message;
}

/**
 * The body of the request that asks for the next answer.
 *
 * `options` contains `model`, `aloud`, `voice`, and the fields of the API that the person has set: `system`, `format`
 * of the speech, `fields` (top-level fields) and `extra` (fields that OpenAI's library sends in `extra_body`).
 * `address` returns the address of an item.
 */
export function bodyOf(turns, options, address = (item) => item.data) {
  const messages = turns.map((turn) => messageOf(turn, address));
  if (options.system) messages.unshift({ role: "system", content: options.system });
  return {
    model: options.model,
    messages,
    modalities: options.aloud ? ["text", "audio"] : ["text"],
    ...(options.aloud ? { audio: { voice: options.voice, format: options.format || "pcm16" } } : {}),
    ...options.fields,
    ...options.extra,
    stream: true,
    stream_options: { include_usage: true },
  };
}

/** The item at a path of the request, for example `messages[0].content[1].image_url`; null if there is none. */
export function itemOf(param, turns, options) {
  const found = /^messages\[(\d+)\]\.content\[(\d+)\]/.exec(param ?? "");
  if (!found) return null;
  const turn = turns[Number(found[1]) - (options.system ? 1 : 0)];
  return turn?.items?.[Number(found[2])] ?? null;
}
