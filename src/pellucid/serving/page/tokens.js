// A text as its tokens: each can be pointed at, or reached with the arrow keys.

import { inert } from "./characters.js";
import { element } from "./dom.js";

// From the surest to the most surprising: the class of a token is the number of these that its probability is below.
const LEVELS = [0.9, 0.6, 0.3, 0.1, 0.02];
const newDecoder = () => new TextDecoder("utf-8", { ignoreBOM: true }); // which leaves one where it is
const places = new WeakMap(); // span -> { tokens, index }

/** Whether a token is whole characters, and so can be written as text. */
export const isWhole = ({ bytes }) => !bytes || !newDecoder().decode(new Uint8Array(bytes)).includes("\ufffd");

/** Where a token's span stands, or undefined for any other element. */
export const placeOf = (span) => places.get(span);

/**
 * A token is { text, bytes, logprob, top, chosen }: `top` holds the likeliest tokens at its place, with the same fields, and
 * `chosen` says that the reader, not the model, took it. Without a logprob it is text of which no more is known.
 */
export class Tokens {
  /** `lead`: text before the first token, in its line. */
  constructor(holder, lead = "") {
    this.element = holder;
    this.list = [];
    this.spans = [];
    this.texts = []; // of each token, as far as its characters are whole
    this.line = null; // the one that goes on
    if (lead) holder.append((this.line = newLine(element("span", { className: "lead", textContent: inert(lead) }))));
    this.active = -1;
    this.fixed = false; // whether no token can be exchanged
    this.settle();
    holder.addEventListener("keydown", (event) => this.move(event));
  }

  /** Append tokens. Each line is a block of its own, so that a long text is not laid out anew for every token. */
  append(tokens) {
    const lines = document.createDocumentFragment();
    for (const token of tokens) {
      const text = token.bytes ? this.decoder.decode(new Uint8Array(token.bytes), { stream: true }) : token.text;
      const span = element("span", { className: `token ${tint(token)}`, textContent: inert(text) });
      if (token.chosen) span.classList.add("chosen");
      if (/^\n+$/.test(text)) span.classList.add("break"); // has no width of its own to point at
      places.set(span, { tokens: this, index: this.list.length });
      this.list.push(token);
      this.spans.push(span);
      this.texts.push(text);
      this.line ??= lines.appendChild(newLine());
      this.line.append(span);
      if (text.endsWith("\n")) this.line = null;
    }
    this.element.append(lines);
    if (this.active < 0 && this.spans.length) this.activate(0);
  }

  /** Begin to read the bytes of tokens, several of which may make a character; half a one from before stays half. */
  settle() {
    this.decoder = newDecoder();
  }

  /** What the tokens say. */
  get text() {
    return this.texts.join("");
  }

  /** Show no more of the last token than belongs to the text: a stop string may end in the middle of it. */
  cut(text) {
    const surplus = this.text.length - text.length;
    const last = this.texts.length - 1;
    if (surplus <= 0 || !this.text.startsWith(text) || surplus > this.texts[last].length) return;
    this.texts[last] = this.texts[last].slice(0, -surplus);
    this.spans[last].textContent = inert(this.texts[last]);
  }

  move(event) {
    const place = placeOf(event.target);
    if (!place || event.ctrlKey || event.altKey || event.metaKey) return;
    const last = this.spans.length - 1;
    const to = { ArrowRight: place.index + 1, ArrowLeft: place.index - 1, Home: 0, End: last }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    this.focus(Math.min(Math.max(to, 0), last));
  }

  focus(index) {
    this.activate(index);
    this.spans[index].focus();
  }

  /** One token is in the order of the tab key; to screen readers the others are plain text. */
  activate(index) {
    const was = this.spans[this.active];
    for (const name of ["tabindex", "role", "aria-haspopup", "aria-describedby"]) was?.removeAttribute(name);
    this.active = index;
    const now = this.spans[index];
    now.tabIndex = 0;
    now.setAttribute("role", "button");
    now.setAttribute("aria-haspopup", "dialog");
    now.setAttribute("aria-describedby", "peek");
  }
}

const newLine = (...children) => element("div", { className: "line", dir: "auto" }, ...children);

function tint({ logprob, chosen }) {
  if (chosen || logprob === undefined) return "";
  const share = Math.exp(logprob);
  return `t${LEVELS.filter((level) => share < level).length}`;
}
