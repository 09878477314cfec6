// What a text looks like when nothing in it may act: controls that reorder or hide characters are shown by name.

const ACTING = /[\u0000-\u0008\u000b\u000c\u000e-\u001f\u007f-\u009f\u202a-\u202e\u2066-\u2069\ufeff]/g;

/** A text as it is displayed. */
export const inert = (text) =>
  text.replace(ACTING, (character) => `[U+${character.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}]`);

/** A token by itself, with its white space visible. */
export const visible = (text) =>
  inert(text)
    .replace(/^ +| +$/g, (spaces) => "·".repeat(spaces.length))
    .replaceAll("\n", "↵")
    .replaceAll("\t", "⇥");

/** A share as a percentage with as many digits as matter. */
export function percent(share) {
  if (share >= 0.9995) return ">99.9 %";
  if (share < 0.0001) return "<0.01 %";
  return `${(100 * share).toFixed(share >= 0.99 ? 1 : share >= 0.1 ? 0 : share >= 0.01 ? 1 : 2)} %`;
}

export const count = (number, thing) => `${number.toLocaleString("en")} ${thing}${number === 1 ? "" : "s"}`;
