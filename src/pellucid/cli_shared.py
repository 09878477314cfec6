"""What the commands share: how files are read, standard input under its name, results as JSON and as tables."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Group, Parameter

from pellucid.core.errors import ConfigError, CorpusError
from pellucid.core.precision import Holding
from pellucid.core.progress import Lines

if TYPE_CHECKING:
    from pellucid.model import Model

STDIN = "<standard input>"  # stands for "-" while the words are parsed: the parser takes a lone dash for an option


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How files of text are read; None leaves it to the default."""

    text_field: Annotated[str | None, Parameter(help="column that holds the text in jsonl, csv, tsv and parquet")] = None
    encoding: Annotated[str | None, Parameter(help="encoding of text files; without it UTF-8, or UTF-16 by its mark")] = None
    on_bad_bytes: Annotated[Literal["error", "replace"] | None, Parameter(help="what to do with other bytes")] = None
    html_breaks: Annotated[bool | None, Parameter(help="turn HTML line breaks into newlines", negative=())] = None
    deduplicate: Annotated[bool | None, Parameter(help="drop exact copies of documents", negative=())] = None

    def given(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if value is not None}


ReadingOptions = Annotated[Reading, Parameter(name="*", group=Group("Reading text", sort_key=8))]
USUAL = Reading()
HOLDING = Parameter(name="*", group=Group("Speed and memory", sort_key=7))
HoldingOptions = Annotated[Holding, HOLDING]
USUAL_HOLDING = Holding()
COMPILING = Parameter(
    group=Group("Speed and memory", sort_key=7),
    help="compile the step that writes a token, which takes a minute, once; auto does so for models of up to 1 GB",
)
Compiling = Annotated[Literal["auto", "yes", "no"], COMPILING]


def compile_steps(model: Model, compiling: Compiling) -> None:
    """Do what --compile says."""
    if compiling != "no":
        model.compile(if_it_pays=compiling == "auto", progress=Lines())


def named(corpus: Sequence[str]) -> list[str]:
    if not corpus:
        raise CorpusError("no corpus was given; name files, folders, globs, - or hf:NAME")
    return dashes(corpus)


def dashes(words: Sequence[str]) -> list[str]:
    """Standard input under its usual name again."""
    return ["-" if word == STDIN else word for word in words]


def merge(
    shorthands: dict[str, dict[str, Any]], fields: dict[str, dict[str, Any]], lengths: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """Short options and dotted ones together; the same field given both ways is an error, and so are two `lengths` of a run."""
    merged = {section: dict(values) for section, values in fields.items()}
    for section, values in shorthands.items():
        for name, value in values.items():
            if value is None:
                continue
            if name in merged.get(section, {}):
                raise ConfigError(f"{section}.{name} is given twice, by its short and by its dotted name; leave one out")
            merged.setdefault(section, {})[name] = value
    given = [name for name in lengths if merged.get("training", {}).get(name) is not None]
    if len(given) > 1:
        raise ConfigError(f"--{' and --'.join(given)} are both given; the length of a run is one of them")
    return merged


def with_dashes(fields: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Recipe fields that name sources, with standard input under its usual name again."""
    sources = {name: dashes(value) for name, value in fields.get("data", {}).items() if isinstance(value, list)}
    return fields | {"data": fields["data"] | sources} if sources else fields


def show_json(value: Any) -> None:
    print(json.dumps(value, ensure_ascii=False))


def show_table(facts: dict[str, Any]) -> None:
    width = max(map(len, facts)) + 2
    for name, value in facts.items():
        print(
            f"{name:<{width}}{value:,}" if isinstance(value, int) and not isinstance(value, bool) else f"{name:<{width}}{value}"
        )
