// How the next token is chosen: the settings, what they mean, and the form that changes them.

import { element } from "./dom.js";

// `fallback` is what the server does when a field is left out; `initial` is what the page starts with where that differs.
const FIELDS = [
  { name: "max_tokens", label: "Length", min: 1, step: 1, required: true, slider: 1024, initial: 256, help: "At most this many tokens." },
  { name: "temperature", label: "Temperature", min: 0, max: 2, step: 0.05, fallback: 1, initial: 0.8, help: "0 takes the likeliest token each time; below 1 is safer, above 1 wilder." },
  { name: "top_p", label: "Top-p", min: 0.01, max: 1, step: 0.01, fallback: 1, filter: true, help: "Choose among the likeliest tokens that together have this probability." },
  { name: "seed", label: "Seed", min: 0, max: Number.MAX_SAFE_INTEGER, step: 1, help: "The same seed writes the same text. Empty: a new one each time." },
  { name: "top_k", label: "Top-k", min: 1, step: 1, filter: true, more: true, help: "Choose among this many of the likeliest tokens. Empty: all." },
  { name: "min_p", label: "Min-p", min: 0, max: 1, step: 0.01, fallback: 0, filter: true, more: true, help: "Choose among tokens at least this share as likely as the likeliest." },
  { name: "typical_p", label: "Typical-p", min: 0.01, max: 1, step: 0.01, fallback: 1, filter: true, more: true, help: "Choose among the tokens of the most usual surprise that together have this probability." },
  { name: "repetition_penalty", label: "Repetition penalty", min: 0.05, max: 2, step: 0.05, fallback: 1, more: true, help: "Above 1, tokens already in the text become less likely." },
  { name: "presence_penalty", label: "Presence penalty", min: -2, max: 2, step: 0.1, fallback: 0, more: true, help: "Taken from the scores of tokens already written." },
  { name: "frequency_penalty", label: "Frequency penalty", min: -2, max: 2, step: 0.1, fallback: 0, more: true, help: "The same, once for each time they were written." },
  { name: "stop", label: "Stop at", lines: true, more: true, help: "The text ends before any of these; one on each line." },
  { name: "system", label: "System message", lines: true, chat: true, help: "Stands before the conversation and tells the model what it is for." },
];

/** What the page starts with, for a model that reads and writes at most so many tokens. */
export function initialSettings(context = Infinity) {
  const all = Object.fromEntries(FIELDS.map(({ name, initial, fallback = null }) => [name, initial ?? fallback]));
  return { ...all, max_tokens: Math.min(all.max_tokens, Math.floor(context / 2)) };
}

/** The fields of a request: only what differs from what the server does anyway, and nothing that would have no effect. */
export function requestFields(settings) {
  const told = FIELDS.filter(({ name, fallback = null, filter, chat }) => settings[name] !== fallback && !(filter && settings.temperature === 0) && !chat);
  return Object.fromEntries(told.map(({ name, lines }) => [name, lines ? settings[name].split("\n").filter(Boolean) : settings[name]]));
}

/** What is not as it was, in words. */
export function summary(settings, initial) {
  const changed = FIELDS.filter(({ name }) => settings[name] !== initial[name]);
  return changed.map(({ name, label, lines }) => (lines ? label : `${label} ${settings[name] ?? "off"}`).toLowerCase()).join(" · ") || "default settings";
}

/** The form. It changes the settings that it was last given. */
export class SettingsForm {
  constructor(initial, onchange) {
    this.initial = initial;
    this.onchange = onchange;
    this.rows = FIELDS.map((field) => this.row(field));
    const of = (more) => this.rows.filter(({ field }) => Boolean(field.more) === more).map(({ holder }) => holder);
    const reset = element("button", { type: "button", textContent: "Reset to defaults", onclick: () => this.reset() });
    this.element = element("form", {}, ...of(false), element("details", {}, element("summary", { textContent: "More" }), ...of(true)), reset);
    this.element.addEventListener("submit", (event) => event.preventDefault()); // Enter in a field; the page sends nothing by itself
  }

  row(field) {
    const input = field.lines ? element("textarea", { rows: 2 }) : element("input", { type: "number", min: field.min, max: field.max ?? "", step: field.step, required: Boolean(field.required) });
    input.id = `setting-${field.name}`;
    input.addEventListener("input", () => this.take(field, input));
    const label = element("label", { htmlFor: input.id, textContent: field.label });
    const help = element("small", { id: `${input.id}-help`, textContent: field.help });
    input.setAttribute("aria-describedby", help.id);
    const slider = this.slider(field, input);
    const holder = element("div", { className: field.lines ? "setting lines" : "setting" }, label, input, ...(slider ? [slider] : []), help);
    return { field, input, slider, holder };
  }

  /** The same value for the hand that holds a mouse; the keyboard and screen readers have the number. */
  slider(field, input) {
    const max = field.slider ?? field.max;
    if (field.lines || max === undefined || max === Number.MAX_SAFE_INTEGER) return null;
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
    this.settings[field.name] = field.lines ? input.value || null : input.value === "" ? field.fallback ?? null : input.valueAsNumber;
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
