// The few things that every part of the page does with elements. Text only ever becomes textContent.

export const $ = (selector, within = document) => within.querySelector(selector);

/** The element in a template, anew. */
export const fromTemplate = (id) => document.getElementById(id).content.firstElementChild.cloneNode(true);

/** An element with properties and children. */
export function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

/** Tells those who do not see the page. */
export function announce(text) {
  $("#status").textContent = text;
}
