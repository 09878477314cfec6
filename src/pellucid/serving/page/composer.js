// Where the reader writes.

import { $, fromTemplate } from "./dom.js";

export class Composer {
  constructor(label, { send, stop, clear }) {
    this.element = fromTemplate("composer-template");
    this.textarea = $("textarea", this.element);
    this.send = () => this.busy || send(this.textarea.value);
    $("label span", this.element).textContent = label;
    $("[name=send]", this.element).addEventListener("click", this.send);
    $("[name=stop]", this.element).addEventListener("click", stop);
    $("[name=clear]", this.element).addEventListener("click", clear);
    this.textarea.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey)) return;
      event.preventDefault();
      this.send();
    });
  }

  set label(text) {
    $("label span", this.element).textContent = text;
  }

  set mode(mode) {
    this.textarea.placeholder = mode === "chat" ? "Say something" : "Begin a text; the model goes on";
    $("[name=send]", this.element).textContent = mode === "chat" ? "Send" : "Write";
    $(".hint span", this.element).textContent = mode === "chat" ? "sends" : "writes";
  }

  /** While something is written, the button that sends is the one that stops. */
  set busy(busy) {
    const [send, stop] = ["send", "stop"].map((name) => $(`[name=${name}]`, this.element));
    const focused = [send, stop].includes(document.activeElement);
    send.hidden = busy;
    stop.hidden = !busy;
    if (focused) (busy ? stop : send).focus();
  }

  get busy() {
    return $("[name=send]", this.element).hidden;
  }
}
