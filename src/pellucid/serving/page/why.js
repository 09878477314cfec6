// Why this token? What the words before it did for it, held against another that it beat, and how far that can be trusted.

import { Trouble, explain } from "./api.js";
import { inert, visible } from "./characters.js";
import { $, announce, element } from "./dom.js";
import { promptOf } from "./writing.js";

const panel = $("#why");
let controller = null;

$("[name=close]", panel).addEventListener("click", () => panel.close());
panel.addEventListener("close", () => controller?.abort());

/** Ask why `token` stands after what `request` says; `others` are the tokens that it may be held against. */
export function why(request, token, others) {
  if (!panel.open) panel.showModal();
  const hold = (foil) => ask(request, token, foil, others);
  hold(others[0]);
}

async function ask(request, token, foil, others) {
  controller?.abort();
  const mine = (controller = new AbortController());
  $("h2", panel).textContent = `Why “${visible(token.text)}”?`;
  $(".foils", panel).replaceChildren("rather than ", ...others.map((other) => choice(other, other === foil, () => ask(request, token, other, others))));
  $(".found", panel).hidden = true;
  say("The model reads the text again and again, with words left out. That takes a while.", "");
  try {
    const input = await promptOf(request, mine.signal);
    const body = { model: request.model, input, target: token.text, foil: foil.text };
    const found = await explain(body, mine.signal);
    say("", found.verdict);
    draw(found, 0);
    announce(found.verdict);
  } catch (error) {
    if (mine.signal.aborted) return;
    if (!(error instanceof Trouble)) console.error(error);
    say("", error instanceof Trouble ? error.message : "Something on this page went wrong. Reload it and try again.");
  }
}

function choice(other, chosen, onclick) {
  const button = element("button", { type: "button", textContent: visible(other.text), onclick });
  button.setAttribute("aria-pressed", chosen);
  return button;
}

function say(waiting, verdict) {
  $(".waiting", panel).textContent = waiting;
  $(".verdict", panel).textContent = verdict;
}

/** The text as one method sees it, and the other methods to choose from. */
function draw(found, at) {
  const one = found.attributions[at];
  const most = Math.max(...one.values.map(Math.abs), 1e-9);
  const parts = [];
  let end = 0;
  const text = [...found.text]; // offsets are of code points
  found.units.forEach((unit, number) => {
    parts.push(inert(text.slice(end, unit.start).join("")), word(unit, one, number, most));
    end = unit.end;
  });
  $(".words", panel).replaceChildren(...parts, inert(text.slice(end).join("")));
  const difference = `${found.measure} = ${signed(found.difference)} nats`;
  const chance = `random orders reach ${signed(found.chance.low)} to ${signed(found.chance.high)}`;
  $(".number", panel).textContent = difference;
  $(".method", panel).textContent = `${one.method}: faithfulness ${signed(one.score)}; ${chance}. ${one.beats_chance ? "Better than chance." : "No better than chance."}`;
  $(".methods", panel).replaceChildren(...found.attributions.map((other, to) => {
    const button = element("button", { type: "button", textContent: other.method, onclick: () => draw(found, to) });
    button.setAttribute("aria-pressed", to === at);
    return button;
  }));
  $(".found", panel).hidden = false;
}

function word(unit, { values, errors }, number, most) {
  const value = values[number];
  const span = element("span", { className: value < 0 ? "against" : "for", textContent: inert(unit.text) });
  span.title = `${signed(value, 3)}${errors?.[number] ? ` ± ${errors[number].toFixed(3)}` : ""}`;
  span.style.setProperty("--share", `${Math.round(100 * (Math.abs(value) / most) ** 0.8)}%`);
  return span;
}

const signed = (value, digits = 2) => `${value < 0 ? "−" : "+"}${Math.abs(value).toFixed(digits)}`;
