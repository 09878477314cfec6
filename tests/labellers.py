"""Networks with a head for labels whose every weight matters, each with a tokenizer of characters, and texts for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tiny import DOCUMENTS, randomised

from pellucid.api import Model
from pellucid.network.families import FAMILIES
from pellucid.network.labels import with_labels
from pellucid.text.corpus import Corpus
from pellucid.text.tokenizer import Tokenizer

LABELS = ("no", "yes", "perhaps")
TEXTS = ["Alice ran", "a cat", "the White Rabbit was late", "Dinah", "No!", "down, down, down", "She fell asleep", "a book"]
LONG = "Alice was beginning to get very tired of sitting by her sister on the bank, and so on"
SIZE = {"context_length": 64, "d_model": 24, "layers": 2, "heads": 4, "kv_heads": 4, "d_head": 6, "d_mlp": 40}


def tokenizer() -> Tokenizer:
    return Tokenizer.train_chars(Corpus.of([*DOCUMENTS, *TEXTS, LONG]))


def labeller(
    family: str = "gpt2", *, head: Any = "classify", labels: Any = LABELS, seed: int = 0, size: Any = SIZE, **changes: Any
) -> Model:
    """A model that scores labels, in memory."""
    words = tokenizer()
    base = randomised(FAMILIES[family].new(vocab_size=words.vocab_size, **size))
    network = with_labels(base, head=head, labels=labels, seed=seed, **changes)
    with torch.no_grad():
        network.head.weight.normal_(0, 0.5, generator=torch.Generator().manual_seed(seed))
    return Model(network.eval(), words)


def saved(folder: Path, *words: Any, **changes: Any) -> Path:
    labeller(*words, **changes).save(folder)
    return folder
