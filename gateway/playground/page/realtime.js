// A realtime session over a WebSocket, in the events of OpenAI's Realtime API.

import { key, ROOT, send } from "./api.js";

/** Opens a session. `received` gets each event of the server; `closed` is called once, with a reason or an empty text. */
export async function openSession(received, closed) {
  const address = new URL("v1/realtime", ROOT);
  address.protocol = address.protocol.replace("http", "ws");
  const protocols = ["realtime"];
  // A browser cannot send the key in a header here, so the page opens the session with a key that soon expires.
  if (key()) protocols.push(`openai-insecure-api-key.${(await (await send("v1/realtime/client_secrets", { body: {} })).json()).value}`);
  const socket = new WebSocket(address, protocols);
  socket.onmessage = ({ data }) => received(JSON.parse(data));
  socket.onclose = ({ reason, wasClean }) => closed(reason || (wasClean ? "" : "The connection was lost."));
  await new Promise((resolve, reject) => {
    socket.onopen = resolve;
    socket.onerror = () => reject(new Error("the server cannot be reached, or refuses the session"));
  });
  return {
    send: (event) => { if (socket.readyState === WebSocket.OPEN) socket.send(JSON.stringify(event)); },
    close: () => socket.close(),
  };
}
