// What the server tells of the model, in words.

const COUNT = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 });

export const canWrite = ({ abilities = [] }) => abilities.includes("/v1/completions");

/** Whether what the model writes goes on with what it reads; an encoder-decoder's does not, which can score no prompt either. */
export const canGoOn = ({ abilities = [] }) => abilities.includes("/v1/score");

/** What a model is, in one line, as far as the server tells. */
export function describe(model) {
  const facts = [
    model.parameters && `${COUNT.format(model.parameters)} parameters`,
    model.family,
    model.max_model_len && `reads and writes up to ${model.max_model_len.toLocaleString("en")} tokens`,
  ];
  return facts.filter(Boolean).join(" · ");
}
