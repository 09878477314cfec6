"""What a classifier or a tagger says of texts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from pellucid.core.errors import ModelError
from pellucid.network.masks import Mask
from pellucid.network.network import Network
from pellucid.text.alignment import NO_TOKEN, encode_words
from pellucid.text.encoded import Long, encode_texts
from pellucid.text.examples import Example, sequential_examples
from pellucid.text.tags import OUTSIDE
from pellucid.text.tokenizer import Tokenizer
from pellucid.text.word_spans import Words

TOKENS = 4096  # of a batch, filling included


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


@torch.inference_mode()
def label_scores(
    network: Network,
    tokenizer: Tokenizer,
    texts: Sequence[str],
    *,
    longest: int | None = None,
    long: Long = "error",
    place: Callable[[int], str] = "text {}".format,
    batch_tokens: int = TOKENS,
) -> npt.NDArray[np.float32]:
    """The scores (logits) of the labels of texts, [texts labels]; of a text in several windows their mean.

    Raises `CorpusError` for a text without tokens, or with more than the model takes unless it may be cut or split.
    """
    check_labels(network, "classify")
    longest = min(longest or network.config.context_length, network.config.context_length)
    encoded = encode_texts(tokenizer, texts, longest=longest, long=long, place=place)
    scores = torch.zeros(len(encoded.windows), len(network.config.labels))
    for logits, numbers in _forward(network, tokenizer, encoded.windows, batch_tokens):
        scores[torch.from_numpy(numbers)] = logits
    found = np.zeros((len(texts), scores.shape[1]), dtype=np.float32)
    np.add.at(found, encoded.texts, scores.numpy())
    found /= np.bincount(encoded.texts, minlength=len(texts))[:, None]
    return found


@torch.inference_mode()
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
    check_labels(network, "tag")
    longest = min(longest or network.config.context_length, network.config.context_length)
    encoded = encode_words(tokenizer, rows, longest=longest, long=long, place=place)
    tags = [[OUTSIDE] * len(row.spans) for row in rows]
    labels = network.config.labels
    for logits, numbers in _forward(network, tokenizer, [window.ids for window in encoded.windows], batch_tokens):
        best = logits.argmax(dim=-1).numpy()
        for row, number in zip(best, numbers.tolist(), strict=True):
            window = encoded.windows[number]
            for word, at in enumerate(window.starts.tolist(), window.first):
                if at != NO_TOKEN:
                    tags[window.row][word] = labels[row[at]]
    return tags


def _forward(network: Network, tokenizer: Tokenizer, windows: Sequence[Any], batch_tokens: int) -> Any:
    """Scores of windows in batches of like length, each with the numbers of its windows."""
    causal = network.config.architecture in ("decoder", "recurrent")
    pad = tokenizer.pad if tokenizer.pad is not None else tokenizer.end_of_text or 0
    for batch, numbers in sequential_examples([Example(ids, 0) for ids in windows], pad=pad, batch_tokens=batch_tokens):
        present = np.ones_like(batch.ids, dtype=np.bool_) if batch.present is None else batch.present
        mask = Mask.for_padded(torch.from_numpy(present).to(network.device), causal=causal)
        logits = network(torch.from_numpy(batch.ids).to(network.device), mask).logits
        yield logits.float().cpu(), numbers
