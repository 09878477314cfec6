"""A text, a network of a few thousand weights and a run of a few steps: what the tests train."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from pellucid.core.device import Compute
from pellucid.core.progress import Silent
from pellucid.network.build import build
from pellucid.network.config import ModelConfig
from pellucid.network.families import FAMILIES
from pellucid.network.network import Network
from pellucid.text.corpus import Corpus
from pellucid.text.store import TokenStore
from pellucid.text.tokenizer import Tokenizer
from pellucid.text.view import TokenView
from pellucid.training.job import Job
from pellucid.training.preparation import dimensions, make_tokenizer, prepare
from pellucid.training.recipe import Recipe

# Lewis Carroll, Alice's Adventures in Wonderland (1865)
ALICE = """Alice was beginning to get very tired of sitting by her sister on the bank, and of having nothing to do.
Once or twice she had peeped into the book her sister was reading, but it had no pictures or conversations in it.
"And what is the use of a book," thought Alice, "without pictures or conversations?"
So she was considering in her own mind, as well as she could, for the hot day made her feel very sleepy and stupid.
Suddenly a White Rabbit with pink eyes ran close by her.
There was nothing so very remarkable in that; nor did Alice think it so very much out of the way to hear the Rabbit talk.
But when the Rabbit actually took a watch out of its waistcoat-pocket, and looked at it, Alice started to her feet.
She ran across the field after it, and was just in time to see it pop down a large rabbit-hole under the hedge.
In another moment down went Alice after it, never once considering how in the world she was to get out again.
The rabbit-hole went straight on like a tunnel for some way, and then dipped suddenly down.
Either the well was very deep, or she fell very slowly, for she had plenty of time as she went down to look about her.
First, she tried to look down and make out what she was coming to, but it was too dark to see anything.
Then she looked at the sides of the well, and noticed that they were filled with cupboards and book-shelves.
She took down a jar from one of the shelves as she passed; it was labelled "ORANGE MARMALADE", but it was empty.
"Well!" thought Alice to herself. "After such a fall as this, I shall think nothing of tumbling down stairs!"
Down, down, down. Would the fall never come to an end?
"I wonder how many miles I have fallen by this time?" she said aloud.
Down, down, down. There was nothing else to do, so Alice soon began talking again.
"Dinah will miss me very much to-night, I should think!" (Dinah was the cat.)
And here Alice began to get rather sleepy, and went on saying to herself, "Do cats eat bats? Do bats eat cats?"
Suddenly, thump! thump! down she came upon a heap of sticks and dry leaves, and the fall was over.
Alice was not a bit hurt, and she jumped up on to her feet in a moment: she looked up, but it was all dark overhead.
Before her was another long passage, and the White Rabbit was still in sight, hurrying down it.
There was not a moment to be lost: away went Alice like the wind."""

DOCUMENTS = ALICE.splitlines()

SECTIONS: dict[str, dict[str, Any]] = {
    "tokenizer": {"kind": "chars"},
    "model": {"d_model": 32, "layers": 1, "heads": 2, "d_mlp": 64, "context_length": 16},
    "training": {"batch_size": 4, "threads": 1, "precision": "fp32", "evaluate_windows": 8},
}

SMALL = FAMILIES["qwen3"].new(
    vocab_size=50, context_length=32, d_model=24, layers=2, heads=4, kv_heads=2, d_head=6, d_mlp=40, tied=False
)


def sections(**changes: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The sections of a tiny recipe, some fields changed."""
    return {name: SECTIONS.get(name, {}) | changes.get(name, {}) for name in SECTIONS | changes}


def options(**changes: dict[str, Any]) -> list[str]:
    """The same as options of the command line."""
    return [
        word
        for section, fields in sections(**changes).items()
        for name, value in fields.items()
        for word in (f"--{section}.{name.replace('_', '-')}", str(value))
    ]


def pretrain(
    out: Path, *, steps: int | None = 4, corpus: Sequence[str] = DOCUMENTS, resume: bool = False, **changes: Any
) -> Any:
    """Train the tiny network in this process."""
    import pellucid

    return pellucid.pretrain(Corpus.of(corpus), out=out, steps=steps, resume=resume, **sections(**changes))


def write_corpus(folder: Path, documents: Sequence[str] = DOCUMENTS) -> Path:
    """The documents as a folder of text files."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, text in enumerate(documents):
        (folder / f"{number:03}.txt").write_text(text, encoding="utf-8")
    return folder


def view(folder: Path, documents: Sequence[str] = DOCUMENTS) -> tuple[TokenView, Tokenizer]:
    """The documents as one stream of characters."""
    corpus = Corpus.of(documents)
    tokenizer = Tokenizer.train_chars(corpus)
    return TokenStore.build(corpus, tokenizer, folder, progress=Silent()).view(), tokenizer


def config(vocab_size: int, *, context_length: int = 16, **changes: Any) -> ModelConfig:
    """The dimensions of the tiny recipe."""
    shape: dict[str, Any] = {"d_model": 32, "layers": 1, "heads": 2, "kv_heads": 2, "d_head": 16, "d_mlp": 64}
    return FAMILIES["qwen3"].new(vocab_size=vocab_size, context_length=context_length, **shape | changes)


def randomised(config: ModelConfig = SMALL, seed: int = 0) -> Network:
    """A network whose every weight matters: a fresh one starts with zeros and ones."""
    network = build(config, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in network.parameters():
            weight.normal_(1.0 if weight.ndim == 1 else 0.0, 0.3, generator=generator)
    return network.eval()


def command(*words: object, **changes: Any) -> subprocess.Popen[str]:
    """`pellucid` as a process of its own, with pipes."""
    settings: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    settings["env"] = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, "-m", "pellucid.cli", *map(str, words)], **settings | changes)


def run_command(*words: object, text: str | None = None, timeout: float = 120, **changes: Any) -> tuple[int, str, str]:
    """The same, waited for: exit code, standard output, standard error."""
    process = command(*words, **changes | ({} if text is None else {"stdin": subprocess.PIPE}))
    try:
        out, err = process.communicate(text, timeout=timeout)
    finally:
        process.kill()
    return process.returncode, out, err


def job(corpus: Sequence[str] = DOCUMENTS, **changes: Any) -> Job:
    """What `pellucid pretrain` makes of the tiny recipe, before anything is decided by a probe."""
    recipe = Recipe.of(sections(**changes))
    texts = Corpus.of(corpus)
    tokenizer = make_tokenizer(texts, None, recipe.tokenizer, Silent())
    prepared = prepare(texts, None, recipe.data.validation_fraction, tokenizer, Silent())
    config = dimensions(recipe.model, prepared.tokenizer.vocab_size)
    return Job(recipe=recipe, prepared=prepared, config=config, compute=Compute(device="cpu", precision="fp32", threads=1))
