// Shows one view of the page, by the fragment of its address.

import { byId } from "./dom.js";

const views = () => [...byId("views").querySelectorAll(".view")];

function show() {
  const wanted = location.hash.slice(1);
  const chosen = views().find((view) => view.id === wanted) ?? views()[0];
  for (const view of views()) view.hidden = view !== chosen;
  for (const link of document.querySelectorAll("nav a")) {
    if (link.hash === `#${chosen.id}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  document.body.dataset.view = chosen.id;
  scrollTo({ top: 0 });
}

/** Makes the links of the header work. */
export function prepareViews() {
  addEventListener("hashchange", show);
  show();
}
