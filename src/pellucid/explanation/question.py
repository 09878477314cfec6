"""What is asked: given a text, why this rather than that. One number, a difference, whatever part of the text is there.

A language model's is log p(target) - log p(foil), which for two single tokens is the difference of their logits; a classifier's
the difference of two labels' logits.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from pellucid.core.errors import ConfigError, ModelError
from pellucid.evaluation.fill import MASK
from pellucid.explanation.rows import Asked, Row, logits_at
from pellucid.explanation.units import By, Unit, places_of, units_of
from pellucid.generation.generate import encode as encode_prompt
from pellucid.network.network import Network
from pellucid.text.tokenizer import Tokenizer
from pellucid.text.word_spans import Span, words_of


@dataclass(frozen=True)
class Answer:
    """One of the two that are compared: a token or several, or a label; `ids` are their numbers."""

    name: str
    ids: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Question:
    """Why the target, rather than the foil (None: than anything else), given a text that is read as `ids`."""

    network: Network
    tokenizer: Tokenizer
    text: str
    ids: tuple[int, ...]
    places: tuple[Span | None, ...]  # the characters of each token; None for those that are no text
    units: tuple[Unit, ...]
    by: str
    target: Answer
    foil: Answer | None
    at: int | None = None  # the token that is tagged or filled; None: the text's continuation, or its label

    @property
    def continues(self) -> bool:
        """Whether the answer is text that comes after, or out of, the text."""
        return self.network.config.generates

    @property
    def measure(self) -> str:
        """What the number is."""
        config, foil = self.network.config, self.foil
        score = (
            "logit" if config.scores_labels or (foil is not None and len(self.target.ids) == len(foil.ids) == 1) else "log p"
        )
        if config.problem == "regression" and config.head == "classify":
            return "the value"
        return f"{score}({shown(self.target)})" + ("" if foil is None else f" - {score}({shown(foil)})")

    def rows(self, ids: Sequence[int], *, blank: Sequence[int] = (), at: int | None = None) -> list[Row]:
        """What is to be read to know the difference, where the text has become `ids`, and the token asked about lies `at`.

        `blank` are the tokens whose vectors say nothing.
        """
        signed = [(self.target, 1.0), *([] if self.foil is None else [(self.foil, -1.0)])]
        if not self.continues:
            place = at if at is not None else self.at
            asked = tuple(Asked(place, answer.ids[0], weight) for answer, weight in signed)
            return [Row(tuple(ids), asked, blank=tuple(blank))]
        apart = self.network.config.architecture == "encoder-decoder"
        start = (self.network.config.start_token,) if apart else ()
        before = 0 if apart else len(ids) - 1  # the place whose scores are those of the first token of the answer
        rows: dict[tuple[int, ...], list[Asked]] = {}
        for answer, weight in signed:  # two single tokens are read off at one place
            row = rows.setdefault(answer.ids[:-1], [])
            row += [Asked(before + number, id, weight) for number, id in enumerate(answer.ids)]
        return [
            Row(tuple(ids) if apart else (*ids, *read), tuple(asked), (*start, *read) if apart else None, tuple(blank))
            for read, asked in rows.items()
        ]


def shown(answer: Answer) -> str:
    return repr(answer.name)


def ask(
    network: Network,
    tokenizer: Tokenizer,
    text: str | Sequence[int],
    *,
    target: str | None = None,
    foil: str | None = None,
    word: str | int | None = None,
    by: By = "auto",
    spans: Iterable[str | Span] = (),
) -> Question:
    """A question about a text (or token ids, such as a conversation's). Raises a `PellucidError` for one that makes no sense.

    Without a target it is what the model finds likeliest; without a foil the likeliest of the others, but for a target of
    several tokens, whose log-probability is then explained. A tagger is asked about a `word` (its number, or the word where it
    first occurs; without it the first that is tagged), a masked language model about a mask: the first, or number `word`.
    """
    config = network.config
    if config.head == "none":
        raise ModelError(
            f"this {config.family} model gives vectors but no scores, so it says nothing that could be explained; "
            "give it a head with: pellucid finetune MODEL --task classify --data FILE --out RUN"
        )
    if not isinstance(text, str) and not (isinstance(text, Sequence) and all(isinstance(id, int) for id in text)):
        raise ConfigError("the text is neither a text nor token ids; give one of both")
    if isinstance(text, str) and not text.strip():
        raise ConfigError("the text to explain is empty; give at least one word")
    written = isinstance(text, str)
    text, ids, places = read(network, tokenizer, text)
    if len(ids) > config.context_length:
        raise ConfigError(
            f"the text has {len(ids):,} tokens, but the model's context is {config.context_length:,}; explain a part of it"
        )
    units, kind = units_of(text, places, by=by, spans=spans)
    if not units:
        raise ConfigError("the text to explain has no token of its own; give at least one word")
    if word is not None and config.head not in ("tag", "mlm"):
        raise ConfigError("a word is named only to a tagger or a masked language model; leave it out, or name spans")
    at = place_asked(network, tokenizer, text, ids, places, word)
    found = {"network": network, "tokenizer": tokenizer, "text": text, "ids": tuple(ids), "places": tuple(places)}
    found |= {"units": tuple(units), "by": kind, "at": at}
    names = LabelAnswers(network) if config.scores_labels else TokenAnswers(network, tokenizer, text if written else None)
    wanted = names.answer(target) if target is not None else None
    other = names.answer(foil) if foil is not None else None
    if config.problem == "regression" and config.head == "classify" and other is not None:
        raise ConfigError("a model that gives a number has nothing to hold it against; leave the foil out")
    if isinstance(names, LabelAnswers) and names.alone and other is not None:
        raise ConfigError(
            "a label that may hold beside others has nothing to be held against but its absence; leave the foil out"
        )
    first = Question(**found, target=wanted or names.numbered(0), foil=None)  # type: ignore[arg-type]
    if wanted is None or (other is None and len(wanted.ids) == 1):
        wanted, other = names.likeliest(logits_at(network, first.rows(ids)[0]), wanted, other)
    if other is not None and wanted.ids == other.ids:
        raise ConfigError(
            f"target and foil are both {wanted.name!r}, and a thing does not differ from itself; name another foil"
        )
    shared = 0 if other is None else min(len(wanted.ids), len(other.ids))
    if other is not None and wanted.ids[:shared] == other.ids[:shared]:
        raise ConfigError(
            f"{wanted.name!r} and {other.name!r} begin with each other, so what is compared is only the rest; "
            "put what they share at the end of the text"
        )
    longest = max(len(answer.ids) for answer in (wanted, other) if answer is not None)
    if config.generates and config.architecture != "encoder-decoder" and len(ids) + longest - 1 > config.context_length:
        raise ConfigError(
            f"the text has {len(ids):,} tokens and the answer {longest:,}, more than the model's context of "
            f"{config.context_length:,}; explain a part of the text"
        )
    return Question(**found, target=wanted, foil=other)  # type: ignore[arg-type]


def read(network: Network, tokenizer: Tokenizer, text: str | Sequence[int]) -> tuple[str, list[int], list[Span | None]]:
    """A text's tokens as the model reads it elsewhere, with the characters of each; of token ids the text that they spell."""
    if not isinstance(text, str):
        ids = [int(id) for id in text]
        if not ids:
            raise ConfigError("the text to explain is empty; give at least one token")
        encode_prompt(network, tokenizer, ids)  # refuses what is no token
        spelt, places = places_of(tokenizer, ids)
        return spelt, ids, places
    config = network.config
    special = config.head == "mlm" or config.architecture == "encoder-decoder"
    if config.head == "mlm" and tokenizer.mask is not None:
        text = text.replace(MASK, tokenizer.decode([tokenizer.mask], special=True).strip())
    inside, spans = tokenizer.encode_places(text, special=special)
    before, after = tokenizer.frame
    hidden = tokenizer.special_ids.union(tokenizer.sentinels)
    places = [None if id in hidden else span for id, span in zip(inside, spans, strict=True)]
    return text, [*before, *inside, *after], [*[None] * len(before), *places, *[None] * len(after)]


def place_asked(
    network: Network,
    tokenizer: Tokenizer,
    text: str,
    ids: Sequence[int],
    places: Sequence[Span | None],
    word: str | int | None,
) -> int | None:
    """The token that a tagger or a masked language model is asked about."""
    if network.config.head == "mlm":
        masks = [number for number, id in enumerate(ids) if id == tokenizer.mask]
        number = 0 if word is None else word
        if not masks:
            raise ConfigError(f"there is no mask in {text!r}; write {MASK} where a word is missing")
        if not isinstance(number, int) or not 0 <= number < len(masks):
            raise ConfigError(
                f"mask {number!r} is asked about, but the text has {len(masks)}, counted from 0; name one of them"
            )
        return masks[number]
    if network.config.head != "tag":
        return None
    words = words_of(text)
    if word is None:
        tags = logits_at(network, Row(tuple(ids), tuple(Asked(place, 0, 1.0) for place in range(len(ids))))).argmax(dim=-1)
        outside = network.config.labels.index("O") if "O" in network.config.labels else -1
        starts = [first for span in words.spans if (first := first_token(places, span)) is not None]
        tagged = [start for start in starts if int(tags[start]) != outside]
        if not tagged:
            raise ConfigError(
                "the model tags no word of the text (all are O), so name the one that you ask about: word='Paris'"
            )
        return tagged[0]
    if isinstance(word, str):
        spelt = words.words()
        if word not in spelt:
            near = difflib.get_close_matches(word, spelt, n=1)
            raise ConfigError(
                f"the word {word!r} does not occur in the text" + (f"; did you mean {near[0]!r}?" if near else "")
            )
        word = spelt.index(word)
    if not 0 <= word < len(words.spans):
        raise ConfigError(f"word {word} is asked about, but the text has {len(words.spans)}, counted from 0; name one of them")
    found = first_token(places, words.spans[word])
    if found is None:
        raise ConfigError(f"the word {words.words()[word]!r} has no token of its own in this tokenizer; ask about another")
    return found


def first_token(places: Sequence[Span | None], span: Span) -> int | None:
    """The first token that stands for a character of a span."""
    return next((n for n, place in enumerate(places) if place is not None and place[1] > span[0] and place[0] < span[1]), None)


class LabelAnswers:
    """Labels by their names."""

    def __init__(self, network: Network) -> None:
        self.config = network.config
        self.alone = self.config.head == "classify" and self.config.problem in ("multi", "regression")

    def numbered(self, number: int) -> Answer:
        return Answer(self.config.labels[number], (number,))

    def answer(self, name: str) -> Answer:
        labels = list(self.config.labels)
        if name not in labels:
            near = difflib.get_close_matches(name, labels, n=1)
            way_out = f"did you mean {near[0]!r}?" if near else f"it knows {', '.join(labels[:20])}"
            raise ConfigError(f"the model has no label {name!r}; {way_out}")
        return Answer(name, (labels.index(name),))

    def likeliest(self, logits: torch.Tensor, target: Answer | None, foil: Answer | None) -> tuple[Answer, Answer | None]:
        """What is left out: of labels that exclude one another the likeliest but for the other one."""
        order = logits.reshape(-1, len(self.config.labels))[0].argsort(descending=True).tolist()
        if target is None:
            target = self.numbered(next(n for n in order if foil is None or (n,) != foil.ids))
        if foil is None and not self.alone and len(order) > 1:
            foil = self.numbered(next(n for n in order if (n,) != target.ids))
        return target, foil


class TokenAnswers:
    """Tokens that go on with a text, or fill its gap, by what they spell."""

    def __init__(self, network: Network, tokenizer: Tokenizer, text: str | None) -> None:
        self.config, self.tokenizer = network.config, tokenizer
        self.text = text  # that the answer follows; None: token ids were given, which may be a conversation's

    def numbered(self, number: int) -> Answer:
        return Answer(self.tokenizer.decode([number], special=True), (number,))

    def answer(self, name: str) -> Answer:
        """What `name` is in tokens after the text. Raises `ConfigError` where both are parts of one token."""
        apart = self.config.architecture == "encoder-decoder"
        ids = self.tokenizer.encode(name, special=apart)  # whose answers name gaps: <extra_id_0>
        special = self.tokenizer.backend.token_to_id(name) if name else None
        if special in self.tokenizer.special_ids:
            return Answer(name, (special,))
        if not ids:
            raise ConfigError("the target or foil is empty; give a word, such as ' she'")
        if self.config.head == "mlm":
            if len(ids) > 1:
                parts = ", ".join(repr(self.tokenizer.decode([id])) for id in ids)
                raise ConfigError(f"{name!r} is {len(ids)} tokens ({parts}), but a mask stands for one; name one of them")
            return Answer(name, tuple(ids))
        if self.text is None or apart:
            return Answer(name, tuple(ids))
        before, both = self.tokenizer.encode(self.text), self.tokenizer.encode(self.text + name)
        if both[: len(before)] != before:
            at = next((n for n, (a, b) in enumerate(zip(before, both, strict=False)) if a != b), len(before))
            crossing = self.tokenizer.decode(both[at : at + 1])
            raise ConfigError(
                f"the end of the text and the beginning of {name!r} are one token, {crossing!r}; "
                "move a space from the end of the text to the beginning of the answer"
                if self.text.endswith(" ")
                else f"the end of the text and the beginning of {name!r} are one token, {crossing!r}; end the text before it"
            )
        return Answer(name, tuple(both[len(before) :]))

    def likeliest(self, logits: torch.Tensor, target: Answer | None, foil: Answer | None) -> tuple[Answer, Answer | None]:
        """What is left out: the likeliest token but for the other one."""
        known = min(self.tokenizer.vocab_size, logits.shape[-1])
        order = logits[0, :known].topk(min(3, known)).indices.tolist()
        if target is None:
            target = self.numbered(next(n for n in order if foil is None or foil.ids[0] != n))
        if foil is None:
            foil = self.numbered(next(n for n in order if n != target.ids[0]))
        return target, foil
