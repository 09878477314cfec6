// The panel beside the texts: the settings, for all columns or for one of them, and whether tokens are tinted.

import { $, element } from "./dom.js";
import { SettingsForm } from "./settings.js";

const LEVELS = [0, 1, 2, 3, 4, 5]; // of the tint, as in style.css

export class Panel {
  /** `initial`: the settings that a reset brings back. `changed` hears of every change. */
  constructor(initial, changed) {
    this.form = new SettingsForm(initial, changed);
    this.tabs = element("div", { id: "edited", hidden: true });
    $("#settings").append(element("h2", { textContent: "Settings" }), this.tabs, tinting(), this.form.element);
    $("#toggle-settings").addEventListener("click", () => this.show($("#settings").hidden));
    this.show(matchMedia("(min-width: 64rem)").matches);
  }

  show(shown) {
    $("#settings").hidden = !shown;
    $("#toggle-settings").setAttribute("aria-expanded", shown);
  }

  /** Edit these settings; several: one after the other, as the reader chooses. */
  edit(all, index = 0) {
    const focused = this.tabs.contains(document.activeElement);
    const choices = all.map((_, at) => {
      const input = element("input", {
        type: "radio",
        name: "edited",
        checked: at === index,
        onchange: () => this.edit(all, at),
      });
      input.setAttribute("aria-label", `Column ${at + 1}`);
      return element("label", {}, input, element("span", { textContent: at + 1 }));
    });
    const legend = element("legend", { className: "unseen", textContent: "Settings of which column" });
    this.tabs.replaceChildren("of column", element("fieldset", { className: "choice" }, legend, ...choices));
    this.tabs.hidden = all.length === 1;
    if (focused) $("input:checked", this.tabs)?.focus();
    this.form.edit(all[index]);
  }
}

function tinting() {
  const box = element("input", { type: "checkbox", id: "tint", checked: true });
  const draw = () => document.body.classList.toggle("tinted", box.checked);
  box.addEventListener("change", draw);
  draw();
  const swatches = element("span", {}, ...LEVELS.map((level) => element("i", { className: `t${level}` })));
  const legend = element("p", { className: "legend", ariaHidden: "true" }, "sure", swatches, "surprised");
  const note = element("small", { textContent: "The model’s own probabilities, before temperature and filters." });
  return element("div", { className: "setting check" }, element("label", {}, box, " Tint tokens by probability"), legend, note);
}
