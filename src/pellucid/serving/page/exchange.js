// What the reader said and the versions of what the model answered to it, of which one is shown.

import { inert } from "./characters.js";
import { $, fromTemplate } from "./dom.js";
import { Version } from "./version.js";

export class Exchange {
  /** `parent`: the version of the answer before, after which this was said. `flows`: the text goes on with what was said. */
  constructor(said, parent, actions, flows) {
    this.said = said;
    this.parent = parent;
    this.actions = actions;
    this.versions = [];
    this.lead = flows ? said : "";
    this.element = fromTemplate("exchange-template");
    $(".said", this.element).textContent = inert(said);
    $(".said", this.element).hidden = flows; // then it stands in the text itself
    if (parent) parent.next = this;
  }

  /** A new version that begins with some tokens; it is shown. */
  add(begun = []) {
    const version = new Version(this.lead, begun, this.actions);
    version.exchange = this;
    this.versions.push(version);
    this.element.append(version.element);
    for (const [name, step] of [
      ["before", -1],
      ["after", 1],
    ]) {
      $(`[name=${name}]`, version.element).addEventListener("click", () =>
        this.turn(this.versions.indexOf(version) + step, name),
      );
    }
    this.turn(this.versions.length - 1);
    return version;
  }

  turn(index, focus = null) {
    this.current = this.versions[index];
    this.versions.forEach((version, at) => {
      version.element.hidden = at !== index;
      $(".turn", version.element).hidden = this.versions.length < 2;
      $(".turn span", version.element).textContent = `${at + 1} of ${this.versions.length}`;
      $("[name=before]", version.element).disabled = at === 0;
      $("[name=after]", version.element).disabled = at === this.versions.length - 1;
    });
    if (!focus) return;
    const button = $(`[name=${focus}]`, this.current.element);
    (button.disabled ? $(".turn button:enabled", this.current.element) : button).focus();
  }

  /** The conversation up to and with what was said here. */
  messages() {
    const before = this.parent ? [...this.parent.exchange.messages(), { role: "assistant", content: this.parent.text }] : [];
    return [...before, { role: "user", content: this.said }];
  }
}
