// Example messages that one click sends, for the demo model and other models.

import { ROOT } from "./api.js";
import { byId, el } from "./dom.js";
import { itemOfFile } from "./media.js";

const HERE = new URL("playground/", ROOT);
export const DEMO = "qwen3-omni-demo";

const EXAMPLES = [
  { title: "Count the cars", note: "a picture and a typed question", text: "How many cars are there in the picture?", files: ["cars.jpg"] },
  { title: "Ask aloud about the picture", note: "a picture and a spoken question", text: "", files: ["cars.jpg", "how-many-cars.ogg"] },
  { title: "What is being drawn?", note: "a clip and a spoken question", text: "", files: ["drawing.mp4", "what-is-drawn.ogg"] },
];
const TYPES = { jpg: "image/jpeg", ogg: "audio/ogg", mp4: "video/mp4" };

async function load(name) {
  const response = await fetch(new URL(name, HERE));
  return itemOfFile(new File([await response.arrayBuffer()], name, { type: TYPES[name.split(".").pop()] }));
}

/** Shows the examples; a click calls `ask` with the example's text and items. */
export function showExamples(model, ask) {
  byId("honest").textContent = model === DEMO
    ? "This demo model has 15 million parameters. It was trained on scenes of cars, circles, squares, triangles and "
      + "stars in six colours, things that move, and a pencil that draws. To other questions, it answers "
      + "that it only knows cars and simple shapes. It was trained with synthetic voices, so it may not understand yours."
    : "Attach a picture, a sound or a clip, or just type. The examples show how.";
  byId("examples").replaceChildren(...EXAMPLES.map((example) => el("li", {}, el("button", {
    type: "button",
    class: "example",
    on: { click: async () => ask(example.text, await Promise.all(example.files.map(load))) },
  }, el("strong", {}, example.title), el("span", {}, example.note)))));
}
