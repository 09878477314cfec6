"""The place where target and foil part, and the two scores there: what is linear in the stream, and so can be shared out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pellucid.core.errors import ModelError
from pellucid.explanation.question import Answer, Question, shown
from pellucid.explanation.rows import Asked, Row, logits_at
from pellucid.network.network import Network


@dataclass(frozen=True)
class Contrast:
    """logit(target) - logit(foil) where `row` is read; the target's alone where nothing is held against it."""

    row: Row
    target: Answer
    foil: Answer | None

    @property
    def place(self) -> int | None:
        """The position that is read off; None: the whole text."""
        return self.row.asked[0].place

    @property
    def measure(self) -> str:
        return f"logit({shown(self.target)})" + ("" if self.foil is None else f" - logit({shown(self.foil)})")


def contrast_of(question: Question) -> Contrast:
    """The first token in which target and foil differ; of a longer target alone its first, and the likeliest other."""
    target, foil = question.target, question.foil
    if not question.continues:
        return Contrast(question.rows(question.ids)[0], target, foil)
    shared = 0
    if foil is not None:
        while target.ids[shared] == foil.ids[shared]:
            shared += 1
    network, read = question.network, target.ids[:shared]
    apart = network.config.architecture == "encoder-decoder"
    place = shared if apart else len(question.ids) - 1 + shared
    ids = question.ids if apart else (*question.ids, *read)
    row = Row(tuple(ids), (Asked(place, target.ids[shared], 1.0),), (network.config.start_token, *read) if apart else None)
    if foil is None:
        order = logits_at(network, row)[0, : question.tokenizer.vocab_size].topk(2).indices.tolist()
        against = next(id for id in order if id != target.ids[0])
    else:
        against = foil.ids[shared]
    answers = [Answer(question.tokenizer.decode([id], special=True), (id,)) for id in (target.ids[shared], against)]
    asked = (Asked(place, answers[0].ids[0], 1.0), Asked(place, answers[1].ids[0], -1.0))
    return Contrast(Row(row.ids, asked, row.decoder_ids), answers[0], answers[1])


def is_sum(network: Network) -> bool:
    """Whether the stream is still the sum of what the parts add: not where an edit changes the stream itself."""
    parts = (".q", ".k", ".v", ".pattern", ".mixed", ".mlp.out", ".neurons")
    return all(site.endswith(parts) for taps in network.standing for site in taps.edit)


def stack_of(question: Question) -> tuple[Any, str]:
    """The transformer whose last stream the head reads, and what its sites' names begin with."""
    network = question.network
    config = network.config
    if not is_sum(network):
        raise ModelError("an edit changes this model's stream, which is then no sum of its parts; explain it without the edit")
    if config.architecture == "encoder-decoder":
        return network.decoder, "decoder."
    if config.architecture not in ("decoder", "encoder"):
        raise ModelError(
            f"a {config.family} network has no stream that its parts add to, so its answer is no sum of theirs; "
            "see its gates and attributions instead"
        )
    return network, ""
