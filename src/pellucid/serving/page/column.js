// One column: a conversation or a series of texts, and what is being written in it.

import { $, fromTemplate } from "./dom.js";
import { Composer } from "./composer.js";
import { canGoOn, describe } from "./model.js";
import { isOpen } from "./peek.js";
import { Exchange } from "./exchange.js";
import { isWhole } from "./tokens.js";
import { why } from "./why.js";

const BEGIN = { chat: "Ask something below.", completion: "Begin a text below, and the model goes on with it." };
const LOOK =
  "Point at any token that it writes, or go there with the Tab and arrow keys, to see how likely it was and what else was " +
  "close. Choose another, and the text goes on from there.";

export class Column {
  constructor(board, settings) {
    this.board = board;
    this.settings = settings;
    this.first = { chat: null, completion: null };
    this.element = fromTemplate("column-template");
    this.scroll = $(".scroll", this.element);
    this.composer = new Composer("Prompt", {
      send: (text) => this.say(text),
      stop: () => this.stop(),
      clear: () => this.clear(),
    });
    $(".own", this.element).append(this.composer.element);
    this.atEnd = true;
    this.scroll.addEventListener(
      "scroll",
      () => (this.atEnd = this.scroll.scrollHeight - this.scroll.scrollTop - this.scroll.clientHeight < 40),
      { passive: true },
    );
    const goesOn = canGoOn(board.model);
    this.actions = {
      again: (version) => this.write(version.exchange.add()),
      retry: (version) => this.write(version),
      on: (version) => this.write(version),
      branch:
        goesOn &&
        ((version, { index, alternative }) =>
          this.write(version.exchange.add([...version.tokens.list.slice(0, index), chosen(version, index, alternative)]))),
      why: (version, index) => this.why(version, index),
      seed: (seed) => board.useSeed(this, seed),
      drawn: () => this.follow(),
    };
    $(".empty h2", this.element).textContent = board.model.id;
    $(".empty p", this.element).textContent = describe(board.model);
    this.show();
  }

  get mode() {
    return this.board.mode;
  }

  transcript(mode = this.mode) {
    return $(`.transcript.${mode}`, this.element);
  }

  /** Show the transcript of the page's mode. */
  show() {
    for (const mode of ["chat", "completion"]) this.transcript(mode).hidden = mode !== this.mode;
    $(".empty p + p", this.element).textContent = `${BEGIN[this.mode]} ${LOOK}`;
    $(".empty", this.element).hidden = this.transcript().hasChildNodes();
    this.composer.mode = this.mode;
  }

  name(number, of, summary) {
    const head = $(".column-head", this.element);
    head.hidden = of === 1;
    $("b", head).textContent = number;
    $("span", head).textContent = summary;
    this.element.setAttribute("aria-label", of === 1 ? "Text" : `Column ${number}`);
    this.composer.label = of === 1 ? "Prompt" : `Prompt of column ${number}`;
  }

  get busy() {
    return Boolean(this.controller);
  }

  /** Let the model answer, or go on with a text, with this seed unless the settings have one. Whether it does. */
  say(said, seed) {
    if (this.busy || (this.mode === "chat" && !said.trim()) || !this.board.panel.form.valid()) return false;
    const parent = this.mode === "chat" ? this.tip() : null;
    const exchange = new Exchange(said, parent, this.actions, this.mode === "completion" && canGoOn(this.board.model));
    (parent?.after ?? this.transcript()).append(exchange.element);
    if (!parent) this.first[this.mode] = exchange;
    if (this.mode === "chat") this.composer.textarea.value = "";
    this.atEnd = true;
    this.show();
    this.write(exchange.add(), seed);
    return true;
  }

  /** The answer that the conversation has come to. */
  tip() {
    let exchange = this.first.chat;
    while (exchange?.current.next) exchange = exchange.current.next;
    return exchange?.current ?? null;
  }

  async write(version, seed = randomSeed()) {
    this.stop();
    const controller = (this.controller = new AbortController());
    this.composer.busy = true;
    this.board.changed();
    const settings = { ...this.settings, seed: this.settings.seed ?? seed };
    const request = { mode: this.mode, model: this.board.model.id, ...this.context(version), settings };
    await version.write(request, controller.signal);
    if (this.controller !== controller) return; // another text has begun meanwhile
    this.controller = null;
    this.composer.busy = false;
    this.board.changed();
  }

  /** Ask what a token hangs on. */
  why(version, index) {
    const token = version.tokens.list[index];
    const others = token.top.filter((other) => other.text !== token.text && isWhole(other));
    const begun = version.tokens.texts.slice(0, index).join("");
    why({ mode: this.mode, model: this.board.model.id, ...this.context(version), begun }, token, others);
  }

  /** What stands before a version's text. */
  context(version) {
    const system = this.settings.system ? [{ role: "system", content: this.settings.system }] : [];
    return { said: version.exchange.said, messages: [...system, ...version.exchange.messages()] };
  }

  /** Whether there was something to stop. */
  stop() {
    this.controller?.abort();
    return this.busy;
  }

  clear() {
    this.stop();
    this.first[this.mode] = null;
    this.transcript().replaceChildren();
    this.show();
    this.composer.textarea.focus();
  }

  /** Keep the end in sight of a reader who is there and looks at no token. */
  follow() {
    if (this.atEnd && !isOpen()) this.scroll.scrollTop = this.scroll.scrollHeight;
  }
}

/** A token that the reader put in the place of another; the same were close. */
const chosen = (version, index, token) => ({ ...token, top: version.tokens.list[index].top, chosen: true });

export const randomSeed = () => crypto.getRandomValues(new Uint32Array(1))[0];
