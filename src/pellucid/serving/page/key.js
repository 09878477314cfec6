// The dialog that asks for an API key, once for all columns that wait for one.

import { $ } from "./dom.js";

let asking = null;

/** The key that the reader gives, or null. `wrong`: there was one, and the server did not take it. */
export function askForKey(wrong) {
  asking ??= ask(wrong).finally(() => (asking = null));
  return asking;
}

function ask(wrong) {
  const dialog = $("#key");
  const form = $("form", dialog);
  $("h2", dialog).textContent = wrong ? "The server did not take this API key" : "This server asks for an API key";
  form.reset();
  dialog.showModal();
  return new Promise((answer) => {
    form.onsubmit = (event) => {
      event.preventDefault(); // the page sends nothing by itself
      answer(form.elements.key.value);
      dialog.close();
    };
    form.elements.cancel.onclick = () => dialog.close();
    dialog.onclose = () => answer(null); // no effect if there was an answer
  });
}
