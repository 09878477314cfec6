"""Rows to learn from, to choose by and to be measured on: as given, by a column, or by label and the hash of the text."""

from __future__ import annotations

import hashlib
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from pellucid.core.errors import ConfigError, CorpusError
from pellucid.text.labelled import Labelled, classes_of
from pellucid.text.tags import OUTSIDE, spans_of_tags

PARTS = ("train", "validation", "test")
NAMES = {"train": "train", "training": "train", "test": "test"} | dict.fromkeys(
    ("validation", "valid", "val", "dev", "eval"), "validation"
)
QUANTILES = 10  # groups of like numbers that each part has its share of
SHOWN = 12  # labels that a sentence lists
UNEVEN = 2.0  # from this ratio of the largest class to the smallest on, a sentence says so

Part = Sequence[Labelled] | float
Rows = dict[str, list[Labelled]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """What labelled data is like."""

    rows: Mapping[str, int]  # of each part
    labels: Mapping[str, Mapping[str, int]]  # how often each label comes in each part; for tags, spans of each kind
    copies: Mapping[str, int]  # rows of a part whose text a row of it before has
    shared: Mapping[tuple[str, str], int]  # rows of the second part whose text the first has too
    conflicts: int  # texts that have several labels
    unused: int = 0  # rows that a column puts in a part for which other rows are given
    empty: int = 0
    repaired: int = 0

    @property
    def imbalance(self) -> float:
        """Rows of the largest class in train, for each of the smallest; 1 where labels are numbers."""
        counts = self.labels["train"].values()
        return max(counts) / min(counts) if counts else 1.0

    def sentences(self) -> list[str]:
        """The findings in words."""
        said = [", ".join(f"{part}: {_count(rows, 'row')}" for part, rows in self.rows.items() if rows)]
        if counts := sorted(self.labels["train"].items(), key=lambda item: (-item[1], item[0])):
            shown = ", ".join(f"{name} {count:,}" for name, count in counts)
            (most, largest), (least, smallest) = counts[0], counts[-1]
            few = f"{len(counts):,} labels in train, from {most} ({largest:,}) to {least} ({smallest:,})"
            said.append(f"labels in train: {shown}" if len(counts) <= SHOWN else few)
        if self.imbalance >= UNEVEN:
            said.append(
                f"the largest class has {self.imbalance:.1f} times as many examples as the smallest; "
                "--class-weights balanced gives each the same weight"
            )
        for (first, second), count in self.shared.items():
            have = "has a text" if count == 1 else "have texts"
            said.append(
                f"{count:,} of the {_count(self.rows[second], 'row')} in {second} {have} that {first} has too: "
                f"scores on {second} are too good by what is merely remembered"
            )
        for part, count in self.copies.items():
            said.append(f"{_count(count, 'row')} in {part} {'is a copy' if count == 1 else 'are copies'} of another")
        if self.conflicts:
            have = "has" if self.conflicts == 1 else "have"
            said.append(f"{_count(self.conflicts, 'text')} {have} different labels in different rows")
        if self.unused:
            said.append(f"{_count(self.unused, 'row')} of a part for which other rows are given {_were(self.unused)} left out")
        if self.empty:
            said.append(f"{_count(self.empty, 'row')} without text {_were(self.empty)} left out")
        if self.repaired:
            said.append(f"{_count(self.repaired, 'tag')} I-... at the beginning of a span {_were(self.repaired)} read as B-...")
        return said


@dataclass(frozen=True, slots=True)
class Splits:
    """Three parts; validation and test may be empty."""

    train: list[Labelled]
    validation: list[Labelled]
    test: list[Labelled]
    findings: Findings


def split(rows: Sequence[Labelled], *, validation: Part, test: Part, seed: int, empty: int = 0, repaired: int = 0) -> Splits:
    """Validation and test rows as given, else those that the split column says, else a fraction of the rows (0: none).

    A fraction has its share of each label (of each tenth of the numbers, by size), within one row. Which rows it gets depends
    on the seed and on each text's hash, not on the order of rows, and adding some moves few; copies of a text stay together.
    `empty` and `repaired` are what reading counted. Raises `CorpusError` for a label in validation or test that train never
    had, a part that would be without rows, and one class only; `ConfigError` for fractions that leave no rows to learn from.
    """
    asked = {"validation": validation, "test": test}
    parts, unused = _marked(rows, asked)
    fractions = {name: part for name, part in asked.items() if isinstance(part, int | float) and not parts[name]}
    if min(fractions.values(), default=0) < 0 or sum(fractions.values()) >= 1:
        raise ConfigError(
            f"{_fractions(fractions)} leave nothing to learn from; give fractions of at least 0 and below 1 in sum"
        )
    taken = _taken(parts["train"], fractions, seed)
    parts = {name: taken.get(name, []) or part for name, part in parts.items()}
    for name, fraction in fractions.items():
        if fraction and not parts[name]:
            raise CorpusError(
                f"{fraction:g} of {_count(len(rows), 'row')} leaves none for {name}; give more rows, a larger "
                f"--data.{name}-fraction, or 0 for none"
            )
    for name, part in asked.items():
        if not isinstance(part, int | float):
            parts[name] = list(part)
    _check(parts)
    return Splits(**parts, findings=_findings(parts, unused, empty, repaired))


def normalized(text: str) -> str:
    """What copies of a text have in common: not case, white space and the way accents are written."""
    return " ".join(unicodedata.normalize("NFC", text).casefold().split())


def _marked(rows: Sequence[Labelled], asked: Mapping[str, Part]) -> tuple[Rows, int]:
    """Rows by what their split column says, and how many of them are not used."""
    parts: Rows = {name: [] for name in PARTS}
    for row in rows:
        name = "train" if row.split is None else NAMES.get(row.split.strip().lower())
        if name is None:
            raise CorpusError(f"{row.place}: the split {row.split!r} is not known; write train, validation or test")
        parts[name].append(row)
    if not parts["train"]:
        raise CorpusError("the split column leaves no rows to learn from; mark some as train")
    replaced = [name for name, part in asked.items() if not isinstance(part, int | float) and parts[name]]
    return parts, sum(len(parts[name]) for name in replaced)


def _taken(rows: list[Labelled], fractions: Mapping[str, float], seed: int) -> Rows:
    """The rows of each fraction, and those that are left as train."""
    copies = defaultdict[str, list[int]](list)
    for number, row in enumerate(rows):
        copies[normalized(row.text)].append(number)
    hashes = {text: hashlib.blake2b(f"{seed}\n{text}".encode(), digest_size=16).digest() for text in copies}
    stratum_of = _strata(rows)
    strata = defaultdict[str, list[list[int]]](list)
    for text in sorted(copies, key=hashes.__getitem__):
        strata[min(stratum_of(rows[number]) for number in copies[text])].append(copies[text])
    sizes = {name: sum(map(len, groups)) for name, groups in strata.items()}
    part_of = ["train"] * len(rows)
    room = {name: size - 1 for name, size in sizes.items()}  # one row of each label stays to be learnt
    for part in sorted(fractions):  # test first, so that it is the same whatever the validation fraction
        quotas = _quotas(sizes, fractions[part])
        for name, groups in strata.items():
            quota = min(quotas[name], room[name])
            for group in groups:
                if part_of[group[0]] == "train" and len(group) <= quota:
                    quota -= len(group)
                    room[name] -= len(group)
                    for number in group:
                        part_of[number] = part
    _keep_to_learn(rows, part_of, list(copies.values()))
    return {part: [row for row, name in zip(rows, part_of, strict=True) if name == part] for part in PARTS}


def _keep_to_learn(rows: Sequence[Labelled], part_of: list[str], groups: Sequence[Sequence[int]]) -> None:
    """Bring back to train what has a label that train would not have: one that comes only beside rarer ones, or in copies."""
    learnt = {kind for row, part in zip(rows, part_of, strict=True) if part == "train" for kind in kinds_of(row)}
    for group in groups:
        kinds = {kind for number in group for kind in kinds_of(rows[number])}
        if not kinds <= learnt:
            learnt |= kinds
            for number in group:
                part_of[number] = "train"


def _quotas(sizes: Mapping[str, int], fraction: float) -> dict[str, int]:
    """How many rows of each stratum: the share rounded down, or up where it was cut most, until the sum is right."""
    exact = {name: size * fraction for name, size in sizes.items()}
    quotas = {name: int(share) for name, share in exact.items()}
    missing = round(sum(exact.values())) - sum(quotas.values())
    for name in sorted(exact, key=lambda name: (quotas[name] - exact[name], name))[:missing]:
        quotas[name] += 1
    return quotas


def _strata(rows: Sequence[Labelled]) -> Callable[[Labelled], str]:
    """What a row is drawn by: its class, the rarest of its classes or kinds of spans, or the tenth that its number is in."""
    if isinstance(rows[0].label, float):
        numbers = sorted(float(row.label) for row in rows if isinstance(row.label, float))
        borders = [numbers[len(numbers) * n // QUANTILES] for n in range(1, QUANTILES)]
        return lambda row: str(sum(border <= row.label for border in borders if isinstance(row.label, float)))
    counts = Counter(name for row in rows for name in kinds_of(row))
    return lambda row: min(kinds_of(row), key=lambda name: (counts[name], name), default="")


def kinds_of(row: Labelled) -> list[str]:
    """The classes of a row, each once, or the kinds of its spans, as often as they come; none if its label is a number."""
    classes = classes_of(row)
    return list(classes) if row.words is None else [name for _, _, name in spans_of_tags(classes)]


def _check(parts: Rows) -> None:
    train = parts["train"]
    names = {name for row in train for name in kinds_of(row)}
    first = train[0]
    if first.words is not None and not names:
        raise CorpusError(f"all {len(train):,} rows to learn from have only the tag {OUTSIDE}; mark some spans")
    if isinstance(first.label, float) and len({row.label for row in train}) == 1:
        raise CorpusError(f"all {len(train):,} rows to learn from have the number {first.label:g}; there is nothing to learn")
    if first.words is None and not isinstance(first.label, float) and len({row.label for row in train}) == 1:
        have = f"the label {first.label!r}" if isinstance(first.label, str) else f"the labels {list(first.label)}"
        raise CorpusError(f"all {len(train):,} rows to learn from have {have}; there is nothing to learn: add rows of another")
    for part in PARTS[1:]:
        for row in parts[part]:
            if unknown := next((name for name in kinds_of(row) if name not in names), None):
                raise CorpusError(
                    f"{row.place}: no row to learn from has the label {unknown!r}, which this one in {part} has; "
                    "correct it, or add some to train"
                )


def _findings(parts: Rows, unused: int, empty: int, repaired: int) -> Findings:
    texts = {part: Counter(normalized(row.text) for row in rows) for part, rows in parts.items()}
    labels = defaultdict[str, set[object]](set)
    for rows in parts.values():
        for row in rows:
            labels[normalized(row.text)].add(row.label)
    pairs = [("train", "validation"), ("train", "test"), ("validation", "test")]
    shared = {pair: sum(count for text, count in texts[pair[1]].items() if text in texts[pair[0]]) for pair in pairs}
    copies = {part: len(parts[part]) - len(found) for part, found in texts.items()}
    return Findings(
        rows={part: len(rows) for part, rows in parts.items()},
        labels={part: dict(Counter(name for row in rows for name in kinds_of(row))) for part, rows in parts.items()},
        copies={part: count for part, count in copies.items() if count},
        shared={pair: count for pair, count in shared.items() if count},
        conflicts=sum(len(found) > 1 for found in labels.values()),
        unused=unused,
        empty=empty,
        repaired=repaired,
    )


def _fractions(fractions: Mapping[str, float]) -> str:
    return " and ".join(f"a {name} fraction of {fraction:g}" for name, fraction in fractions.items())


def _count(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _were(count: int) -> str:
    return "was" if count == 1 else "were"
