"""What a classifier or a tagger says of texts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pellucid.core.errors import ConfigError, ModelError
from pellucid.core.files import own_file, read_json, write_json
from pellucid.evaluation.calibration import COLDEST, HOTTEST, probabilities
from pellucid.network.network import Network
from pellucid.text.alignment import NO_TOKEN, encode_words
from pellucid.text.batches import Ids
from pellucid.text.encoded import Empty, Long, encode_texts
from pellucid.text.examples import Example, sequential_examples
from pellucid.text.tags import OUTSIDE, spans_of_tags
from pellucid.text.tokenizer import Tokenizer
from pellucid.text.word_spans import Words
from pellucid.training.objectives import mask_of

TOKENS = 2048  # of a batch, filling included; a GPU likes more
CALIBRATION = "calibration.json"  # beside the weights: what their logits are divided by to be as often right as they say

Scores = npt.NDArray[np.float32]  # [texts labels]


@dataclass(frozen=True, slots=True)
class OneLabel:
    """The likeliest label of a text, and the probability of each."""

    label: str
    probability: float
    probabilities: dict[str, float]


@dataclass(frozen=True, slots=True)
class SeveralLabels:
    """The labels that hold of a text, more probably than not, and the probability of each that there is."""

    labels: tuple[str, ...]
    probabilities: dict[str, float]


@dataclass(frozen=True, slots=True)
class Number:
    """The number that a text is given."""

    value: float


@dataclass(frozen=True, slots=True)
class TextSpan:
    """Some characters of a text, from `start` up to `end`, and what they are."""

    start: int
    end: int
    label: str
    text: str


@dataclass(frozen=True, slots=True)
class Tags:
    """The words of a text, the tag of each, and the spans that the tags make."""

    words: tuple[str, ...]
    tags: tuple[str, ...]
    spans: tuple[TextSpan, ...]


Prediction = OneLabel | SeveralLabels | Number | Tags


def check_labels(network: Network, *heads: str) -> None:
    """Refuse a network whose head is none of these."""
    config = network.config
    if config.head not in heads:
        raise ModelError(
            f"this {config.family} model has no head for labels, so it cannot classify; "
            "make it a classifier with: pellucid finetune MODEL --task classify --data FILE --out RUN"
            if not config.labels
            else f"this {config.family} model is made to {config.head}, not to {' or '.join(heads)}; use one that is"
        )
    if config.problem == "regression" and len(config.labels) != 1:
        raise ModelError(
            f"this {config.family} model gives {len(config.labels)} numbers for a text, but one is predicted; use one that does"
        )


def label_scores(
    network: Network,
    tokenizer: Tokenizer,
    texts: Sequence[str],
    *,
    longest: int | None = None,
    long: Long = "error",
    place: Callable[[int], str] = "text {}".format,
    batch_tokens: int = TOKENS,
) -> Scores:
    """The scores (logits) of the labels of texts, [texts labels]; of a text in several windows their mean.

    Raises `CorpusError` for a text without tokens, or with more than the model takes unless it may be cut or split.
    """
    options = {"longest": longest, "long": long, "place": place, "batch_tokens": batch_tokens}
    return scores_and_long(network, tokenizer, texts, **options)[0]  # type: ignore[arg-type]


@torch.inference_mode()
def scores_and_long(
    network: Network,
    tokenizer: Tokenizer,
    texts: Sequence[str],
    *,
    longest: int | None = None,
    long: Long = "error",
    empty: Empty = "error",
    place: Callable[[int], str] = "text {}".format,
    batch_tokens: int = TOKENS,
) -> tuple[Scores, int]:
    """`label_scores`, and how many texts were too long; those of a text without a token are NaN if `empty` is "skip"."""
    check_labels(network, "classify")
    encoded = encode_texts(tokenizer, texts, longest=most(network, longest), long=long, empty=empty, place=place)
    scores = torch.empty(len(encoded.windows), len(network.config.labels))
    for logits, numbers in forward(network, tokenizer, encoded.windows, batch_tokens):
        scores[torch.from_numpy(numbers)] = logits
    windows = np.bincount(encoded.texts, minlength=len(texts))[:, None]
    found = np.zeros((len(texts), scores.shape[1]), dtype=np.float32)
    np.add.at(found, encoded.texts, scores.numpy())
    return np.where(windows, found / np.maximum(windows, 1), np.nan).astype(np.float32), encoded.long


def word_tags(
    network: Network,
    tokenizer: Tokenizer,
    rows: Sequence[Words],
    *,
    longest: int | None = None,
    long: Long = "error",
    place: Callable[[int], str] = "text {}".format,
    batch_tokens: int = TOKENS,
) -> list[list[str]]:
    """The likeliest tag of each word of each row; O for one that has no token."""
    options = {"longest": longest, "long": long, "place": place, "batch_tokens": batch_tokens}
    return tags_and_long(network, tokenizer, rows, **options)[0]  # type: ignore[arg-type]


@torch.inference_mode()
def tags_and_long(
    network: Network,
    tokenizer: Tokenizer,
    rows: Sequence[Words],
    *,
    longest: int | None = None,
    long: Long = "error",
    empty: Empty = "error",
    place: Callable[[int], str] = "text {}".format,
    batch_tokens: int = TOKENS,
) -> tuple[list[list[str]], int]:
    """`word_tags`, and how many rows were too long; with `empty` "skip" a row may have no token at all."""
    check_labels(network, "tag")
    encoded = encode_words(tokenizer, rows, longest=most(network, longest), long=long, empty=empty, place=place)
    tags = [[OUTSIDE] * len(row.spans) for row in rows]
    labels = network.config.labels
    for logits, numbers in forward(network, tokenizer, [window.ids for window in encoded.windows], batch_tokens):
        best = logits.argmax(dim=-1).numpy()
        for row, number in zip(best, numbers.tolist(), strict=True):
            window = encoded.windows[number]
            for word, at in enumerate(window.starts.tolist(), window.first):
                if at != NO_TOKEN:
                    tags[window.row][word] = labels[row[at]]
    return tags, encoded.long


def most(network: Network, longest: int | None) -> int:
    """The tokens that a text may have."""
    return min(longest or network.config.context_length, network.config.context_length)


def forward(network: Network, tokenizer: Tokenizer, windows: Sequence[Ids], batch_tokens: int) -> Iterator[tuple[Tensor, Ids]]:
    """Scores of windows, in batches of like length, each with the numbers of its windows.

    The head computes in fp32, whatever the blocks do: it costs nothing, and in bf16 a score has two or three digits. In bf16
    oneDNN compiles kernels for each shape, so few widths are faster; in fp32 nothing is compiled.
    """
    pad = tokenizer.pad if tokenizer.pad is not None else tokenizer.end_of_text or 0
    examples, compiled = [Example(ids, 0) for ids in windows], network.dtype == torch.bfloat16
    for batch, numbers in sequential_examples(examples, pad=pad, batch_tokens=batch_tokens, any_width=not compiled):
        mask = mask_of(network, batch)
        hidden = network.encode(torch.from_numpy(batch.ids).to(network.device), mask)
        logits = network.answer(hidden.float(), mask).logits
        assert logits is not None, "a head for labels"
        yield logits.cpu(), numbers


def chances(network: Network, scores: Scores, temperature: float | None) -> npt.NDArray[np.float64]:
    """The probabilities [texts labels] that scores stand for."""
    return probabilities(scores.astype(np.float64) / (temperature or 1.0), multi=network.config.problem == "multi")


def predict_texts(
    network: Network,
    tokenizer: Tokenizer,
    texts: Sequence[str] | Sequence[Words],
    *,
    temperature: float | None = None,
    long: Long = "error",
    batch_tokens: int = TOKENS,
) -> list[Prediction]:
    """What the network says of each text; a tagger of its words. Raises a `PellucidError` for what it cannot read."""
    check_labels(network, "classify", "tag")
    check_temperature(network, temperature)
    if network.config.head == "tag":
        rows = [text for text in texts if isinstance(text, Words)]
        tags = word_tags(network, tokenizer, rows, long=long, batch_tokens=batch_tokens)
        return [tagged(words, found) for words, found in zip(rows, tags, strict=True)]
    plain = [text for text in texts if isinstance(text, str)]
    scores = label_scores(network, tokenizer, plain, long=long, batch_tokens=batch_tokens)
    if network.config.problem == "regression":
        return [Number(value) for value in scores[:, 0].tolist()]
    labels, found = network.config.labels, chances(network, scores, temperature)
    named = [dict(zip(labels, row, strict=True)) for row in found.tolist()]
    if network.config.problem == "multi":
        holds = [tuple(labels[at] for at in np.flatnonzero(row > 0)) for row in scores]
        return [SeveralLabels(kept, row) for kept, row in zip(holds, named, strict=True)]
    best = [labels[at] for at in scores.argmax(axis=1)]
    return [OneLabel(label, row[label], row) for label, row in zip(best, named, strict=True)]


def tagged(words: Words, tags: Sequence[str]) -> Tags:
    """The words of a text with their tags, as spans of characters too."""
    spans = [(words.spans[first][0], words.spans[stop - 1][1], kind) for first, stop, kind in spans_of_tags(tags)]
    found = tuple(TextSpan(start, end, kind, words.text[start:end]) for start, end, kind in spans)
    return Tags(tuple(words.words()), tuple(tags), found)


def check_temperature(network: Network, temperature: float | None) -> None:
    """Refuse a temperature that makes no sense, or has no effect."""
    if temperature is None:
        return
    if network.config.head != "classify" or network.config.problem == "regression":
        raise ConfigError("the temperature has no effect on a model that gives no probabilities; leave it out")
    if not COLDEST <= temperature <= HOTTEST:
        raise ConfigError(f"the temperature must lie between {COLDEST} and {HOTTEST}, not {temperature}")


def keep_temperature(folder: Path, temperature: float, rows: int) -> None:
    """Write beside a classifier's weights the temperature that was fitted on so many rows of validation data.

    One at the limit of what is tried says nothing but that the rows were too few: it is not kept.
    """
    if 1.01 * COLDEST < temperature < 0.99 * HOTTEST:
        write_json(folder / CALIBRATION, {"temperature": temperature, "rows": rows})


def copy_temperature(source: Path, destination: Path) -> None:
    """Copy the temperature that lies beside a classifier's weights, if there is one."""
    if (path := own_file(source, CALIBRATION)) is not None:
        write_json(destination / CALIBRATION, read_json(path))


def known_temperature(folder: Path | None) -> float | None:
    """The temperature that lies beside a classifier's weights; None if there is none. Raises `ModelError` for nonsense."""
    path = own_file(folder, CALIBRATION) if folder is not None and folder.is_dir() else None
    if path is None:
        return None
    said = read_json(path)
    value = said.get("temperature") if isinstance(said, dict) else None
    if isinstance(value, bool) or not isinstance(value, int | float) or not COLDEST <= value <= HOTTEST:
        raise ModelError(
            f"{path}: the temperature {value!r} is no number between {COLDEST} and {HOTTEST}; correct it, or delete the file"
        )
    return float(value)
