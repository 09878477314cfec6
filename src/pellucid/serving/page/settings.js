// The form that changes the settings.

import { element } from "./dom.js";
import { FIELDS } from "./fields.js";

/** It changes the settings that it was last given. */
export class SettingsForm {
  constructor(initial, onchange) {
    this.initial = initial;
    this.onchange = onchange;
    this.rows = FIELDS.map((field) => this.row(field));
    const of = (more) => this.rows.filter(({ field }) => Boolean(field.more) === more).map(({ holder }) => holder);
    const reset = element("button", { type: "button", textContent: "Reset to defaults", onclick: () => this.reset() });
    this.element = element(
      "form",
      {},
      ...of(false),
      element("details", {}, element("summary", { textContent: "More" }), ...of(true)),
      reset,
    );
    this.element.addEventListener("submit", (event) => event.preventDefault()); // of Enter in a field
  }

  row(field) {
    const input = field.lines
      ? element("textarea", { rows: 2 })
      : element("input", {
          type: "number",
          min: field.min,
          max: field.max ?? "",
          step: field.step,
          required: Boolean(field.required),
        });
    input.id = `setting-${field.name}`;
    input.addEventListener("input", () => this.take(field, input));
    const label = element("label", { htmlFor: input.id, textContent: field.label });
    const help = element("small", { id: `${input.id}-help`, textContent: field.help });
    input.setAttribute("aria-describedby", help.id);
    const slider = this.slider(field, input);
    const holder = element(
      "div",
      { className: field.lines ? "setting lines" : "setting" },
      label,
      input,
      ...(slider ? [slider] : []),
      help,
    );
    return { field, input, slider, holder };
  }

  /** The same value for the hand that holds a mouse; the keyboard and screen readers have the number. */
  slider(field, input) {
    const max = field.slider ?? field.max;
    if (!max) return null;
    const slider = element("input", { type: "range", min: field.min, max, step: field.step, tabIndex: -1 });
    slider.setAttribute("aria-hidden", "true");
    slider.addEventListener("input", () => {
      input.value = slider.value;
      this.take(field, input);
    });
    return slider;
  }

  take(field, input) {
    if (!field.lines && !input.checkValidity()) return; // said before anything is sent
    this.settings[field.name] = field.lines
      ? input.value || null
      : input.value === ""
        ? (field.fallback ?? null)
        : input.valueAsNumber;
    this.draw();
    this.onchange();
  }

  edit(settings) {
    this.settings = settings;
    this.fill();
  }

  reset() {
    Object.assign(this.settings, this.initial);
    this.fill();
    this.onchange();
  }

  /** Write the settings into the fields. */
  fill() {
    for (const { field, input } of this.rows) input.value = this.settings[field.name] ?? "";
    this.draw();
  }

  /** Show what follows from the settings: where the sliders stand, and what has no effect. */
  draw() {
    for (const { field, input, slider } of this.rows) {
      if (slider) slider.value = this.settings[field.name];
      input.disabled = Boolean(field.filter) && this.settings.temperature === 0;
      input.title = input.disabled ? "Has no effect at temperature 0" : "";
      if (slider) slider.disabled = input.disabled;
    }
  }

  /** Whether all fields can be used; says at the first that cannot why. */
  valid() {
    const wrong = this.rows.find(({ input }) => !input.checkValidity());
    if (wrong?.field.more) this.element.querySelector("details").open = true;
    wrong?.input.reportValidity();
    return !wrong;
  }

  /** Show what is for chats only, or not. */
  chat(shown) {
    for (const { field, holder } of this.rows) if (field.chat) holder.hidden = !shown;
  }
}
