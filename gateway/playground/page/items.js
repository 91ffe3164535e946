// Shows the media of a message: a picture, a player, or a clip.

import { el, iconButton } from "./dom.js";

const NAMES = { image: "Picture", audio: "Sound", video: "Clip" };

/** An element that shows `item`; with a button that removes it if `remove` is given. */
export function showItem(item, remove) {
  const label = `${NAMES[item.kind]} ${item.name}`;
  const shown = {
    image: () => el("img", { src: item.url, alt: label }),
    audio: () => el("audio", { src: item.url, controls: true, "aria-label": label, preload: "metadata" }),
    video: () => el("video", { src: item.url, controls: true, "aria-label": label, preload: "metadata", muted: true, playsInline: true }),
  }[item.kind]();
  return el("figure", { class: `item ${item.kind}` }, shown,
    remove ? iconButton("close", `Remove ${label}`, remove) : null,
    el("figcaption", { class: "problem", role: "alert", hidden: true }));
}
