// The request of an answer as programs: `curl` for a shell, and Python with OpenAI's library.

import { key, ROOT } from "./api.js";
import { el, iconButton } from "./dom.js";
import { bodyOf } from "./request.js";

const KEY = "OMNI_API_KEY"; // the variable in which the programs expect a key

/** The request for the answer after `turns`, for a program that waits for the whole answer. */
function wholeBody(turns, options, address) {
  const { stream: _, stream_options: __, ...body } = bodyOf(turns, options, address);
  if (body.audio) body.audio = { ...body.audio, format: options.format || "wav" };
  return body;
}

/** Unique texts instead of the addresses of media items. `fill` replaces them by expressions. */
function placeholders() {
  const items = [];
  const mark = crypto.randomUUID();
  return {
    address: (item) => `${mark}:${items.push(item) - 1}:`,
    fill: (text, replace, quote = "") => text.replace(
      new RegExp(`${quote}${mark}:(\\d+):${quote}`, "g"), (_, number) => replace(items[number])),
    any: () => items.length > 0,
  };
}

const typeOf = (item) => item.type || { image: "image/jpeg", audio: "audio/wav", video: "video/mp4" }[item.kind];
const quoted = (name) => `'${name.replaceAll("'", `'\\''`)}'`;

/** A command for a POSIX shell, which reads attached files from the current directory. */
export function curlOf(turns, options) {
  const marks = placeholders();
  const json = JSON.stringify(wholeBody(turns, options, marks.address), null, 2).replace(/[\\$`]/g, "\\$&");
  const body = marks.fill(json, (item) => `data:${typeOf(item)};base64,$(base64 < ${quoted(item.name)} | tr -d '\\n')`);
  return [
    `curl ${new URL("v1/chat/completions", ROOT)} -H 'Content-Type: application/json' \\`,
    ...(key() ? [`  -H "Authorization: Bearer $${KEY}" \\`] : []),
    "  -d @- <<JSON",
    body,
    "JSON",
    "",
  ].join("\n");
}

/** A program that reads attached files from the current directory, and writes speech to a file. */
export function pythonOf(turns, options) {
  const marks = placeholders();
  const { ...body } = wholeBody(turns, options, marks.address);
  const extra = Object.fromEntries(Object.keys(options.extra).map((name) => [name, body[name]]));
  for (const name of Object.keys(extra)) delete body[name];
  if (Object.keys(extra).length) body.extra_body = extra;
  const fields = Object.entries(body).map(([name, value]) => `    ${name}=${literal(value, 4)},\n`).join("");
  const call = marks.fill(fields, (item) => `data_url(${literal(item.name)}, ${literal(typeOf(item))})`, '"');
  const files = marks.any() || options.aloud;
  return [
    ...(files ? ["import base64"] : []),
    ...(key() ? ["import os"] : []),
    ...(files || key() ? [""] : []),
    "from openai import OpenAI",
    "",
    `client = OpenAI(base_url=${literal(String(new URL("v1", ROOT)))}, api_key=${key() ? `os.environ["${KEY}"]` : '"none"'})`,
    "",
    ...(marks.any() ? [
      "",
      "def data_url(path, media_type):",
      '    with open(path, "rb") as file:',
      '        return f"data:{media_type};base64,{base64.b64encode(file.read()).decode()}"',
      "",
      "",
    ] : []),
    "answer = client.chat.completions.create(",
    `${call})`,
    "message = answer.choices[0].message",
    "print(message.content)",
    ...(options.aloud ? [
      "if message.audio:",
      `    with open("answer.${body.audio.format}", "wb") as file:`,
      "        file.write(base64.b64decode(message.audio.data))",
    ] : []),
    "",
  ].join("\n");
}

/** A value of JSON as an expression of Python. */
function literal(value, indent = 0) {
  const inner = " ".repeat(indent + 4);
  const lines = (entries, open, close) => (entries.length
    ? `${open}\n${entries.map((entry) => `${inner}${entry},\n`).join("")}${" ".repeat(indent)}${close}` : open + close);
  if (value === null) return "None";
  if (typeof value === "boolean") return value ? "True" : "False";
  if (Array.isArray(value)) {
    if (value.every((each) => typeof each === "string")) return `[${value.map((each) => literal(each)).join(", ")}]`;
    return lines(value.map((each) => literal(each, indent + 4)), "[", "]");
  }
  if (typeof value === "object") {
    return lines(Object.entries(value).map(([name, each]) => `${literal(name)}: ${literal(each, indent + 4)}`), "{", "}");
  }
  return JSON.stringify(value);
}

/** An element with both programs, each with a button that copies it. */
export function showSnippets(turns, options) {
  return el("div", { class: "snippets" }, ...[["curl", curlOf], ["Python", pythonOf]].map(([name, make]) => {
    const text = make(turns, options);
    return el("section", { "aria-label": name },
      el("div", { class: "row" }, el("h2", {}, name), iconButton("copy", `Copy the ${name} program`, () => navigator.clipboard.writeText(text))),
      el("pre", { tabIndex: 0 }, el("code", {}, text)));
  }));
}
