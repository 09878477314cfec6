// The server: which model it serves, and what the model writes, piece by piece.

import { askForKey } from "./key.js";
import { events } from "./events.js";

/** Something went wrong; the message is for the reader, and says what to do. */
export class Trouble extends Error {}

const KEY = "pellucid-key"; // in sessionStorage: gone with the tab

async function request(path, { body, signal } = {}) {
  for (;;) {
    const key = sessionStorage.getItem(KEY);
    const headers = { ...(body && { "content-type": "application/json" }), ...(key && { authorization: `Bearer ${key}` }) };
    let response;
    try {
      response = await fetch(path, { method: body ? "POST" : "GET", body: body && JSON.stringify(body), headers, signal });
    } catch (error) {
      if (signal?.aborted) throw error;
      throw new Trouble("The server does not answer. Start it again with “pellucid serve”, then try again.");
    }
    if (response.ok) return response;
    if (response.status !== 401) throw await refused(response);
    sessionStorage.removeItem(KEY);
    const given = await askForKey(Boolean(key));
    if (!given) throw new Trouble("This server asks for an API key. Try again with one.");
    sessionStorage.setItem(KEY, given);
  }
}

/** What the server says of a request that it refuses: already a sentence, with the way out. */
async function refused(response) {
  const { error } = await response.json().catch(() => ({}));
  return new Trouble(
    sentence(error?.message ?? `the server answered ${response.status} ${response.statusText}; try again in a moment`),
  );
}

/** The server's errors begin small and end without a full stop, as in a terminal. */
const sentence = (text) => text.charAt(0).toUpperCase() + text.slice(1).replace(/[.\s]*$/, ".");

/** The model that is served: its name and what the server tells of it. */
export async function servedModel() {
  const { data } = await (await request("v1/models")).json();
  return data[0];
}

/** The ids of a text, or of a conversation up to where the assistant begins to write. */
export async function tokenize(body, signal) {
  return (await (await request("tokenize", { body, signal })).json()).tokens;
}

/** What an answer hangs on, as the server has found. */
export async function explain(body, signal) {
  return (await request("v1/explain", { body, signal })).json();
}

/** The chunks of a streamed answer, as the server sends them. Throws `Trouble` when it breaks off. */
export async function* stream(path, body, signal) {
  const response = await request(path, { body: { ...body, stream: true }, signal });
  try {
    for await (const data of events(response.body)) {
      if (data === "[DONE]") return;
      const chunk = JSON.parse(data);
      if (chunk.error) throw new Trouble(sentence(chunk.error.message));
      yield chunk;
    }
  } catch (error) {
    if (error instanceof Trouble || signal?.aborted) throw error;
  }
  throw new Trouble("The connection broke off before the text was whole. See whether the server still runs, then try again.");
}
