"""`pellucid finetune`: from a model and labelled data to a model that does the task."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Group, Parameter

from pellucid.cli_shared import merge, show_json, with_dashes
from pellucid.core.progress import console
from pellucid.core.run import RunFolder
from pellucid.training.finetune_recipe import LENGTHS, FinetuneRecipe, TaskName

Sources = Annotated[list[str] | None, Parameter(negative=())]
Fields = Annotated[
    FinetuneRecipe, Parameter(name="*", group=Group("Recipe", help="Any field of a recipe, by its dotted name.", sort_key=9))
]


def finetune(
    model: str,
    *,
    task: TaskName | None = None,
    data: Sources = None,
    out: Path,
    validation: Sources = None,
    test: Sources = None,
    text_column: str | None = None,
    label_column: str | None = None,
    split_column: str | None = None,
    column_names: Sources = None,
    multi_separator: str | None = None,
    max_labels: int | None = None,
    encoding: str | None = None,
    on_bad_bytes: Literal["error", "replace"] | None = None,
    html_breaks: bool | None = None,
    on_empty: Literal["error", "drop"] | None = None,
    long: Literal["error", "cut", "split", "drop"] | None = None,
    class_weights: Literal["none", "balanced"] | None = None,
    method: Literal["full", "lora", "head"] | None = None,
    epochs: float | None = None,
    steps: int | None = None,
    batch_size: int | None = None,
    learning_rate: float | None = None,
    patience: int | None = None,
    seed: int | None = None,
    seeds: int = 1,
    recipe: Path | None = None,
    resume: bool = False,
    force: bool = False,
    quiet: bool = False,
    json: bool = False,
    fields: Fields = FinetuneRecipe(),  # noqa: B008 - frozen
) -> None:
    """Teach a model a task from your own labelled data, and say how well it does it.

    The run folder OUT then holds the model (in Hugging Face layout, or with --method lora an adapter as peft has them),
    checkpoints, metrics, and report.html with curves and with grades on held-out rows, beside what a majority guess and TF-IDF
    with logistic regression reach from the same labels.

    Parameters
    ----------
    model
        a run folder, a model folder, a .gguf file, or a model's name on the hub
    task
        classify: a class, or several, for each text; regress: a number; tag: a tag for each word (BIO); continue: more text, as
        in pretraining; instruct: answers in conversations; seq2seq: a text for a text; prefer: choices of answers (DPO)
    data
        csv, tsv, jsonl, json or parquet files, folders or globs; for --task continue, text; for --task tag, also CoNLL
    out
        the run folder to make
    validation
        files to choose the best checkpoint by; without them a tenth of the data, stratified
    test
        files to grade the result on; without them a tenth of the data, stratified
    text_column
        column of the text; without it recognised by its name (text, sentence, review ...)
    label_column
        column of the label; without it recognised (label, category, class, sentiment ...); several with commas between
    split_column
        column that says train, validation or test; without it recognised (split, fold, set)
    column_names
        the columns of csv and tsv files that have no header row, in their order
    multi_separator
        what stands between the labels of a text that can have several
    max_labels
        allow so many distinct labels; without it 200
    encoding
        encoding of text files; without it UTF-8, or UTF-16 by its mark
    on_bad_bytes
        what to do with bytes that the encoding does not allow
    html_breaks
        turn HTML line breaks into newlines
    on_empty
        what to do with empty texts: error, or drop them and count
    long
        what to do with texts that exceed the context: error, cut their end, split them into parts, or drop them
    class_weights
        balanced: a class counts by the inverse of its frequency
    method
        full: all weights change; lora: low-rank adapters, a small file; head: only the head for labels
    epochs
        times that every example is learnt; without a length what suits
    steps
        length in optimizer steps, instead of epochs
    batch_size
        examples per step
    learning_rate
        peak learning rate; without it what suits method and size
    patience
        stop after so many evaluations without a lower validation loss
    seed
        of fresh weights and the order of the examples
    seeds
        run so many times with different seeds, into OUT/seed-0, OUT/seed-1 ..., and report the spread in OUT/report.html
    recipe
        a TOML file with settings; options override it
    resume
        go on with the run in OUT, bit for bit as if it had never stopped
    force
        delete the run in OUT and start anew
    quiet
        show no progress
    json
        print the result as JSON
    """
    from pellucid.finetuning import teach, teach_seeds

    shorthands: dict[str, dict[str, Any]] = {
        "task": {"name": task, "class_weights": class_weights},
        "data": {
            "train": data,
            "validation": validation,
            "test": test,
            "text_column": text_column,
            "label_column": label_column,
            "split_column": split_column,
            "column_names": column_names,
            "multi_separator": multi_separator,
            "max_labels": max_labels,
            "encoding": encoding,
            "on_bad_bytes": on_bad_bytes,
            "html_breaks": html_breaks,
            "on_empty": on_empty,
            "long": long,
        },
        "method": {"name": method},
        "optimizer": {"learning_rate": learning_rate},
        "training": {"epochs": epochs, "steps": steps, "batch_size": batch_size, "patience": patience, "seed": seed},
    }
    base = FinetuneRecipe.load(recipe) if recipe else FinetuneRecipe()
    chosen = base.override(merge(shorthands, with_dashes(fields.given()), LENGTHS))
    options: dict[str, Any] = {"resume": resume, "force": force, "progress": console(quiet=quiet)}
    report = RunFolder(out).report
    if seeds != 1:
        spread = teach_seeds(chosen, model, out, seeds=seeds, **options)
        if json:
            return show_json({"report": str(report)} | spread.to_json())
        return print(*spread.lines(), "", f"read the report   {report}", sep="\n")
    taught = teach(chosen, model, out, **options)
    grades, where = taught.grades, shlex.quote(str(out))
    if json:
        places = {"run": str(out), "model": str(taught.run.model), "report": str(report)}
        return show_json(places | {"grades": grades and grades.to_json()})
    print(*(grades.lines() if grades else ["No rows were held out to test on, so there are no grades."]), "", sep="\n")
    print(f"read the report   {report}")
    print(next_step(chosen, where))


def next_step(recipe: FinetuneRecipe, where: str) -> str:
    """What to try with the new model."""
    if recipe.task.name in (None, "classify", "tag", "regress"):
        return f"use it            pellucid predict {where} --data FILE --out FILE"
    if recipe.method.name == "lora":
        return f"merge it          pellucid adapter merge {where} --out FOLDER"
    return f'write text        pellucid generate {where} "Once upon a time"'
