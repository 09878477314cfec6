"""Pairs of texts for an encoder-decoder: what goes in, and what should come out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pellucid.core.errors import ConfigError, CorpusError, TokenizerError
from pellucid.text.batches import Ids
from pellucid.text.byte_pairs import is_text
from pellucid.text.conversations import Long, Taught, check_long, kept_rows
from pellucid.text.encoded import room_inside
from pellucid.text.examples import Example
from pellucid.text.tables import Table, kind
from pellucid.text.tabular import Sources, open_tables
from pellucid.text.tokenizer import Tokenizer

# The columns that are a source and a target, the surest first.
COLUMNS = (
    ("source", "target"),
    ("input", "output"),
    ("input", "target"),
    ("document", "summary"),
    ("article", "summary"),
    ("article", "highlights"),
    ("dialogue", "summary"),
    ("text", "summary"),
    ("question", "answer"),
    ("prompt", "completion"),
    ("prompt", "response"),
    ("text", "target"),
    ("text", "label"),
)


@dataclass(frozen=True, slots=True)
class Pair:
    """A text and what it should become. `place` is for errors."""

    source: str
    target: str
    place: str


def read_pairs(sources: Sources, *, source: str | None = None, target: str | None = None) -> list[Pair]:
    """The pairs in files (csv, tsv, jsonl, json, parquet), folders, patterns, `hf:NAME` or tables, in order.

    Their columns are `source` and `target`, or those of `COLUMNS` that are there. Raises `CorpusError`, with the place, where a
    column is missing, holds no text, or an empty one.
    """
    pairs = []
    for table in open_tables(sources):
        columns: tuple[str, str] | None = None
        for number, row in table.rows():
            columns = columns or _columns(table, row, source, target)
            place = table.place(number)
            pairs.append(Pair(text_in(row, columns[0], place), text_in(row, columns[1], place), place))
    if not pairs:
        raise CorpusError("there are no pairs in the data (it has no rows); give some")
    return pairs


def pair_examples(
    tokenizer: Tokenizer,
    pairs: Sequence[Pair],
    *,
    start: int,
    longest: int | None,
    longest_target: int | None = None,
    long: Long = "error",
) -> Taught:
    """Each pair as an example: the source in its frame for the encoder; for the decoder `start` and the target, an end of text
    behind the target.

    A pair of more than `longest` tokens of source or `longest_target` of target (as many, if None) is an error, is cut at the
    end of either ("cut"), or left out ("drop"). Raises `CorpusError` for that, and for a text that has no tokens.
    """
    check_long(long)
    if tokenizer.end_of_text is None:
        raise TokenizerError("the tokenizer has no end of text, so nothing could say where a target ends; use one that has one")
    room, most = room_inside(tokenizer, longest), longest if longest_target is None else longest_target
    if most is not None and most < 2:
        raise ConfigError(f"targets of {most} token leave no room for a text and its end; allow more")
    before, after = (np.array(ids, dtype=np.int64) for ids in tokenizer.frame)
    inputs = [ids.astype(np.int64) for ids in tokenizer.encode_batch([pair.source for pair in pairs])]
    outputs = [ids.astype(np.int64) for ids in tokenizer.encode_batch([pair.target for pair in pairs])]
    for pair, *both in zip(pairs, inputs, outputs, strict=True):
        if empty := [name for name, ids in zip(("source", "target"), both, strict=True) if not len(ids)]:
            raise CorpusError(f"{pair.place}: its {empty[0]} has no tokens; correct or remove it")
    lengths = [max(len(a) + len(before) + len(after), len(b) + 1) for a, b in zip(inputs, outputs, strict=True)]
    fits = [(room is None or len(a) <= room) and (most is None or len(b) < most) for a, b in zip(inputs, outputs, strict=True)]
    kept = kept_rows(
        fits, lengths, [pair.place for pair in pairs], longest if longest == most else f"{longest} and {most}", long
    )
    examples = [
        _example(
            np.concatenate([before, inputs[at][:room], after]), start, np.append(outputs[at], tokenizer.end_of_text)[:most]
        )
        for at in kept
    ]
    return Taught(
        examples,
        long=fits.count(False),
        longest=max(lengths),
        tokens=sum(len(example.ids) for example in examples),
        learned=sum(np.size(example.target) for example in examples),
    )


def text_in(row: Mapping[str, Any], column: str, place: str) -> str:
    """The text in a column of a row, if it is one and not empty."""
    value = row.get(column)
    if not isinstance(value, str):
        raise CorpusError(f"{place}, {column} holds {kind(value)}, not text; correct or remove the row")
    if not value.strip():
        raise CorpusError(f"{place}, {column} is empty; fill or remove the row")
    if not is_text(value):
        raise CorpusError(f"{place}, {column} holds half a character (a lone surrogate); correct or remove it")
    return value


def _example(ids: Ids, start: int, target: Ids) -> Example:
    return Example(ids, target, decoder_ids=np.concatenate([[start], target[:-1]]).astype(np.int64))


def _columns(table: Table, row: Mapping[str, Any], source: str | None, target: str | None) -> tuple[str, str]:
    """The names of the columns, of which any or none may be given."""
    named = ", ".join(f"{name!r:.40}" for name in list(row)[:20]) or "none"
    if missing := next((name for name in (source, target) if name is not None and name not in row), None):
        raise CorpusError(f"{table.name} has no column {missing!r}; it has {named}")
    possible = [
        (source or first, target or second)
        for first, second in COLUMNS
        if (source or first) in row and (target or second) in row and (source or first) != (target or second)
    ]
    if source is not None and target is not None and source != target:
        return source, target
    if not possible:
        raise CorpusError(
            f"{table.name} has the columns {named}, of which none are known as source and target; "
            "name them with --source-field and --target-field"
        )
    if "instruction" in row and "instruction" not in possible[0]:
        raise CorpusError(f"{table.name} has instructions with their inputs; pass --task instruct, or name --source-field")
    return possible[0]
