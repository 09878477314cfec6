// The settings: how the next token is chosen, and what is said of it.

// `fallback` is what the server does when a field is left out; `initial` is what the page starts with where that differs.
// `filter`: has no effect at temperature 0. `lines`: text instead of a number. `slider`: how far it goes, if not to `max`.
export const FIELDS = [
  {
    name: "max_tokens",
    label: "Length",
    min: 1,
    step: 1,
    required: true,
    slider: 1024,
    initial: 256,
    help: "At most this many tokens.",
  },
  {
    name: "temperature",
    label: "Temperature",
    min: 0,
    max: 2,
    step: 0.05,
    fallback: 1,
    initial: 0.8,
    help: "0 takes the likeliest token each time; below 1 is safer, above 1 wilder.",
  },
  {
    name: "top_p",
    label: "Top-p",
    min: 0.01,
    max: 1,
    step: 0.01,
    fallback: 1,
    filter: true,
    help: "Choose among the likeliest tokens that together have this probability.",
  },
  {
    name: "seed",
    label: "Seed",
    min: 0,
    max: Number.MAX_SAFE_INTEGER,
    slider: false,
    step: 1,
    help: "The same seed writes the same text. Empty: a new one each time.",
  },
  {
    name: "top_k",
    label: "Top-k",
    min: 1,
    step: 1,
    filter: true,
    more: true,
    help: "Choose among this many of the likeliest tokens. Empty: all.",
  },
  {
    name: "min_p",
    label: "Min-p",
    min: 0,
    max: 1,
    step: 0.01,
    fallback: 0,
    filter: true,
    more: true,
    help: "Choose among tokens at least this share as likely as the likeliest.",
  },
  {
    name: "typical_p",
    label: "Typical-p",
    min: 0.01,
    max: 1,
    step: 0.01,
    fallback: 1,
    filter: true,
    more: true,
    help: "Choose among the tokens of the most usual surprise that together have this probability.",
  },
  {
    name: "repetition_penalty",
    label: "Repetition penalty",
    min: 0.05,
    max: 2,
    step: 0.05,
    fallback: 1,
    more: true,
    help: "Above 1, tokens already in the text become less likely.",
  },
  {
    name: "presence_penalty",
    label: "Presence penalty",
    min: -2,
    max: 2,
    step: 0.1,
    fallback: 0,
    more: true,
    help: "Taken from the scores of tokens already written.",
  },
  {
    name: "frequency_penalty",
    label: "Frequency penalty",
    min: -2,
    max: 2,
    step: 0.1,
    fallback: 0,
    more: true,
    help: "The same, once for each time they were written.",
  },
  { name: "stop", label: "Stop at", lines: true, more: true, help: "The text ends before any of these; one on each line." },
  {
    name: "system",
    label: "System message",
    lines: true,
    chat: true,
    help: "Stands before the conversation and tells the model what it is for.",
  },
];

/** What the page starts with, for a model that reads and writes at most so many tokens. */
export function initialSettings(context = Infinity) {
  const all = Object.fromEntries(FIELDS.map(({ name, initial, fallback = null }) => [name, initial ?? fallback]));
  return { ...all, max_tokens: Math.min(all.max_tokens, Math.floor(context / 2)) };
}

/** The fields of a request: only what differs from what the server does anyway, and nothing that would have no effect. */
export function requestFields(settings) {
  const told = FIELDS.filter(
    ({ name, fallback = null, filter, chat }) =>
      settings[name] !== fallback && !(filter && settings.temperature === 0) && !chat,
  );
  return Object.fromEntries(
    told.map(({ name, lines }) => [name, lines ? settings[name].split("\n").filter(Boolean) : settings[name]]),
  );
}

/** What is not as it was, in words. */
export function summary(settings, initial) {
  const changed = FIELDS.filter(({ name }) => settings[name] !== initial[name]);
  return (
    changed
      .map(({ name, label, lines }) => (lines ? label : `${label} ${settings[name] ?? "off"}`).toLowerCase())
      .join(" · ") || "default settings"
  );
}
