// Where the page begins: it asks which model is served, and sets up what a reader needs for it.

import { Trouble, servedModel } from "./api.js";
import { Board } from "./board.js";
import { $, element } from "./dom.js";
import { canWrite, describe } from "./model.js";
import { close, watchTokens } from "./peek.js";

async function start() {
  try {
    begin(await servedModel());
  } catch (error) {
    if (!(error instanceof Trouble)) throw error;
    complain(error);
  }
}

function begin(model) {
  if (!canWrite(model))
    throw new Trouble(`${model.id} reads texts but writes none; use it from a program: openapi.json says how.`);
  $("#columns").replaceChildren();
  document.title = `${model.id} · Pellucid`;
  $("#model").textContent = model.id;
  $("#model").title = describe(model);
  const mode = model.chat_template === false ? "completion" : "chat";
  $(`#mode [value=${mode}]`).checked = true;
  const board = new Board(model, mode);
  listen(board);
  if (matchMedia("(hover: hover)").matches) board.focus(); // where touching it does not cover half the screen with keys
}

function listen(board) {
  watchTokens();
  $("#mode").addEventListener("change", ({ target }) => board.setMode(target.value));
  $(".skip").addEventListener("click", (event) => {
    event.preventDefault();
    board.focus();
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && !$("dialog[open]") && !close()) board.stop();
  });
}

function complain(error) {
  const trouble = element("div", { className: "trouble", role: "alert" }, element("p", { textContent: error.message }));
  trouble.append(element("button", { type: "button", textContent: "Try again", onclick: start }));
  $("#columns").replaceChildren(trouble);
}

start();
