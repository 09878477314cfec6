"""Fine-tuning on real labels, on this machine: for each task the time, the scores with 95 % intervals, the floors, the verdict.

- sentences: all-MiniLM-L6-v2 on sentences of Rotten Tomatoes, two classes
- banking: all-MiniLM-L6-v2 on banking77, 77 classes, a few labels of each, the whole test set
- slots: all-MiniLM-L6-v2 on the slots of SNIPS, tags of words
- instruct: SmolLM2-135M-Instruct with LoRA on Alpaca conversations; the loss on others before and after
- chinese: ChnSentiCorp, two classes: a small model, pretrained here on song-dynasty poems and the training texts,
  and the same from scratch, for no Chinese weights are at hand

Every task is a process of its own. Lengths are fixed in advance and no test row is looked at before the end.

    python benchmarks/tasks.py [--tasks sentences banking slots instruct chinese] [--steps N] [--test-rows N] [--threads N]
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from alone import DATA, alone, minilm, sentences, write_csv
from finetune import Case, our_loss, prepare_conversations

from pellucid.core.machine import cpu_cores, peak_memory


@dataclass(frozen=True, kw_only=True)
class Budget:
    """How much is done, and where it is done."""

    folder: Path
    data: Path
    steps: int | None  # None: as long as the task asks
    test_rows: int | None  # None: all
    sentences: int
    per_class: int
    slots: int
    conversations: int
    pretraining_minutes: float
    threads: int

    def length(self, epochs: float) -> dict[str, Any]:
        """How long a run learns."""
        return {"epochs": epochs} if self.steps is None else {"steps": self.steps}

    def tested(self, rows: list[Any]) -> list[Any]:
        """The rows to test on: all, or some at random."""
        order = np.random.default_rng(0).permutation(len(rows))
        return rows if self.test_rows is None else [rows[at] for at in order[: self.test_rows]]


def taught(
    budget: Budget, model: Path, epochs: float, *, name: str = "run", test: Path, train: Path, **fields: Any
) -> dict[str, Any]:
    """The outcome of one fine-tuning run, all of whose rows are learnt: nothing is held out for validation."""
    import pellucid

    begun = time.perf_counter()
    data = {"train": [str(train)], "test": [str(test)], "validation_fraction": 0.0} | fields.pop("data", {})
    training = budget.length(epochs) | {"threads": budget.threads} | fields.pop("training", {})
    run = pellucid.finetune(model, data, out=budget.folder / name, training=training, **fields)
    assert run.grades is not None, "there are test rows"
    print(*run.grades.lines(), "", sep="\n", file=sys.stderr)
    grades = run.grades.to_json()
    return {
        "seconds": time.perf_counter() - begun,
        "seconds_of_learning": run.metrics[-1]["seconds"],
        "peak_bytes": peak_memory(),
        "test_rows": grades["rows"],
        "metric": grades["headline"],
        "scores": {system: figures[grades["headline"]] for system, figures in grades["metrics"].items()},
        "metrics": grades["metrics"]["model"],
        "verdict": grades["verdict"],
    }


def rotten_tomatoes(budget: Budget) -> dict[str, Any]:
    learnt, tested = sentences(budget.sentences, 1066)
    train = write_csv(budget.folder / "train.csv", learnt)
    test = write_csv(budget.folder / "test.csv", budget.tested(tested))
    return taught(budget, minilm(), 3.0, train=train, test=test, task="classify")


def banking(budget: Budget) -> dict[str, Any]:
    def read(part: str) -> list[tuple[str, str]]:
        with (budget.data / "labelled" / "banking77" / f"{part}.csv").open(encoding="utf-8", newline="") as file:
            return [(row["text"], row["category"]) for row in csv.DictReader(file)]

    rows, of_class = read("train"), defaultdict[str, list[tuple[str, str]]](list)
    for at in np.random.default_rng(0).permutation(len(rows)):
        of_class[rows[at][1]].append(rows[at])
    few = [row for label in sorted(of_class) for row in of_class[label][: budget.per_class]]
    train, test = (write_csv(budget.folder / f"{n}.csv", r) for n, r in (("train", few), ("test", budget.tested(read("test")))))
    optimizer = {"learning_rate": 2e-4, "head_learning_rate": 2e-3}
    return taught(budget, minilm(), 16.0, train=train, test=test, task="classify", optimizer=optimizer)


def slots(budget: Budget) -> dict[str, Any]:
    from pellucid.text.tabular import open_tables

    def read(kind: str) -> list[Any]:
        files = sorted((budget.data / "labelled" / "snips").glob(f"{kind}_*.json"))
        return [row for table in open_tables(files, on_bad_bytes="replace") for _, row in table.rows()]

    rows = read("train")
    order = np.random.default_rng(0).permutation(len(rows))[: budget.slots]
    paths = []
    for name, chosen in (("train", [rows[at] for at in order]), ("test", budget.tested(read("validate")))):
        paths.append(budget.folder / f"{name}.jsonl")
        paths[-1].write_text("".join(json.dumps(row) + "\n" for row in chosen), encoding="utf-8")
    return taught(budget, minilm(), 6.0, train=paths[0], test=paths[1], task="tag", optimizer={"learning_rate": 3e-4})


def instruct(budget: Budget) -> dict[str, Any]:
    import pellucid

    held_out = 50 if budget.test_rows is None else budget.test_rows
    prepare_conversations(budget.folder, budget.conversations, held_out, budget.data / "instruct" / "alpaca_en_demo.json")
    case = Case(name="instruct", folder=budget.folder, epochs=1.0, batch=8, rate=2e-4, threads=budget.threads)
    before = our_loss(pellucid.load(budget.folder / "model"), case)
    found = taught(
        budget,
        budget.folder / "model",
        1.0,
        train=budget.folder / "train.rows.json",
        test=budget.folder / "test.rows.json",
        task={"name": "instruct", "pack": False},
        method={"name": "lora"},
        training={"batch_size": case.batch},
    )
    return found | {"loss_before": before, "loss_after": our_loss(pellucid.load(budget.folder / "run"), case)}


def chinese(budget: Budget) -> dict[str, Any]:
    import pellucid
    from pellucid.text.corpus import Corpus

    def read(part: str) -> list[tuple[str, str]]:
        lines = (budget.data / "labelled" / "chnsenticorp" / f"{part}.tsv").read_text(encoding="utf-8").splitlines()
        return [(text, label) for text, _, label in (line.rpartition("\t") for line in lines) if text.strip()]

    learnt = read("train")
    poems = [
        "\n".join(poem["paragraphs"])
        for path in sorted((budget.data / "text" / "songci").glob("ci.song.*.json"))
        for poem in json.loads(path.read_text(encoding="utf-8"))
        if poem["paragraphs"]
    ]
    begun = time.perf_counter()
    base = pellucid.pretrain(
        Corpus.of([*poems, *(text for text, _ in learnt)]),
        out=budget.folder / "base",
        minutes=budget.pretraining_minutes,
        tokenizer={"vocab_size": 8192},  # bytes: a test may hold a character that nothing before it had
        model={"size": "2M", "context_length": 256},
        training={"threads": budget.threads},
    )
    pretraining = time.perf_counter() - begun
    train = write_csv(budget.folder / "train.csv", learnt)
    test = write_csv(budget.folder / "test.csv", budget.tested(read("dev")))
    options: dict[str, Any] = {"train": train, "test": test, "task": "classify", "data": {"long": "cut"}}
    options["optimizer"] = {"learning_rate": 1e-3}
    return {
        "pretrained": taught(budget, base.path, 3.0, name="pretrained", **options) | {"seconds_of_pretraining": pretraining},
        "from_scratch": taught(budget, base.path, 3.0, name="from_scratch", method={"fresh": True}, **options),
    }


TASKS: dict[str, Callable[[Budget], dict[str, Any]]] = {
    "sentences": rotten_tomatoes,
    "banking": banking,
    "slots": slots,
    "instruct": instruct,
    "chinese": chinese,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--steps", type=int, help="of every fine-tuning run; without it what the task asks")
    parser.add_argument("--test-rows", type=int, help="to grade on; without it all, and 50 conversations")
    parser.add_argument("--sentences", type=int, default=1000)
    parser.add_argument("--per-class", type=int, default=10, help="labels of each class of banking77")
    parser.add_argument("--slots", type=int, default=2000, help="utterances of SNIPS")
    parser.add_argument("--conversations", type=int, default=200)
    parser.add_argument("--pretraining-minutes", type=float, default=2.0, help="of the Chinese model")
    parser.add_argument("--data", type=Path, default=DATA, help="the folder of real data")
    parser.add_argument("--threads", type=int, default=cpu_cores())
    asked = vars(parser.parse_args())
    names, result = asked.pop("tasks"), {}
    with TemporaryDirectory() as temporary:
        budget = Budget(folder=Path(temporary), **asked)
        for name in names:
            folder = budget.folder / name
            folder.mkdir()
            print(f"== {name}", file=sys.stderr)
            result[name] = alone(TASKS[name], replace(budget, folder=folder))
    print(json.dumps({"threads": budget.threads, "tasks": result}))


if __name__ == "__main__":
    main()
