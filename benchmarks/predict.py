"""Labels for texts: how fast, in how much memory, and whether they are the same: ours against transformers' pipeline.

A classifier of sentences (all-MiniLM-L6-v2, fine-tuned for a moment) labels sentences that it has not seen, with all cores.
Ours is what `pellucid predict` does, in fp32 and in bf16, all the way from texts to labels; theirs is
pipeline("text-classification") in both types too, with batches of 1 and of 32: its fastest counts. Every measurement is a
process of its own, after some texts to warm up; the contenders go in turns; the figures are medians over the turns.

    python benchmarks/predict.py [--texts 1066] [--turns 3] [--model FOLDER]
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from alone import alone, minilm, quiet, sentences, write_csv

from pellucid.core.machine import cpu_cores, peak_memory

WARM = 64  # texts
TRAIN = 256


@dataclass(frozen=True)
class Labels:
    """What a contender said of each text, how long it took, and the peak of its memory."""

    seconds: float
    peak_bytes: int
    labels: list[str]
    scores: list[float]  # of the label that was chosen


def prepare(folder: Path, threads: int) -> None:
    """A classifier that both sides open: what it reads is the first token, as in transformers."""
    import pellucid

    path = write_csv(folder.parent / "train.csv", sentences(TRAIN, 0)[0])
    pellucid.finetune(
        minilm(),
        {"train": [str(path)], "validation_fraction": 0.0, "test_fraction": 0.0},
        out=folder,
        task={"name": "classify", "pooling": "first"},
        optimizer={"learning_rate": 2e-4},
        training={"epochs": 2.0, "threads": threads},
    )


def ours(folder: Path, texts: list[str], threads: int, precision: str) -> Labels:
    from pellucid.core.device import choose
    from pellucid.evaluation.predict import predict_texts
    from pellucid.loading import open_model

    opened = open_model(folder)
    compute = choose(precision=precision, threads=threads)
    network = opened.network.eval()
    network.hold_in(compute.dtype)
    predict_texts(network, opened.tokenizer, texts[:WARM])
    begun = time.perf_counter()
    found: list[Any] = predict_texts(network, opened.tokenizer, texts)
    seconds = time.perf_counter() - begun
    return Labels(seconds, peak_memory(), [one.label for one in found], [one.probability for one in found])


def theirs(folder: Path, texts: list[str], threads: int, precision: str, batch: int) -> Labels:
    import torch
    from transformers import pipeline

    quiet()
    torch.set_num_threads(threads)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    classify = pipeline("text-classification", model=str(folder), device="cpu", dtype=dtype, batch_size=batch)
    classify(texts[:WARM])
    begun = time.perf_counter()
    found = classify(texts)
    seconds = time.perf_counter() - begun
    return Labels(seconds, peak_memory(), [one["label"] for one in found], [one["score"] for one in found])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=int, default=1066)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--threads", type=int, default=cpu_cores())
    parser.add_argument("--model", type=Path, help="a classifier's folder; without it one is made")
    asked = parser.parse_args()
    texts = [text for text, _ in sentences(TRAIN, asked.texts)[1]]
    with TemporaryDirectory() as temporary:
        folder = asked.model
        if folder is None:
            run = Path(temporary) / "run"
            alone(prepare, run, asked.threads)
            folder = run / "model"
        given = (folder, texts, asked.threads)
        contenders = {f"ours_{precision}": partial(alone, ours, *given, precision) for precision in ("fp32", "bf16")}
        for precision in ("fp32", "bf16"):
            for batch in (1, 32):
                contenders[f"pipeline_{precision}_{batch}"] = partial(alone, theirs, *given, precision, batch)
        runs: dict[str, list[Labels]] = {name: [] for name in contenders}
        for _ in range(asked.turns):
            for name, contender in contenders.items():
                runs[name].append(found := contender())
                rate = len(texts) / found.seconds
                print(f"{name:<20} {rate:6,.0f} texts/s  {found.peak_bytes / 1e6:6,.0f} MB", file=sys.stderr)
    seconds = {name: median(one.seconds for one in found) for name, found in runs.items()}
    peaks = {name: median(one.peak_bytes for one in found) for name, found in runs.items()}
    mine, best = (min((n for n in runs if n.startswith(side)), key=lambda n: seconds[n]) for side in ("ours", "pipeline"))
    exact = runs["pipeline_fp32_1"][0]  # without filling, in fp32
    same = {
        name: sum(a == b for a, b in zip(found[0].labels, exact.labels, strict=True)) / len(texts)
        for name, found in runs.items()
    }
    pairs = zip(runs["ours_fp32"][0].scores, exact.scores, strict=True)
    result = {
        "ratio": seconds[best] / seconds[mine],
        "ratio_fp32": min(seconds[f"pipeline_fp32_{batch}"] for batch in (1, 32)) / seconds["ours_fp32"],
        "our_best": mine,
        "their_best": best,
        "texts_per_second": {name: len(texts) / value for name, value in seconds.items()},
        "peak_bytes": peaks,
        "labels_as_the_fp32_pipeline": same,
        "largest_difference_of_probabilities_in_fp32": max(abs(a - b) for a, b in pairs),
        "threads": asked.threads,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
