"""Predictions for the rows of files: read, said and written a part at a time, in the order of the rows."""

from __future__ import annotations

import csv
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from pellucid.core.errors import ConfigError, CorpusError
from pellucid.core.files import atomic_path
from pellucid.core.progress import Progress, Silent
from pellucid.evaluation.predict import (
    TOKENS,
    chances,
    check_labels,
    check_temperature,
    scores_and_long,
    tagged,
    tags_and_long,
)
from pellucid.network.network import Network
from pellucid.text.columns import Columns
from pellucid.text.encoded import Long, check_long
from pellucid.text.labelled import Reading, Unlabelled, read_texts
from pellucid.text.tables import first_line
from pellucid.text.tabular import Sources
from pellucid.text.tokenizer import Tokenizer
from pellucid.text.word_spans import Words

ROWS, CHARACTERS = 2000, 4_000_000  # of a part: whichever is reached first
PREFIX = "predicted_"  # of the new columns, if the rows have such already

Rows = Sequence[Mapping[str, Any]]
Write = Callable[[Rows], None]


@dataclass(frozen=True, kw_only=True)
class Predicted:
    """What was predicted: counts of rows, of those without a text, and of texts that were cut or split."""

    rows: int
    empty: int
    long: int
    columns: tuple[str, ...]  # that were added
    labels: dict[str, int]  # rows of each label; for tags spans of each kind; empty for numbers


@dataclass(frozen=True, kw_only=True)
class Said:
    """What is said of some rows: new fields of each; `labels` are counted, `silent` ones have no text."""

    fields: list[dict[str, Any]]
    labels: Counter[str]
    silent: int
    long: int


def predict_file(
    network: Network,
    tokenizer: Tokenizer,
    sources: Sources,
    out: Path | None,
    *,
    columns: Columns = Columns(),  # noqa: B008 - frozen
    reading: Reading = Reading(),  # noqa: B008 - frozen
    long: Long = "error",
    on_empty: Literal["error", "skip"] = "error",
    probabilities: bool = False,
    temperature: float | None = None,
    batch_tokens: int = TOKENS,
    rows: int = ROWS,
    force: bool = False,
    progress: Progress | None = None,
) -> Predicted:
    """Write the rows of `sources` with what the network says of each to `out`, in the form of its ending; None: to print.

    A row without a text is an error, or with `on_empty` "skip" stays where it is, with empty predictions. Memory is bounded by
    `rows` that are held at once. Raises a `PellucidError`; the file then is not there, or as it was.
    """
    check_labels(network, "classify", "tag")
    check_temperature(network, temperature)
    check_long(long)
    if batch_tokens < 1 or rows < 1:
        raise ConfigError(f"batches of {batch_tokens} tokens from {rows} rows make no sense; give at least 1")
    tags, number = network.config.head == "tag", network.config.problem == "regression"
    if probabilities and (tags or number):
        raise ConfigError("--probabilities has no effect on a model that gives none; leave it out")
    form = form_of(out, lists=tags, force=force)
    say = say_tags if tags else say_numbers if number else say_labels(probabilities=probabilities, temperature=temperature)
    found, empty, cut, written = Counter[str](), 0, 0, 0
    names: dict[str, str] = {}
    with form(out) as write, (progress or Silent()).task("predicting", None, "texts") as task:
        for part in parts(read_texts(sources, columns, reading=reading, tagged=tags, every=True), rows):
            if on_empty == "error":
                check_texts(row for row in part if not row.text.strip())
            said = say(network, tokenizer, part, long, batch_tokens)
            if said.silent and on_empty == "error":
                check_texts(row for row, new in zip(part, said.fields, strict=True) if is_silent(new))
            names = names or renamed(said.fields[0], part)
            write([joined(row, new, names) for row, new in zip(part, said.fields, strict=True)])
            found, empty, cut, written = found + said.labels, empty + said.silent, cut + said.long, written + len(part)
            task.advance(len(part))
        if not written:
            raise CorpusError("there are no rows to predict; give a file that has some")
    return Predicted(rows=written, empty=empty, long=cut, columns=tuple(names.values()), labels=dict(found.most_common()))


def parts(rows: Iterable[Unlabelled], most: int) -> Iterator[list[Unlabelled]]:
    """The rows in lists of so many, or fewer if they are long."""
    part, size = list[Unlabelled](), 0
    for row in rows:
        part.append(row)
        size += len(row.text)
        if len(part) == most or size > CHARACTERS:
            yield part
            part, size = [], 0
    if part:
        yield part


def say_labels(*, probabilities: bool, temperature: float | None) -> Callable[..., Said]:
    def say(network: Network, tokenizer: Tokenizer, part: Sequence[Unlabelled], long: Long, batch_tokens: int) -> Said:
        scores, cut = read(network, tokenizer, part, long, batch_tokens)
        labels, silent = network.config.labels, np.isnan(scores[:, 0])
        scores = np.nan_to_num(scores)
        probable = chances(network, scores, temperature).round(6)
        fields: list[dict[str, Any]]
        if network.config.problem == "multi":
            holding = [np.flatnonzero(row > 0) for row in scores]
            fields = [
                {"labels": [labels[at] for at in held], "probabilities": row[held].tolist()}
                for held, row in zip(holding, probable, strict=True)
            ]
            counted = Counter(labels[at] for held in holding for at in held)
        else:
            best = scores.argmax(axis=1)
            surest = probable[np.arange(len(best)), best].tolist()
            fields = [{"label": labels[at], "probability": p} for at, p in zip(best.tolist(), surest, strict=True)]
            counted = Counter(labels[at] for at in best[~silent].tolist())
        if probabilities:
            for new, row in zip(fields, probable.tolist(), strict=True):
                new |= {f"probability_{label}": p for label, p in zip(labels, row, strict=True)}
        return Said(fields=silenced(fields, silent), labels=counted, silent=int(silent.sum()), long=cut)

    return say


def say_numbers(network: Network, tokenizer: Tokenizer, part: Sequence[Unlabelled], long: Long, batch_tokens: int) -> Said:
    scores, cut = read(network, tokenizer, part, long, batch_tokens)
    silent = np.isnan(scores[:, 0])
    fields = [{"value": float(str(value))} for value in scores[:, 0]]  # as many digits as an fp32 has
    return Said(fields=silenced(fields, silent), labels=Counter(), silent=int(silent.sum()), long=cut)


def say_tags(network: Network, tokenizer: Tokenizer, part: Sequence[Unlabelled], long: Long, batch_tokens: int) -> Said:
    words = [row.words if row.words and row.words.spans else Words("", ()) for row in part]
    place = places(part)
    found, cut = tags_and_long(network, tokenizer, words, long=long, empty="skip", place=place, batch_tokens=batch_tokens)
    said = [tagged(row, tags) for row, tags in zip(words, found, strict=True)]
    fields = [{"words": list(one.words), "tags": list(one.tags), "spans": [asdict(span) for span in one.spans]} for one in said]
    silent = np.array([not one.words for one in said])
    counted = Counter(span.label for one in said for span in one.spans)
    return Said(fields=silenced(fields, silent), labels=counted, silent=int(silent.sum()), long=cut)


def read(network: Network, tokenizer: Tokenizer, part: Sequence[Unlabelled], long: Long, batch_tokens: int) -> Any:
    """The scores of the texts, NaN for those that are empty, and how many are too long."""
    texts = [row.text if row.text.strip() else "" for row in part]
    options: dict[str, Any] = {"long": long, "empty": "skip", "place": places(part), "batch_tokens": batch_tokens}
    return scores_and_long(network, tokenizer, texts, **options)


def places(part: Sequence[Unlabelled]) -> Callable[[int], str]:
    return lambda number: part[number].place


def silenced(fields: list[dict[str, Any]], silent: Any) -> list[dict[str, Any]]:
    """The fields, with nothing in those of rows without a text."""
    return [dict.fromkeys(new) if nothing else new for new, nothing in zip(fields, silent.tolist(), strict=True)]


def is_silent(fields: Mapping[str, Any]) -> bool:
    return all(value is None for value in fields.values())


def check_texts(empty: Iterable[Unlabelled]) -> None:
    """Refuse rows that have no text."""
    if places := [row.place for row in empty]:
        others = {1: "", 2: ", as is 1 other nearby"}.get(len(places), f", as are {len(places) - 1:,} others nearby")
        raise CorpusError(f"{places[0]}: the text is empty{others}; give it text, or pass --on-empty skip")


def renamed(new: Iterable[str], part: Sequence[Unlabelled]) -> dict[str, str]:
    """What the new columns are called: by their own names, or all with a prefix if the rows have one of these already."""
    taken = {name for row in part for name in row.fields or {}}
    names = {name: f"{PREFIX}{name}" if taken.intersection(new) else name for name in new}
    if twice := taken.intersection(names.values()):
        raise CorpusError(f"the rows have a column {sorted(twice)[0]!r}, as their predictions would; rename it")
    return names


def joined(row: Unlabelled, new: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """A row with its predictions."""
    fields = dict(row.fields or {})
    if twice := fields.keys() & names.values():
        raise CorpusError(f"{row.place}: a column {sorted(twice)[0]!r}, which earlier rows have not; rename it")
    return fields | {names[name]: value for name, value in new.items()}


def form_of(out: Path | None, *, lists: bool, force: bool) -> Callable[[Any], AbstractContextManager[Write]]:
    """How rows are written to a file of this name. Raises `ConfigError` for one that is taken, or whose ending says nothing."""
    if out is None:
        return printed
    forms = {".csv": separated, ".tsv": separated, ".jsonl": json_lines, ".parquet": parquet}
    form = forms.get(out.suffix.lower())
    if form is None:
        raise ConfigError(f"{out} does not say in which form to write; let --out end in {', '.join(forms)}")
    if lists and form is separated:
        raise ConfigError(f"{out} cannot hold words and tags, which are lists; let --out end in .jsonl or .parquet")
    if out.exists() and (out.is_dir() or not force):
        way_out = "choose another --out" if out.is_dir() else "pass --force to replace it, or choose another --out"
        raise ConfigError(f"{out} exists already; {way_out}")
    return form


@contextmanager
def printed(out: None) -> Iterator[Write]:  # noqa: ARG001 - a form as the others
    yield lambda rows: sys.stdout.writelines(map(as_line, rows))


@contextmanager
def json_lines(out: Path) -> Iterator[Write]:
    with atomic_path(out) as temporary, temporary.open("w", encoding="utf-8") as file:
        yield lambda rows: file.writelines(map(as_line, rows))


@contextmanager
def separated(out: Path) -> Iterator[Write]:
    """Values with commas or tabs between; what is no text or number as JSON."""
    with atomic_path(out) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter="\t" if out.suffix.lower() == ".tsv" else ",", lineterminator="\n")
        header: list[str] = []

        def write(rows: Rows) -> None:
            if not header:
                header.extend(dict.fromkeys(name for row in rows for name in row))
                writer.writerow(header)
            for row in rows:
                if strange := row.keys() - set(header):
                    raise CorpusError(
                        f"later rows have a column {min(strange)!r}, which the first have not; write to a .jsonl file"
                    )
                writer.writerow([as_cell(row.get(name)) for name in header])

        yield write


@contextmanager
def parquet(out: Path) -> Iterator[Write]:
    """Columns of the types that the first rows have."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with atomic_path(out) as temporary:
        opened: list[Any] = []

        def write(rows: Rows) -> None:
            try:
                if not opened:
                    names = dict.fromkeys(name for row in rows for name in row)
                    guessed = pa.Table.from_pylist([dict.fromkeys(names) | dict(row) for row in rows]).schema
                    fields = [field.with_type(pa.string()) if pa.types.is_null(field.type) else field for field in guessed]
                    opened.append(pq.ParquetWriter(temporary, pa.schema(fields)))
                schema = opened[0].schema
                if strange := {name for row in rows for name in row} - set(schema.names):
                    raise CorpusError(
                        f"later rows have a column {min(strange)!r}, which the first have not; write to a .jsonl file"
                    )
                opened[0].write_table(pa.Table.from_pylist(list(rows), schema=schema))
            except pa.ArrowException as error:
                raise CorpusError(
                    f"the rows have no one type for each column ({first_line(error)}); write to a .jsonl file"
                ) from None

        try:
            yield write
        finally:
            for writer in opened:
                writer.close()


def as_line(row: Mapping[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False, default=as_text) + "\n"


def as_cell(value: Any) -> Any:
    return json.dumps(value, ensure_ascii=False, default=as_text) if isinstance(value, list | dict | bool) else value


def as_text(value: Any) -> str:
    """A date or a time of a Parquet file."""
    if hasattr(value, "isoformat"):
        return str(value.isoformat())
    raise CorpusError(f"a column holds {type(value).__name__} values, which JSON has no form for; write to a .parquet file")
