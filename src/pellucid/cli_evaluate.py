"""`pellucid evaluate`: how well a model predicts a text or labels, and how it does on tasks of lm-evaluation-harness."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Group, Parameter

from pellucid.cli_shared import HOLDING, USUAL, ReadingOptions, dashes, show_json, show_table
from pellucid.core.errors import ConfigError
from pellucid.core.files import write_json, write_text
from pellucid.core.precision import Holding
from pellucid.core.progress import console

if TYPE_CHECKING:
    from pellucid.evaluation.grading import Grades
    from pellucid.evaluation.harness import Scores
    from pellucid.evaluation.perplexity import Perplexity


@dataclass(frozen=True, kw_only=True)
class Labelled:
    """How labelled data is read, for classifiers and taggers; None leaves it to the default."""

    train: Annotated[list[str] | None, Parameter(help="labelled rows for the floors to learn from", negative=())] = None
    text_column: Annotated[str | None, Parameter(help="column of the text; without it recognised by its name")] = None
    label_column: Annotated[str | None, Parameter(help="column of the label; without it recognised by its name")] = None
    column_names: Annotated[str | None, Parameter(help="names of the columns of csv and tsv files without a header row")] = None
    multi_separator: Annotated[str | None, Parameter(help="what stands between the labels of a text that can have several")] = (
        None
    )
    on_empty: Annotated[Literal["error", "drop"] | None, Parameter(help="what to do with empty texts")] = None
    long: Annotated[
        Literal["error", "cut", "split"] | None, Parameter(help="what to do with texts that exceed the context")
    ] = None

    def given(self) -> dict[str, Any]:
        found = {name: value for name, value in asdict(self).items() if value is not None}
        return found | ({"column_names": self.column_names.split(",")} if self.column_names is not None else {})


LabelledOptions = Annotated[Labelled, Parameter(name="*", group=Group("Reading labelled data", sort_key=9))]
UNLABELLED = Labelled()


def evaluate(
    model: str,
    *,
    data: Annotated[list[str] | None, Parameter(negative=())] = None,
    context: int | None = None,
    stride: int | None = None,
    tasks: str | None = None,
    limit: int | None = None,
    num_fewshot: int | None = None,
    include_path: Path | None = None,
    batch_tokens: int = 4096,
    reading: ReadingOptions = USUAL,
    labelled: LabelledOptions = UNLABELLED,
    holding: Annotated[Holding | None, HOLDING] = None,
    report: Path | None = None,
    out: Path | None = None,
    force: bool = False,
    quiet: bool = False,
    json: bool = False,
) -> None:
    """Say how good a model is: at predicting a text, at labelling texts, or at the tasks of lm-evaluation-harness.

    How well does it predict text that it has not seen?

        pellucid evaluate runs/base --data held-out.txt

    Perplexity is how many tokens it hesitates between on average, so it compares models of one tokenizer; bits per byte compare
    any two. Documents (a text file; a row of a table) are read each by itself, through a window that slides over them.

    What do fewer bits cost? (Both perplexities, and the change.)

        pellucid evaluate runs/base --data held-out.txt --precision int4

    How often is a classifier or a tagger right? (With --train FILE beside what a majority guess and TF-IDF with logistic
    regression reach, which learn from these rows.)

        pellucid evaluate runs/reviews --data test.csv --report grades.html

    What does it know of grammar and of the world? (pip install 'pellucid[eval]'; the questions come from the hub)

        pellucid evaluate runs/base --tasks blimp,hellaswag --limit 100

    Parameters
    ----------
    model
        a run folder, a model folder, a .gguf file, a llama2.c .bin file, or a model's name on the hub
    data
        text to predict: files, folders, globs, - or hf:NAME; may be given several times. For a classifier or a tagger labelled
        rows: csv, tsv, jsonl, json or parquet
    context
        most tokens that the model reads at once; without it all that it can
    stride
        tokens by which the window moves, half the context unless given; a small one is fairer, and takes longer
    tasks
        tasks, groups or patterns of lm-evaluation-harness, separated by commas
    limit
        ask only this many questions of each task
    num_fewshot
        examples with their answers before each question; without it as each task says
    include_path
        a folder with task files of your own, to read local data for example; they are programs, so take those you trust
    batch_tokens
        tokens that are read at once; fewer need less memory
    report
        write the grades of a classifier to this file, as a page with pictures (.html)
    out
        write the result to this file too, as JSON
    force
        replace OUT and REPORT
    quiet
        show no progress
    json
        print the result as JSON
    """
    from pellucid import api
    from pellucid.evaluation.grading import Grades
    from pellucid.evaluation.perplexity import Perplexity

    for option, path in (("--out", out), ("--report", report)):
        if path is not None and path.exists() and not force:
            raise ConfigError(f"{path} exists already; pass --force to replace it, or choose another {option}")
    if report is not None and report.suffix.lower() not in (".html", ".htm"):
        raise ConfigError(f"{report} is to be a page; let --report end in .html")
    if force and out is None and report is None:
        raise ConfigError("--force has no effect without --out or --report; leave it out")
    options: dict[str, Any] = {"context": context, "stride": stride, "limit": limit, "num_fewshot": num_fewshot}
    options |= {"include_path": include_path, "batch_tokens": batch_tokens, **reading.given(), **labelled.given()}
    options |= {"data": dashes(data) if data else None, "tasks": tasks, "progress": console(quiet=quiet)}
    held = model if holding is None else api.load(model, **asdict(holding))
    found = api.evaluate(held, **options)
    full = api.evaluate(model, **options) if holding is not None and isinstance(found, Perplexity) else None
    if report is not None and not isinstance(found, Grades):
        raise ConfigError("--report has no effect on a model without a head for labels; leave it out")
    result = {"model": model, **(found.to_json() if isinstance(found, Grades) else asdict(found))}
    if holding is not None:
        result |= {"holding": asdict(holding)} | ({"as_stored": asdict(full)} if full is not None else {})
    if out is not None:
        write_json(out, result)
    if isinstance(found, Grades) and report is not None:
        write_text(report, found.to_html())
    if json:
        return show_json(result)
    if isinstance(found, Grades):
        return print(*of_labels(found, floors=labelled.train is not None), sep="\n")
    if isinstance(found, Perplexity):
        return show_table(of_text(found, full if isinstance(full, Perplexity) else None))
    print(of_tasks(found))


def of_labels(found: Grades, *, floors: bool) -> list[str]:
    """The grades, and how to see them beside floors."""
    hint = "With --train FILE they stand beside a majority guess and TF-IDF, which have to be taught from labelled rows."
    return [*found.lines(), *([] if floors else ["", hint])]


def of_text(found: Perplexity, full: Perplexity | None = None) -> dict[str, str]:
    """The table of a text; beside the `full` one, of weights as they are stored."""
    change = {}
    if full is not None:
        change["as stored"] = f"{full.perplexity:,.2f}, so {100 * (found.perplexity / full.perplexity - 1):+.2f} %"
    return {
        "perplexity": figure(f"{found.perplexity:,.2f}", found.perplexity_interval, "{:,.2f}"),
        **change,
        "bits per byte": figure(f"{found.bits_per_byte:.4f}", found.bits_per_byte_interval, "{:.4f}"),
        "loss": f"{found.loss:.4f} nats per token",
        "text": f"{found.tokens:,} tokens, {found.bytes:,} bytes, {found.documents:,} document{'s' * (found.documents != 1)}",
        "window": f"{found.context:,} tokens, moved by {found.stride:,}",
    }


def figure(value: str, interval: tuple[float, float] | None, form: str) -> str:
    return value if interval is None else f"{value}  (95 %: {form.format(interval[0])} to {form.format(interval[1])})"


def of_tasks(found: Scores) -> str:
    """The table of tasks, a line for each figure."""
    rows = [("task", "metric", "value", "", "questions", "examples")]
    for one in found.scores:
        metric = one.metric if one.filter == "none" else f"{one.metric} ({one.filter})"
        error = "" if one.stderr is None else f"± {one.stderr:.4f}"
        rows.append((one.task, metric, f"{one.value:.4f}", error, number(one.samples), number(one.shots)))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(f"{word:<{width}}" for word, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    notes = [f"± is lm-eval's standard error; lm-eval {found.harness}"]
    if found.shortened:
        notes.append(f"{found.shortened:,} requests were longer than the context and lost their beginning")
    return "\n".join([*lines, *notes])


def number(value: int | None) -> str:
    return "" if value is None else f"{value:,}"
