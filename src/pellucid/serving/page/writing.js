// From what the page wants written to the server's interfaces, and from their chunks to tokens.

import { stream, tokenize } from "./api.js";
import { requestFields } from "./fields.js";

const CLOSE = 5; // how many of the likeliest tokens to ask for at each place

/**
 * What the model writes, as { tokens, text, finish } pieces.
 * `begun` is what the text begins with: an answer up to where the reader chose another token.
 */
export async function* write({ mode, model, said, messages, begun, settings }, signal) {
  const common = { model, ...requestFields(settings) };
  if (mode === "chat" && !begun) {
    const body = { ...common, messages, logprobs: true, top_logprobs: CLOSE };
    for await (const { choices } of stream("v1/chat/completions", body, signal)) if (choices.length) yield fromChat(choices[0]);
    return;
  }
  const prompt = await promptOf({ mode, model, said, messages, begun }, signal);
  const read = completionReader();
  for await (const { choices } of stream("v1/completions", { ...common, prompt, logprobs: CLOSE }, signal))
    if (choices.length) yield read(choices[0]);
}

/** What the model goes on with: a text, or the tokens of a conversation whose last answer may have begun. */
export async function promptOf({ mode, model, said, messages, begun }, signal) {
  if (mode !== "chat") return said + begun;
  const asked = await tokenize({ model, messages }, signal);
  return begun ? [...asked, ...(await tokenize({ model, prompt: begun, add_special_tokens: false }, signal))] : asked;
}

function fromChat({ delta, logprobs, finish_reason: finish }) {
  const text = delta.content ?? "";
  const read = ({ token, bytes, logprob }) => ({ text: token, bytes, logprob });
  const tokens = logprobs?.content?.map((token) => ({ ...read(token), top: token.top_logprobs.map(read) }));
  return { text, tokens: tokens ?? unknown(text), finish };
}

/** Reads the chunks of one text. The token that ended it is told too, behind the end; it is no part of the text. */
function completionReader() {
  let length = 0; // in code points, as offsets are
  return ({ text, logprobs, finish_reason: finish }) => {
    length += [...text].length;
    const all = logprobs?.tokens.map((token, at) => ({
      ...named(token, logprobs.token_logprobs[at]),
      top: Object.entries(logprobs.top_logprobs?.[at] ?? {})
        .map((other) => named(...other))
        .sort((a, b) => b.logprob - a.logprob)
        .slice(0, CLOSE), // the token itself is among them, however unlikely
    }));
    const tokens = all?.filter((_, at) => finish !== "stop" || logprobs.text_offset[at] < length);
    return { text, tokens: tokens ?? unknown(text), finish };
  };
}

/** A token by the name that it has among completions: its text, or its bytes if they are no whole characters. */
function named(text, logprob) {
  const bytes = /^bytes:((?:\\x[0-9a-f]{2})+)$/
    .exec(text)?.[1]
    .match(/[0-9a-f]{2}/g)
    .map((byte) => parseInt(byte, 16));
  return { text, logprob, bytes: bytes ?? [...new TextEncoder().encode(text)] };
}

/** A piece of text of which the server tells nothing more. */
const unknown = (text) => (text ? [{ text, top: [] }] : []);
