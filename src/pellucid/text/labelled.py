"""Labelled rows: texts with a class, several, a number, or a tag for each word, each with the place that it comes from."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from pellucid.core.errors import ConfigError, CorpusError
from pellucid.text.columns import CLASS, NUMBER, SPANS, SPLIT, TAGS, TEXT, TOKENS, Columns, find_column, matching
from pellucid.text.corpus import LINE_BREAK
from pellucid.text.fields import listed, text_of, whole
from pellucid.text.tables import Table, kind
from pellucid.text.tabular import Sources, open_tables
from pellucid.text.tags import OUTSIDE, check_tags, repaired, tags_of_spans
from pellucid.text.word_spans import Words, joined, words_of

Task = Literal["classify", "regress", "tag"]
Label = str | float | tuple[str, ...]

MOST_LABELS = 200  # more distinct ones, and the column is probably not the label
FEW = 20  # with no more distinct labels than this, nothing is strange


@dataclass(frozen=True, slots=True)
class Labelled:
    """A text and its label: a class, a number, classes (multi-label), or the tags of its `words`."""

    text: str
    label: Label
    split: str | None
    place: str
    words: Words | None = None


@dataclass(frozen=True, slots=True)
class Unlabelled:
    """A text, or the words of one, where it comes from, and all fields of its row if these were asked for."""

    text: str
    place: str
    words: Words | None = None
    fields: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class LabelledRows:
    """What was read, from which column, and counts: rows left out because their text is empty, tags that were repaired."""

    rows: list[Labelled]
    label_column: str
    multi: bool = False  # rows have any number of classes
    empty: int = 0
    repaired: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """How labelled data is read, beside which columns."""

    encoding: str | None = None
    on_bad_bytes: Literal["error", "replace"] = "error"
    html_breaks: bool = False
    on_empty: Literal["error", "drop"] = "error"
    multi_separator: str | None = None  # between the classes of a row, for multi-label data in text files

    def __post_init__(self) -> None:
        if self.on_empty not in ("error", "drop"):
            raise ConfigError(f"--on-empty is {self.on_empty!r}; it must be error or drop")
        if self.multi_separator == "":
            raise ConfigError("--multi-separator is empty; give what stands between two labels, for example ,")


def read_rows(
    sources: Sources,
    columns: Columns,
    task: Task,
    *,
    reading: Reading = Reading(),
    max_labels: int | None = None,
    few: bool = True,
) -> LabelledRows:
    """All labelled rows of files, folders, `hf:NAME` or tables in memory (`tabular.given`).

    `few` holds the number of distinct labels against what labels are like (`max_labels`, by default 200): rows that are only
    measured on need not pass. Raises `CorpusError`, with the place, for rows that cannot be learnt from.
    """
    if task not in get_args(Task):
        raise ConfigError(f"the task {task!r} has no labelled rows; choose {', '.join(get_args(Task))}")
    if reading.multi_separator is not None and task != "classify":
        raise ConfigError(f"--multi-separator has no effect on --task {task}; leave it out")
    tables = _opened(sources, columns, reading, task == "tag")
    split = _split_column(tables, columns.split)
    read = _tagged(tables, columns, split, reading) if task == "tag" else _labelled(tables, columns, split, reading, task)
    if not read.rows:
        raise CorpusError(f"{tables[0].name} has no rows with a text; put labelled texts in it")
    if few and task == "classify":
        check_labels(read, max_labels)
    return read


def read_texts(
    sources: Sources, columns: Columns, *, reading: Reading = Reading(), tagged: bool = False, every: bool = False
) -> Iterator[Unlabelled]:
    """The texts of rows, one after another in bounded memory, labels or not; `tagged` for those whose words are to be tagged.

    `every` row comes with all its fields, those without a text too. Else raises `CorpusError`, with the place, for a row
    without a text, unless such rows are to be dropped.
    """
    if reading.multi_separator is not None or columns.label is not None or columns.split is not None:
        raise ConfigError("only texts are read: the columns of labels and splits have no effect; leave them out")
    tables = _opened(sources, columns, reading, tagged)
    known = next(iter(matching(tables[0].fields(), TOKENS)), None) if tagged else None
    column = find_column(tables, columns.text or known, TEXT, "--text-column", "the text")
    for table in tables:
        for number, row in table.rows() if every else table.column(column):
            place = table.place(number)
            if tagged and isinstance(row.get(column), list):
                tokens, _ = check_tags(row[column], [OUTSIDE] * len(row[column]), place)
                words = joined([whole(token, place, reading.on_bad_bytes) for token in tokens])
            else:
                text = _text(table, number, row, column, reading)
                words = words_of(text) if tagged else Words(text, ())
            if every or words.text.strip():
                yield Unlabelled(words.text, place, words if tagged else None, row if every else None)
            else:
                _check_empty([place], reading)


def label_names(rows: Sequence[Labelled]) -> list[str]:
    """The classes of some rows in order, whole numbers by size; for tags O, then B- and I- of each kind."""
    names = {name for row in rows for name in classes_of(row)}
    if any(row.words is not None for row in rows):
        kinds = sorted({name[2:] for name in names if name != OUTSIDE})
        return [OUTSIDE, *(f"{begin}-{name}" for name in kinds for begin in "BI")]
    if all(re.fullmatch(r"-?[0-9]{1,18}", name) for name in names):
        return sorted(names, key=lambda name: (int(name), name))
    return sorted(names)


def classes_of(row: Labelled) -> tuple[str, ...]:
    """The classes or tags of a row; none if its label is a number."""
    return row.label if isinstance(row.label, tuple) else (row.label,) if isinstance(row.label, str) else ()


def check_labels(read: LabelledRows, most: int | None = None) -> None:
    """Raise `CorpusError` if the labels look like numbers to learn, or like no labels at all."""
    names, rows = label_names(read.rows), len(read.rows)
    if len(names) > FEW and all(map(_is_number, names)) and any(float(name) % 1 for name in names):
        raise CorpusError(
            f"column {read.label_column!r} has {len(names):,} distinct numbers, such as {names[0]}; "
            "did you mean --task regress?"
        )
    strange = len(names) > (MOST_LABELS if most is None else most)
    if strange or (most is None and len(names) > FEW and 2 * len(names) > rows):
        raise CorpusError(
            f"column {read.label_column!r} has {len(names):,} distinct values in {rows:,} rows, so it is probably not the "
            f"label; name another with --label-column, or pass --max-labels {len(names)}"
        )


def _opened(sources: Sources, columns: Columns, reading: Reading, tagged: bool) -> list[Table]:
    return open_tables(
        sources, names=columns.names, encoding=reading.encoding, on_bad_bytes=reading.on_bad_bytes, tagged=tagged
    )


def _labelled(
    tables: Sequence[Table], columns: Columns, split: str | None, reading: Reading, task: Literal["classify", "regress"]
) -> LabelledRows:
    text = find_column(tables, columns.text, TEXT, "--text-column", "the text")
    several = columns.label.split(",") if columns.label and columns.label not in tables[0].fields() else []
    if task == "classify" and len(several) > 1:
        if reading.multi_separator is not None:
            raise ConfigError("--multi-separator has no effect with a column for each label; leave it out")
        named = [find_column(tables, name.strip(), (), "--label-column", "a label") for name in several]
        label, multi = ",".join(named), True
    else:
        named, multi = [], reading.multi_separator is not None
        label = find_column(tables, columns.label, CLASS if task == "classify" else NUMBER, "--label-column", "the label")
    if label == text:
        raise CorpusError(f"column {label!r} cannot be both the text and the label; name the other with --label-column")
    rows, empty = [], list[str]()
    for table, number, row in _rows(tables):
        place = table.place(number)
        read = _text(table, number, row, text, reading)
        if not read.strip():
            empty.append(place)
            continue
        if named:
            value: Label = tuple(name for name in named if _flag(_value(row, name, place), name, place))
        elif task == "regress":
            value = _number(_value(row, label, place), label, place)
        else:
            found = _value(row, label, place, optional=multi)
            multi = multi or isinstance(found, list)
            value = _classes(found, label, place, reading.multi_separator) if multi else _class(found, label, place)
        rows.append(Labelled(read, value, _split(row, split, place), place))
    if wrong := next((row for row in rows if multi and not isinstance(row.label, tuple)), None):
        raise CorpusError(f"{wrong.place}: the label {wrong.label!r} is no list, as those of other rows; make it one")
    _check_empty(empty, reading)
    return LabelledRows(rows, label, multi=multi, empty=len(empty))


def _tagged(tables: Sequence[Table], columns: Columns, split: str | None, reading: Reading) -> LabelledRows:
    if reading.html_breaks:
        raise ConfigError("--html-breaks has no effect on --task tag, whose words are given; leave it out")
    fields = tables[0].fields()
    text = columns.text or next(iter(matching(fields, TOKENS)), None)
    text = find_column(tables, text, TEXT, "--text-column", "the text")
    lists = next((isinstance(row.get(text), list) for _, _, row in _rows(tables)), False)
    known, role = (TAGS, "the tags") if lists else (SPANS, "the spans")
    label = find_column(tables, columns.label, known, "--label-column", role)
    rows, empty, mended = [], list[str](), 0
    for table, number, row in _rows(tables):
        place = table.place(number)
        found = _value(row, label, place)
        if isinstance(row.get(text), list):
            tokens, tags = check_tags(row[text], found, place)
            words = joined([whole(token, place, reading.on_bad_bytes) for token in tokens])
        else:
            words, tags = tags_of_spans(_text(table, number, row, text, reading), found, place)
        if not words.spans:
            empty.append(place)
            continue
        tags, count = repaired(tags)
        mended += count
        rows.append(Labelled(words.text, tuple(tags), _split(row, split, place), place, words))
    _check_empty(empty, reading)
    return LabelledRows(rows, label, empty=len(empty), repaired=mended)


def _rows(tables: Sequence[Table]) -> Iterator[tuple[Table, int, Mapping[str, Any]]]:
    return ((table, number, row) for table in tables for number, row in table.rows())


def _text(table: Table, number: int, row: Mapping[str, Any], column: str, reading: Reading) -> str:
    if row.get(column, "") is None:
        return ""
    text = whole(text_of(table, number, row, column), table.place(number), reading.on_bad_bytes)
    return LINE_BREAK.sub("\n", text) if reading.html_breaks else text


def _check_empty(places: Sequence[str], reading: Reading) -> None:
    if places and reading.on_empty == "error":
        others = {1: "", 2: ", as is 1 other"}.get(len(places), f", as are {len(places) - 1:,} others")
        raise CorpusError(f"{places[0]}: the text is empty{others}; give it text, or pass --on-empty drop")


def _split_column(tables: Sequence[Table], wanted: str | None) -> str | None:
    """The column that says which split a row is in: the wanted one, else the one with a known name, if there is one."""
    if wanted is None and not matching(tables[0].fields(), SPLIT):
        return None
    return find_column(tables, wanted, SPLIT, "--split-column", "the split")


def _split(row: Mapping[str, Any], column: str | None, place: str) -> str | None:
    if column is None:
        return None
    value = _value(row, column, place, role="split")
    return value if isinstance(value, str) else str(value)


def _value(row: Mapping[str, Any], column: str, place: str, *, optional: bool = False, role: str = "label") -> Any:
    """What a row has in a column; `CorpusError` if that is nothing, unless that is `optional`."""
    if column not in row:
        raise CorpusError(f"{place}: no column {column!r} ({listed(row)}); correct or remove the row")
    value = row[column]
    missing = value is None or (isinstance(value, float) and math.isnan(value))
    if missing or (isinstance(value, str) and value.strip().lower() in ("", "nan")):
        if optional:
            return None
        said = "NaN" if str(value).strip().lower() == "nan" else "empty"
        raise CorpusError(f"{place}: the {role} is {said} (column {column!r}); give it one, or remove the row")
    return value


def _class(value: Any, column: str, place: str) -> str:
    """A class as text: whole numbers, true and false as they are written in JSON."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float) and math.isfinite(value):
        return str(int(value)) if value.is_integer() else str(value)
    raise CorpusError(f"{place}: the label holds {kind(value)} (column {column!r}); it must be a text or a number")


def _classes(value: Any, column: str, place: str, separator: str | None) -> tuple[str, ...]:
    """The classes of a row of multi-label data, each once; there may be none."""
    if value is None:
        return ()
    if isinstance(value, str) and separator is not None:
        value = [part.strip() for part in value.split(separator) if part.strip()]
    if isinstance(value, list | tuple | set | frozenset):
        if any(part is None or part == "" for part in value):
            raise CorpusError(f"{place}: one of the labels is empty (column {column!r}); correct or remove the row")
        return tuple(dict.fromkeys(_class(part, column, place) for part in value))
    raise CorpusError(
        f"{place}: the label {value!r} is no list, as those of other rows (column {column!r}); make it one, "
        "or pass --multi-separator"
    )


def _flag(value: Any, column: str, place: str) -> bool:
    said = str(value).strip().lower()
    if said in ("1", "true", "1.0"):
        return True
    if said in ("0", "false", "0.0"):
        return False
    raise CorpusError(f"{place}: column {column!r} holds {value!r}; a column for each label holds 0 or 1")


def _number(value: Any, column: str, place: str) -> float:
    if not isinstance(value, bool) and isinstance(value, int | float | str) and _is_number(str(value)):
        return float(value)
    raise CorpusError(
        f"{place}: the label {value!r} is no finite number (column {column!r}), which --task regress needs; "
        "correct it, or pass --task classify"
    )


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False
