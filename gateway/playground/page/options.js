// The options of the next answers, as fields of the API.

import { byId, el } from "./dom.js";

const STAGES = ["thinker", "talker_ar", "code_predictor"];
const USUAL = { thinker: ["0", "1", "off"], talker_ar: ["0.9", "1", "50"], code_predictor: ["1", "0.8", "50"] };
const FIELDS = ["temperature", "top_p", "top_k"];
const STEPS = ["0.05", "0.05", "1"];

const inputs = () => [...byId("options").querySelectorAll("input, textarea, select")];

/**
 * The options that the person has set: `system`, `format` of the speech, `fields` of OpenAI's API, and `extra` fields
 * of this server. Fields with invalid JSON are left out; the dialog shows the error and does not close.
 */
export function chosenOptions() {
  const chosen = { system: "", format: "", fields: {}, extra: {} };
  for (const input of inputs()) {
    const value = input.value.trim();
    if (!value) continue;
    const { option, json, stage, field } = input.dataset;
    if (option === "system") chosen.system = value;
    else if (option === "audio.format") chosen.format = value;
    else if (option) chosen.fields[option] = Number(value);
    else if (stage) ((chosen.extra.stage_sampling ??= {})[stage] ??= {})[field] = Number(value);
    else if (json) Object.assign(chosen.fields, fieldOfJson(json, value));
  }
  return chosen;
}

function fieldOfJson(name, text) {
  let value;
  try {
    value = JSON.parse(text);
  } catch {
    return {};
  }
  if (name === "tools") return { tools: value };
  return { response_format: { type: "json_schema", json_schema: { name: "answer", schema: value } } };
}

/** Marks the option for a field of the API, and shows the server's message. Returns whether there is such an option. */
export function showWrongOption(param, message) {
  const wrong = inputs().find((input) => {
    const { option, json, stage, field } = input.dataset;
    const name = option ?? json ?? `stage_sampling.${stage}.${field}`;
    return param === name || param?.startsWith(`${name}.`) || param?.startsWith(`${name}[`);
  });
  if (!wrong) return false;
  complain(wrong, message);
  byId("show-options").classList.add("wrong");
  return true;
}

function complain(input, message) {
  input.setAttribute("aria-invalid", "true");
  byId("options-problem").textContent = message;
  byId("options-problem").hidden = false;
  showProblem();
}

/** Focuses the wrong option, and scrolls to the error message. */
function showProblem() {
  inputs().find((input) => input.ariaInvalid === "true")?.focus();
  byId("options-problem").scrollIntoView({ block: "nearest" });
}

function forgive() {
  for (const input of inputs()) input.removeAttribute("aria-invalid");
  byId("options-problem").hidden = true;
  byId("show-options").classList.remove("wrong");
}

/** Whether all fields can be sent. Marks the first that cannot. */
function check() {
  forgive();
  for (const input of inputs()) {
    if (!input.dataset.json || !input.value.trim()) continue;
    try {
      JSON.parse(input.value);
    } catch (error) {
      complain(input, `This is not JSON: ${error.message}.`);
      return false;
    }
  }
  return true;
}

function mark() {
  const changed = inputs().some((input) => input.value.trim());
  byId("show-options").setAttribute("aria-pressed", String(changed));
}

/** Makes the dialog work. */
export function prepareOptions() {
  byId("sampling").replaceChildren(...STAGES.map((stage) => el("tr", {}, el("th", { scope: "row" }, stage),
    ...FIELDS.map((field, i) => {
      const input = el("input", { type: "number", min: "0", step: STEPS[i], placeholder: USUAL[stage][i], "aria-label": `${field} of ${stage}` });
      Object.assign(input.dataset, { stage, field });
      return el("td", {}, input);
    }))));
  byId("show-options").addEventListener("click", () => {
    byId("options").showModal();
    if (!byId("options-problem").hidden) showProblem();
  });
  byId("options").querySelector("form").addEventListener("submit", (event) => {
    if (!check()) event.preventDefault();
  });
  byId("options").addEventListener("cancel", (event) => {
    if (!check()) event.preventDefault();
  });
  byId("options").addEventListener("close", mark);
  byId("reset").addEventListener("click", () => {
    for (const input of inputs()) input.value = "";
    forgive();
  });
}
