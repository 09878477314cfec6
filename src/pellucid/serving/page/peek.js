// What stands beside a token: how likely it was, what else was close, and the way on from there.

import { percent, visible } from "./characters.js";
import { $, element } from "./dom.js";
import { isWhole, placeOf } from "./tokens.js";

const SOON = 60; // milliseconds: a pointer that only passes by opens nothing
const LATER = 250; // time to reach what has opened

const NTH = ["", "second ", "third "];

const peek = $("#peek");
let shown = null; // { span, pinned }
let timer;

/** Listen to all tokens of the page. A token that takes another's place is told to its text as the event "branch". */
export function watchTokens() {
  document.addEventListener("pointerover", ({ target, pointerType }) => {
    if (pointerType === "touch" || shown?.pinned) return;
    clearTimeout(timer);
    if (peek.contains(target)) return;
    if (placeOf(target)) timer = setTimeout(() => open(target), SOON);
    else if (shown && document.activeElement !== shown.span) timer = setTimeout(close, LATER);
  });
  document.addEventListener("focusin", ({ target }) => {
    if (placeOf(target)) open(target, shown?.pinned && shown.span === target);
    else if (shown && !peek.contains(target)) close();
  });
  document.addEventListener("click", ({ target }) => {
    const place = placeOf(target);
    if (place) {
      place.tokens.focus(place.index);
      open(target, true);
    } else if (shown && !peek.contains(target)) close();
  });
  document.addEventListener("keydown", keys);
  document.addEventListener("scroll", () => shown && position(), { capture: true, passive: true });
  addEventListener("resize", close);
}

/** Whether there was something to close. */
export function close() {
  clearTimeout(timer);
  const was = shown;
  if (peek.contains(document.activeElement)) was.span.focus({ preventScroll: true });
  shown = null;
  peek.hidden = true;
  was?.span.classList.remove("open");
  return was !== null;
}

export const isOpen = () => shown !== null;

function open(span, pinned = false) {
  clearTimeout(timer);
  if (shown) shown.span.classList.remove("open");
  shown = { span, pinned };
  span.classList.add("open");
  const { tokens, index } = placeOf(span);
  const branch = (alternative) => {
    close();
    tokens.element.dispatchEvent(new CustomEvent("branch", { detail: { index, alternative } }));
  };
  describe(tokens.list[index], tokens.fixed ? null : branch);
  const ask = $("[name=why]", peek);
  ask.hidden = !canAsk(tokens.list, index) || (tokens.fixed && index > 0); // what cannot be gone on with is asked about its beginning
  ask.onclick = () => {
    close();
    tokens.element.dispatchEvent(new CustomEvent("why", { detail: { index } }));
  };
  peek.hidden = false;
  position();
}

/** Whether the token and what stands before it are whole characters, and another was close. */
const canAsk = (list, index) =>
  list[index].logprob !== undefined &&
  [list[index - 1], list[index]].every((token) => !token || isWhole(token)) &&
  list[index].text !== "" &&
  list[index].top.some((other) => other.text !== list[index].text && isWhole(other));

function describe(token, branch) {
  const share = token.logprob === undefined ? null : Math.exp(token.logprob);
  $(".title q", peek).textContent = visible(token.text);
  $(".title b", peek).textContent = share === null ? "" : percent(share);
  const rank = token.top.findIndex((other) => other.text === token.text && other.logprob === token.logprob);
  $(".rank", peek).textContent = rankOf(token, rank);
  const listed = rank < 0 && share !== null ? [...token.top, token] : token.top;
  $("ol", peek).replaceChildren(...listed.map((other, at) => row(other, at === rank || other === token, branch)));
  $(".hint", peek).textContent =
    branch && token.top.some((other, at) => at !== rank && isWhole(other)) ? "Choose another to go on from there." : "";
}

function rankOf(token, rank) {
  if (token.logprob === undefined) return "The server told no probability of this piece.";
  if (token.chosen) return "Chosen by you.";
  if (!token.top.length) return "";
  return rank < 0 ? "Others were likelier." : `The ${NTH[rank] ?? `${rank + 1}th `}likeliest token here.`;
}

function row(token, written, branch) {
  const share = Math.exp(token.logprob);
  const bar = element("i", { className: "bar" });
  bar.style.width = `${Math.max(100 * share, 0.5)}%`;
  const parts = [
    element("span", { className: "what", textContent: visible(token.text) || "∅" }),
    element("span", { className: "share", textContent: percent(share) }),
    bar,
  ];
  if (written || !branch || !isWhole(token)) return element("li", { className: written ? "written" : "fixed" }, ...parts);
  return element("li", {}, element("button", { type: "button", onclick: () => branch(token) }, ...parts));
}

function keys(event) {
  const choices = [...peek.querySelectorAll("button:not([hidden])")];
  if (placeOf(event.target) && ["Enter", " ", "ArrowDown"].includes(event.key) && choices.length) {
    event.preventDefault();
    if (shown?.span !== event.target) open(event.target);
    shown.pinned = true;
    peek.querySelector("button").focus();
  } else if (peek.contains(event.target) && ["ArrowDown", "ArrowUp"].includes(event.key)) {
    event.preventDefault();
    const at = choices.indexOf(event.target) + (event.key === "ArrowDown" ? 1 : -1);
    if (at < 0) shown.span.focus();
    else choices[Math.min(at, choices.length - 1)].focus();
  }
}

/** Below the token, or above it where there is no room. */
function position() {
  const gap = 6;
  const token = shown.span.getClientRects()[0] ?? shown.span.getBoundingClientRect();
  const { width, height } = peek.getBoundingClientRect();
  const left = Math.min(Math.max(token.left - 12, gap), innerWidth - width - gap);
  const below = token.bottom + gap;
  const top = below + height < innerHeight ? below : Math.max(token.top - gap - height, gap);
  peek.style.left = `${left}px`;
  peek.style.top = `${top}px`;
}
