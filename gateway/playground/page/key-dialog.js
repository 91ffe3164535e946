// Asks the person for an API key, once for all requests that wait for it.

import { onKeyNeeded } from "./api.js";
import { byId } from "./dom.js";

let asking = null;

function ask(wrong) {
  asking ??= show(wrong).finally(() => { asking = null; });
  return asking;
}

function show(wrong) {
  const dialog = byId("key-dialog");
  byId("key-wrong").hidden = !wrong;
  byId("key").value = "";
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => {
      const given = byId("key").value.trim();
      resolve(dialog.returnValue === "ok" && given ? given : null);
    }, { once: true });
  });
}

/** Lets requests without a valid key open this dialog. */
export function prepareKeyDialog() {
  onKeyNeeded(ask);
  byId("key-cancel").addEventListener("click", () => byId("key-dialog").close());
}
