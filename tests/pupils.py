"""Models of a few thousand weights that nobody has taught yet, each in its folder, and what tests teach them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tiny import DOCUMENTS, randomised

from pellucid.network.build import build
from pellucid.network.families import FAMILIES
from pellucid.text.corpus import Corpus
from pellucid.text.tokenizer import Tokenizer
from pellucid.training.checkpoint import WholeModel

DECODERS = ("gpt2", "llama", "qwen3")
NEWER = {"d_model": 32, "layers": 2, "heads": 4, "kv_heads": 2, "d_head": 8, "d_mlp": 48}
OLDER = NEWER | {"kv_heads": 4}
SIZES: dict[str, dict[str, Any]] = {
    "bert": OLDER,
    "roberta": OLDER,
    "distilbert": OLDER,
    "gpt2": OLDER,
    "t5": OLDER | {"decoder_layers": 2},
    "llama": NEWER,
    "qwen3": NEWER,
    "lstm": {"d_model": 32, "layers": 1},
    "bag-of-words": {"d_model": 32, "layers": 1},
}
GOOD = ("What a good film, Alice!", "It was very good.", "She had a good day", "How good the book is")
BAD = ("What a sad film, Alice!", "It was very sad.", "She had a sad day", "How sad the book is")
REVIEWS = [
    {"text": f"{text} {DOCUMENTS[number][:12]}", "label": label}
    for number in range(5)
    for label, texts in (("fine", GOOD), ("poor", BAD))
    for text in texts
]
TALKS = [
    [{"role": "user", "content": "What is white?"}, {"role": "assistant", "content": "the rabbit"}],
    [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Who fell?"},
        {"role": "assistant", "content": "Alice"},
    ],
    [
        {"role": "user", "content": "Who is Dinah?"},
        {"role": "assistant", "content": "a cat"},
        {"role": "user", "content": "Whose?"},
        {"role": "assistant", "content": "hers"},
    ],
]
CHOICES = [
    {"prompt": f"Who {verb}?", "chosen": "Alice", "rejected": "a bat"} for verb in ("fell", "ran", "sat", "slept", "was late")
]
PACE = {"threads": 1, "precision": "fp32"}


def tokenizer() -> Tokenizer:
    """Characters, those of all the texts here."""
    return Tokenizer.train_chars(
        Corpus.of([*DOCUMENTS, "\n!?.,' 0123456789 abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"])
    )


def pupil(folder: Path, name: str = "qwen3", *, seed: int = 0, shaken: bool = False, **changes: Any) -> Path:
    """A model of a family with a tokenizer of characters, in a folder; with `shaken`, one whose every weight matters."""
    words = tokenizer()
    settings = {"vocab_size": words.vocab_size, "context_length": 128} | SIZES[name] | changes
    config = FAMILIES[name].new(**settings)
    WholeModel(words).save(randomised(config, seed) if shaken else build(config, seed=seed), folder)
    return folder


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]] = REVIEWS) -> Path:
    """Rows as JSON lines."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def teach(model: Path, rows: Path, out: Path, **options: Any) -> Any:
    """Fine-tune in this process, on one thread, in fp32."""
    import pellucid

    training = PACE | options.pop("training", {})
    section = {"train": [str(rows)]} | options.pop("data", {})
    return pellucid.finetune(model, section, out=out, training=training, **options)
