// Sends requests to the server with the key of this tab, and reads streamed answers.

export const ROOT = new URL("../", import.meta.url);
const KEY = "omni-pipeline key";

let askForKey = async () => null; // set by the key's dialog

/** An answer with an error. `param` is the wrong field of the request, or null. */
export class ServerError extends Error {
  constructor(status, error) {
    super(error.message);
    this.status = status;
    this.code = error.code ?? null;
    this.param = error.param ?? null;
  }
}

/** Registers the function that asks the person for a key: (wrong) => key, or null if the person gives no key. */
export function onKeyNeeded(ask) {
  askForKey = ask;
}

/** The key of this tab, or an empty text. */
export function key() {
  return sessionStorage.getItem(KEY) ?? "";
}

/**
 * Sends a request and returns the response, whose status is 2xx. Asks for a key each time the server refuses the key.
 * Throws ServerError for an answer with an error, and TypeError if the server cannot be reached.
 */
export async function send(path, { body, signal, headers = {} } = {}) {
  for (;;) {
    const given = key();
    const response = await fetch(new URL(path, ROOT), {
      method: body === undefined ? "GET" : "POST",
      headers: {
        ...headers,
        ...(body === undefined ? {} : { "Content-Type": "application/json" }),
        ...(given ? { Authorization: `Bearer ${given}` } : {}),
      },
      body: body === undefined ? undefined : JSON.stringify(body),
      signal,
      cache: "no-store",
    });
    if (response.ok) return response;
    const error = await readError(response);
    if (response.status !== 401) throw error;
    if (key() === given) { // otherwise another request has already got a new key
      const fresh = await askForKey(Boolean(given));
      if (fresh === null) throw error;
      sessionStorage.setItem(KEY, fresh);
    }
  }
}

async function readError(response) {
  try {
    return new ServerError(response.status, (await response.json()).error);
  } catch {
    return new ServerError(response.status, { message: `The server answered with status ${response.status}.` });
  }
}

/** The data of each event of a response, parsed. Throws ServerError for an event with an error. */
export async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) {
      if (!line.startsWith("data: ")) continue;
      const data = line.slice(6);
      if (data === "[DONE]") return;
      const event = JSON.parse(data);
      if (event.error) throw new ServerError(response.status, event.error);
      yield event;
    }
  }
}

/** A sentence for the person about an error of a request. */
export function explain(error) {
  if (error instanceof ServerError) return error.message;
  if (!(error instanceof TypeError)) return `The page could not do this: ${error.message}.`;
  return "The server cannot be reached, or the connection was lost. Is the server running?";
}
