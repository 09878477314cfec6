"""Which columns of labelled data hold the text, the label and the split."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pellucid.core.errors import CorpusError
from pellucid.text.delimited import Delimited
from pellucid.text.fields import listed
from pellucid.text.tables import Table

TEXT = (
    "text",
    "sentence",
    "review",
    "content",
    "comment",
    "question",
    "utterance",
    "document",
    "message",
    "tweet",
    "post",
    "body",
    "query",
    "input",
    "文本",
    "内容",
    "评论",
    "句子",
)
CLASS = (
    "label",
    "labels",
    "category",
    "categories",
    "class",
    "classes",
    "intent",
    "sentiment",
    "target",
    "tag",
    "topic",
    "emotion",
    "stars",
    "rating",
    "标签",
    "类别",
    "分类",
)
NUMBER = ("label", "score", "rating", "stars", "target", "value", "y", "标签", "分数")
TOKENS = ("tokens", "words")
TAGS = ("tags", "ner_tags", "slots", "labels", "ner")
SPANS = ("spans", "entities")
SPLIT = ("split", "fold", "set", "subset")


@dataclass(frozen=True, slots=True)
class Columns:
    """The columns that the user named; `names` are those of csv and tsv files whose first row does not name them."""

    text: str | None = None
    label: str | None = None
    split: str | None = None
    names: tuple[str, ...] = ()


def find_column(tables: Sequence[Table], wanted: str | None, known: Sequence[str], option: str, role: str) -> str:
    """The column that is wanted, else the one with a known name; the first known name wins over the others.

    Raises `CorpusError` with the columns there are if none fits, or several do.
    """
    fields = list(tables[0].fields())
    if not fields:
        raise CorpusError(f"{tables[0].name} is empty (it has no rows); leave it out, or put labelled rows in it")
    if wanted is not None:
        if wanted in fields:
            return wanted
        near = difflib.get_close_matches(wanted, fields, n=1)
        way_out = f"did you mean {near[0]!r}?" if near else f"name one of these with {option}"
        raise CorpusError(f"{tables[0].name} has no column {wanted!r} ({listed(fields)}); {way_out}{_headless(tables[0])}")
    found = matching(fields, known)
    if len(found) == 1:
        return found[0]
    if found:
        raise CorpusError(
            f"{tables[0].name} has several columns that could be {role} ({listed(found)}); choose one with {option}"
        )
    raise CorpusError(
        f"{tables[0].name} has no column that is known to be {role} ({listed(fields)}); "
        f"name it with {option}{_headless(tables[0])}"
    )


def matching(fields: Iterable[str], known: Sequence[str]) -> list[str]:
    """The fields with a known name, in upper or lower case; only the one with the first of the names, if there is one."""
    found = [field for field in fields if field.strip().lower() in known]
    first = [field for field in found if field.strip().lower() == known[0]]
    return first if len(first) == 1 else found


def _headless(table: Table) -> str:
    """What else may be wrong with a file whose first row should name the columns."""
    if not isinstance(table, Delimited) or table.names:
        return ""
    return ", or if the first row is no header, name the columns with --column-names, for example --column-names text,label"
