// One text that the model writes: its tokens, how it ended, and what can be done with it.

import { Trouble } from "./api.js";
import { count } from "./characters.js";
import { $, announce, fromTemplate } from "./dom.js";
import { Tokens } from "./tokens.js";
import { write } from "./writing.js";

const ENDED = { stop: "ended by itself", length: "reached its length", stopped: "stopped by you" };

export class Version {
  /** `lead`: the text that it goes on with. `begun`: the tokens that it begins with. `actions`: what its buttons do. */
  constructor(lead, begun, actions) {
    this.element = fromTemplate("version-template");
    this.after = $(".after", this.element); // the conversation goes on in here, so that another version has another future
    this.tokens = new Tokens($(".tokens", this.element), lead);
    this.tokens.append(begun);
    this.text = this.tokens.text;
    this.tokens.fixed = !actions.branch;
    this.waiting = [];
    this.frame = 0;
    for (const name of ["retry", "on", "again"])
      $(`[name=${name}]`, this.element).addEventListener("click", () => actions[name](this));
    $("[name=seed]", this.element).addEventListener("click", () => actions.seed(this.seed));
    $("[name=copy]", this.element).addEventListener("click", () => this.copy());
    $("[name=copy]", this.element).hidden = !navigator.clipboard;
    this.tokens.element.addEventListener("why", ({ detail }) => actions.why(this, detail.index));
    this.tokens.element.addEventListener("branch", ({ detail }) => actions.branch?.(this, detail));
    this.drawn = actions.drawn;
  }

  /** Write, or go on writing. What has been written stays, whatever happens. */
  async write(request, signal) {
    this.seed = request.settings.seed;
    const pieces = write({ ...request, begun: this.text }, signal);
    this.begin();
    try {
      for await (const piece of pieces) this.take(piece);
    } catch (error) {
      if (!signal.aborted) this.complain(error);
    }
    this.end(signal.aborted ? "stopped" : this.finish);
  }

  begin() {
    this.tokens.settle();
    this.finish = null;
    this.written = 0;
    this.started = null;
    $(".trouble", this.element).hidden = true;
    for (const selector of [".actions", "[name=seed]"]) $(selector, this.element).hidden = true;
    this.element.setAttribute("aria-busy", "true");
    this.say("reading…");
    announce("The model writes.");
  }

  take({ tokens, text, finish }) {
    this.started ??= performance.now();
    this.text += text;
    this.finish = finish ?? this.finish;
    this.written += tokens.length;
    this.waiting.push(...tokens);
    this.frame ||= requestAnimationFrame(() => this.flush()); // many tokens a frame; each alone would draw the page anew
  }

  flush() {
    cancelAnimationFrame(this.frame);
    this.frame = 0;
    this.tokens.append(this.waiting.splice(0));
    this.say(this.speed());
    this.drawn();
  }

  end(ending) {
    this.flush();
    this.tokens.cut(this.text);
    this.element.removeAttribute("aria-busy");
    const nothing = !this.tokens.list.length && !ending;
    const facts = nothing ? "" : [this.speed(), ENDED[ending]].filter(Boolean).join(" · ");
    this.say(facts);
    $("[name=seed]", this.element).textContent = `seed ${this.seed}`;
    for (const selector of [".actions", "[name=seed]"]) $(selector, this.element).hidden = nothing;
    $("[name=on]", this.element).hidden = ending === "stop" || this.tokens.fixed;
    if (ending) announce(`Done: ${facts}.`); // an error speaks for itself
    this.drawn();
  }

  say(facts) {
    $(".facts", this.element).textContent = facts;
  }

  speed() {
    const seconds = (performance.now() - this.started) / 1000;
    const rate = this.written > 1 && seconds > 0.2 ? ` · ${Math.round((this.written - 1) / seconds)} per second` : "";
    return count(this.tokens.list.length, "token") + rate;
  }

  complain(error) {
    if (!(error instanceof Trouble)) console.error(error);
    $(".trouble p", this.element).textContent =
      error instanceof Trouble ? error.message : "Something on this page went wrong. Reload it and try again.";
    $(".trouble", this.element).hidden = false;
  }

  async copy() {
    await navigator.clipboard.writeText(this.text);
    announce("Copied.");
  }
}
