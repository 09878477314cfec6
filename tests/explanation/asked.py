"""Questions to small networks of every family, and the difference computed by hand from the model's public call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from labellers import LABELS, labeller
from pupils import SIZES, tokenizer
from tiny import randomised

from pellucid.api import Model
from pellucid.explanation.question import Question, ask
from pellucid.network.families import FAMILIES
from pellucid.text.corpus import Corpus
from pellucid.text.tokenizer import Tokenizer

TEXT = "Alice saw the rabbit"
WRITERS = ("gpt2", "llama", "qwen3", "lstm", "bag-of-words", "t5")
LABELLERS = ("bert", "distilbert", "gpt2", "qwen3", "lstm", "bag-of-words")


def writer(family: str = "qwen3", **changes: Any) -> Model:
    words = tokenizer()
    shape = {"vocab_size": words.vocab_size, "context_length": 128} | SIZES[family] | changes
    return Model(randomised(FAMILIES[family].new(**shape)), words)


def classifier(family: str = "bert", **changes: Any) -> Model:
    size = {"context_length": 64, "layers": 2} | {name: value for name, value in SIZES[family].items() if name != "layers"}
    return labeller(family, size=size, **changes)


def pooling_classifier() -> Model:
    """One that reads the first position through a dense layer and tanh."""
    words = tokenizer()
    shape = {"vocab_size": words.vocab_size, "context_length": 64} | SIZES["bert"]
    labelled = {"head": "classify", "labels": LABELS, "pooling": "first", "pooler": True}
    return Model(randomised(FAMILIES["bert"].new(**shape, **labelled)), words)


def filler() -> Model:
    """A masked language model."""
    words = Tokenizer.train_chars(Corpus.of([TEXT, "abcdefghijklmnopqrstuvwxyz"]), extra=["[MASK]"])
    shape = {"vocab_size": words.vocab_size, "context_length": 64} | SIZES["bert"]
    return Model(randomised(FAMILIES["bert"].new(**shape)), words)


def question(model: Model, text: str = TEXT, **options: Any) -> Question:
    return ask(model.network, model.tokenizer, text, **options)


def cases() -> dict[str, Question]:
    """One question of each kind."""
    found = {f"{family} writes": question(writer(family), target="a", foil="b") for family in WRITERS}
    found |= {f"{family} labels": question(classifier(family), target=LABELS[1], foil=LABELS[0]) for family in LABELLERS}
    found["qwen3 writes several"] = question(writer("qwen3"), target=" ran", foil=" fell down")
    found["t5 writes several"] = question(writer("t5"), target=" ran", foil=" fell down")
    found["bert tags"] = question(labeller("bert", head="tag", labels=("O", "B-x", "I-x")), word="saw", target="B-x", foil="O")
    found["bert fills"] = question(filler(), "Alice saw the [MASK]abbit", target="r", foil="h")
    return found


def by_hand(asked: Question, ids: Sequence[int], at: int | None = None) -> float:
    """The difference for a text that has become `ids`, from what the network answers in a plain call."""
    network = asked.network
    with torch.no_grad():
        return float(of_answers(asked, lambda **given: network(**given), torch.tensor([list(ids)]), at))


def of_answers(asked: Question, call: Any, ids: torch.Tensor, at: int | None = None) -> torch.Tensor:
    """The same with a call of the caller's; differentiable."""
    config, total = asked.network.config, torch.zeros(())
    for answer, sign in ((asked.target, 1.0), (asked.foil, -1.0)):
        if answer is None:
            continue
        if not config.generates:
            logits = call(ids=ids).logits[0]
            scores = logits if config.head == "classify" else logits[asked.at if at is None else at]
            total = total + sign * (scores if config.scores_labels else scores.log_softmax(-1))[answer.ids[0]]
            continue
        after = torch.tensor([answer.ids])
        if config.architecture == "encoder-decoder":
            started = torch.cat([torch.tensor([[config.start_token]]), after[:, :-1]], dim=1)
            logits = call(ids=ids, decoder_ids=started).logits[0]
        else:
            logits = call(ids=torch.cat([ids, after[:, :-1]], dim=1)).logits[0, ids.shape[1] - 1 :]
        total = total + sign * logits.log_softmax(-1).gather(1, after[0][:, None]).sum()
    return total
