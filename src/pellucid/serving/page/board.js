// The columns side by side: how many, and whether their prompts or their settings differ.

import { count } from "./characters.js";
import { Column, randomSeed } from "./column.js";
import { Composer } from "./composer.js";
import { $, announce } from "./dom.js";
import { Panel } from "./panel.js";
import { initialSettings, summary } from "./fields.js";

const MOST = 4;

export class Board {
  constructor(model, mode) {
    this.model = model;
    this.columns = [];
    this.initial = initialSettings(model.max_model_len);
    this.shared = { ...this.initial };
    this.panel = new Panel(this.initial, () => this.changed());
    this.everywhere = new Composer("Prompt for all columns", {
      send: (text) => this.sayEverywhere(text),
      stop: () => this.stop(),
      clear: () => this.columns.forEach((column) => column.clear()),
    });
    $("#everywhere").append(this.everywhere.element);
    $("#more").addEventListener("click", () => this.add());
    $("#fewer").addEventListener("click", () => this.remove());
    $("#differ").addEventListener("change", () => this.arrange());
    $("#send-all").addEventListener("click", () => this.columns.forEach((column) => column.composer.send()));
    $("#tools").hidden = false;
    this.setMode(mode);
    this.add();
  }

  /** Whether every column has settings of its own, and all have the same prompt. */
  get apart() {
    return this.columns.length > 1 && $("#differ [value=settings]").checked;
  }

  add() {
    const column = new Column(this, this.shared);
    this.columns.push(column);
    $("#columns").append(column.element);
    this.arrange();
  }

  remove() {
    const column = this.columns.pop();
    column.stop();
    column.element.remove();
    this.arrange();
  }

  arrange() {
    const several = this.columns.length > 1;
    $("#columns").dataset.count = this.columns.length;
    $("#count").textContent = count(this.columns.length, "column");
    $("#fewer").disabled = !several;
    $("#more").disabled = this.columns.length === MOST;
    $("#differ").hidden = !several;
    $("#everywhere").hidden = !this.apart;
    $("#send-all").hidden = !several || this.apart;
    for (const column of this.columns) {
      $(".own", column.element).hidden = this.apart;
      if (!this.apart) column.settings = this.shared;
      else if (column.settings === this.shared) column.settings = { ...this.shared };
    }
    this.panel.edit(this.apart ? this.columns.map((column) => column.settings) : [this.shared]);
    this.changed();
  }

  /** Settings have changed, or what is under way. */
  changed() {
    this.columns.forEach((column, at) =>
      column.name(at + 1, this.columns.length, this.apart ? summary(column.settings, this.initial) : ""),
    );
    this.everywhere.busy = this.columns.some((column) => column.busy);
  }

  setMode(mode) {
    this.mode = mode;
    this.panel.form.chat(mode === "chat");
    this.everywhere.mode = mode;
    for (const column of this.columns) {
      column.stop();
      column.show();
    }
  }

  /** The same prompt, and the same seed unless a column has its own: only the settings make a difference. */
  sayEverywhere(text) {
    const seed = randomSeed();
    const heard = this.columns.map((column) => column.say(text, seed)).some(Boolean);
    if (heard && this.mode === "chat") this.everywhere.textarea.value = "";
  }

  useSeed(column, seed) {
    column.settings.seed = seed;
    this.panel.form.fill();
    this.changed();
    announce(`Seed ${seed} is used from now on.`);
  }

  /** Whether there was something to stop. */
  stop() {
    return this.columns.map((column) => column.stop()).some(Boolean);
  }

  focus() {
    (this.apart ? this.everywhere : this.columns[0].composer).textarea.focus();
  }
}
