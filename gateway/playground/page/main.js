// Starts the page: joins its parts, and asks the server what it can do.

import { explain, send } from "./api.js";
import { openCamera, prepareCamera } from "./camera.js";
import { Composer } from "./composer.js";
import { Conversation } from "./conversation.js";
import { byId, el } from "./dom.js";
import { DEMO, showExamples } from "./examples.js";
import { prepareKeyDialog } from "./key-dialog.js";
import { chosenOptions, prepareOptions } from "./options.js";
import { PipelineView } from "./pipeline.js";
import { Talk } from "./talk.js";
import { prepareViews } from "./views.js";

let model = "";

function options() {
  const speaks = !byId("voice-choice").hidden;
  return {
    model,
    aloud: speaks && byId("aloud").getAttribute("aria-pressed") === "true",
    voice: byId("voice").value,
    ...chosenOptions(),
  };
}

/** Asks for the model and its voices, and fills the parts of the page that show them. */
async function learn() {
  try {
    model = (await (await send("v1/models")).json()).data[0].id;
    const { voices, default: usual } = await (await send("v1/audio/voices")).json();
    byId("model").textContent = model;
    byId("voice-choice").hidden = byId("format-choice").hidden = !voices.length;
    byId("voice").replaceChildren(...voices.map((voice) => el("option", { selected: voice === usual }, voice)));
    byId("notice").textContent = "";
    showExamples(model, (text, items) => conversation.ask(text, items));
  } catch (error) {
    byId("notice").textContent = explain(error);
  }
}

const composer = new Composer((text, items) => conversation.ask(text, items));
export const conversation = new Conversation(options, composer);
export const talk = new Talk(
  () => byId("voice").value,
  () => (model === DEMO ? "Probably wrong: the demo model has not learnt to transcribe." : "Transcribed by the model"),
);

byId("aloud").addEventListener("click", () => {
  const on = byId("aloud").getAttribute("aria-pressed") !== "true";
  byId("aloud").setAttribute("aria-pressed", String(on));
  byId("voice").disabled = !on;
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && !document.querySelector("dialog[open]")) conversation.stop();
});

prepareKeyDialog();
prepareOptions();
prepareCamera();
byId("camera").addEventListener("click", () => openCamera((file) => composer.attach([file])));
prepareViews();
await learn();
new PipelineView(learn);
composer.focus();
document.documentElement.dataset.ready = "yes";
