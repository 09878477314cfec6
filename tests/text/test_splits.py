"""Splits: given, by a column or by label; the same whatever the order of rows; copies on one side; what the data is like."""

import dataclasses
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pellucid.core.errors import ConfigError, CorpusError
from pellucid.text.columns import Columns
from pellucid.text.labelled import Labelled, Reading, read_rows
from pellucid.text.splits import normalized, split
from pellucid.text.word_spans import joined


def row(text: str, label: object = "a", part: str | None = None, place: str = "a.csv:2") -> Labelled:
    return Labelled(text, label, part, place)


def rows_of(counts: dict[str, int]) -> list[Labelled]:
    return [row(f"text {name} {n}", name) for name, count in counts.items() for n in range(count)]


counts = st.dictionaries(st.sampled_from("abcdef"), st.integers(4, 60), min_size=2)
fractions = st.just(0.0) | st.floats(0.2, 0.45)


@given(counts, fractions, fractions, st.integers(0, 2**40))
def test_each_part_has_its_share_of_each_label_within_a_row(sizes, validation, test, seed):
    rows = rows_of(sizes)
    found = split(rows, validation=validation, test=test, seed=seed)
    assert sorted(r.text for part in (found.train, found.validation, found.test) for r in part) == sorted(r.text for r in rows)
    for part, fraction in ((found.validation, validation), (found.test, test)):
        have = Counter(r.label for r in part)
        for name, size in sizes.items():
            kept = size - 1 - (0 if part is found.test else Counter(r.label for r in found.test)[name])
            assert abs(have[name] - size * fraction) < 1 or have[name] == kept
    assert {r.label for r in found.train} == set(sizes)


@given(counts, st.integers(0, 99), st.randoms(use_true_random=False))
def test_the_order_of_rows_does_not_matter_and_that_of_a_part_is_theirs(sizes, seed, random):
    rows = rows_of(sizes)
    shuffled = random.sample(rows, len(rows))
    one, other = (split(given_rows, validation=0.2, test=0.3, seed=seed) for given_rows in (rows, shuffled))
    for name in ("train", "validation", "test"):
        assert {r.text for r in getattr(one, name)} == {r.text for r in getattr(other, name)}
    assert one.train == [r for r in rows if r in one.train]


def test_rows_that_are_added_move_few():
    rows = rows_of({"a": 500, "b": 500})
    before = {r.text for r in split(rows, validation=0, test=0.2, seed=1).test}
    more = [*rows, *(row(f"another {n}", "ab"[n % 2]) for n in range(10))]
    after = {r.text for r in split(more, validation=0, test=0.2, seed=1).test}
    assert len(before ^ after) <= 12
    assert len(before) == 200
    assert {r.text for r in split(rows, validation=0.3, test=0.2, seed=1).test} == before  # whatever else is taken
    assert {r.text for r in split(rows, validation=0, test=0.2, seed=2).test} != before


@given(st.lists(st.tuples(st.integers(0, 12), st.sampled_from("ab")), min_size=30, max_size=60), st.integers(0, 99))
def test_copies_stay_on_one_side(made, seed):
    rows = [row(f"Text  {n}" if at % 2 else f"text {n} ", name) for at, (n, name) in enumerate(made)]
    rows += rows_of({"a": 20, "b": 20})
    found = split(rows, validation=0.2, test=0.2, seed=seed)
    assert not found.findings.shared


def test_numbers_are_drawn_by_size():
    rows = [row(f"text {n}", float(n**3)) for n in range(1000)]
    found = split(rows, validation=0, test=0.1, seed=0)
    tenths = Counter(round(r.label ** (1 / 3)) // 100 for r in found.test)
    assert set(tenths.values()) == {10}
    assert found.findings.labels["train"] == {}


def test_several_classes_are_drawn_by_the_rarest():
    rows = [row(f"text {n}", ("common", "rare") if n % 20 == 0 else ("common",)) for n in range(400)]
    found = split(rows, validation=0, test=0.1, seed=0)
    assert found.findings.labels["test"] == {"common": 40, "rare": 2}


def test_a_label_that_comes_only_in_copies_stays_to_be_learnt():
    rows = [*rows_of({"a": 9, "b": 9}), row("same", "a"), row("same", "only")]
    for seed in range(20):
        assert "only" in {r.label for r in split(rows, validation=0.3, test=0.3, seed=seed).train}


def test_a_column_says_the_split_and_given_rows_win():
    names = ["train", "Train", "dev", "valid", "eval", "test", None]
    rows = [row(f"text {n}", "ab"[n % 2], name) for n, name in enumerate(names)]
    found = split(rows, validation=0.1, test=0.1, seed=0)
    assert [[r.text[-1] for r in part] for part in (found.train, found.validation, found.test)] == [
        ["0", "1", "6"],
        ["2", "3", "4"],
        ["5"],
    ]
    assert split(rows, validation=[row("x", "b")], test=0, seed=0).validation == [row("x", "b")]
    sentences = split(rows, validation=[row("x", "b")], test=0, seed=0).findings.sentences()
    assert "3 rows of a part for which other rows are given were left out" in sentences


def test_a_column_without_a_test_part_leaves_it_to_the_fraction():
    rows = [dataclasses.replace(r, split="train") for r in rows_of({"a": 20, "b": 20})] + [row("x", "a", "dev")]
    found = split(rows, validation=0.1, test=0.1, seed=0)
    assert (len(found.train), len(found.validation), len(found.test)) == (36, 1, 4)


def test_what_is_found_is_said():
    train = [row("One  text", "a"), row("one text", "b"), row("Caf\u00e9", "a"), row("x", "a"), row("y", "a")]
    found = split(
        train, validation=[row("ONE TEXT", "a")], test=[row("Cafe\u0301", "a"), row("z", "a")], seed=0, empty=1, repaired=2
    )
    assert found.findings.sentences() == [
        "train: 5 rows, validation: 1 row, test: 2 rows",
        "labels in train: a 4, b 1",
        "the largest class has 4.0 times as many examples as the smallest; --class-weights balanced gives each the same weight",
        "1 of the 1 row in validation has a text that train has too: "
        "scores on validation are too good by what is merely remembered",
        "1 of the 2 rows in test has a text that train has too: scores on test are too good by what is merely remembered",
        "1 row in train is a copy of another",
        "1 text has different labels in different rows",
        "1 row without text was left out",
        "2 tags I-... at the beginning of a span were read as B-...",
    ]
    assert (len(found.validation), len(found.test)) == (1, 2)  # reported, not removed


def test_many_labels_are_summed_up():
    found = split(rows_of({f"l{n:02}": n + 2 for n in range(30)}), validation=0, test=0, seed=0)
    assert found.findings.sentences()[1] == "30 labels in train, from l29 (31) to l00 (2)"
    assert found.findings.sentences()[0] == "train: 495 rows"


def test_copies_differ_in_case_space_and_accents_only():
    assert normalized(" Stra\u00dfe\n Cafe\u0301") == normalized("STRASSE caf\u00e9")
    assert normalized("a b") != normalized("ab")


tagged = [Labelled("a b", ("O", tag), None, "a.conll:1", joined(["a", "b"])) for tag in ("O", "B-x")]


@pytest.mark.parametrize(
    ("rows", "options", "sentence"),
    [
        (
            rows_of({"a": 5}),
            {},
            "all 5 rows to learn from have the label 'a'; there is nothing to learn: add rows of another",
        ),
        (
            [row("x", ("a",)), row("y", ("a",))],
            {},
            "all 2 rows to learn from have the labels ['a']; there is nothing to learn: add rows of another",
        ),
        ([row("x", 1.0), row("y", 1.0)], {}, "all 2 rows to learn from have the number 1; there is nothing to learn"),
        (tagged[:1], {}, "all 1 rows to learn from have only the tag O; mark some spans"),
        (
            rows_of({"a": 5, "b": 5}),
            {"test": [row("x", "c", place="test.csv:7")]},
            "test.csv:7: no row to learn from has the label 'c', which this one in test has; correct it, or add some to train",
        ),
        (
            rows_of({"a": 5, "b": 5}),
            {"validation": [row("x", ("a", "d"), place="v.jsonl:1")]},
            "v.jsonl:1: no row to learn from has the label 'd', which this one in validation has; "
            "correct it, or add some to train",
        ),
        (
            tagged,
            {"test": [Labelled("a", ("B-y",), None, "t.conll:1", joined(["a"]))]},
            "t.conll:1: no row to learn from has the label 'y', which this one in test has; correct it, or add some to train",
        ),
        (
            [row("x", part="holdout")],
            {},
            "a.csv:2: the split 'holdout' is not known; write train, validation or test",
        ),
        ([row("x", part="test")], {}, "the split column leaves no rows to learn from; mark some as train"),
        ([], {}, "the split column leaves no rows to learn from; mark some as train"),
        (
            rows_of({"a": 2, "b": 2}),
            {"validation": 0.1},
            "0.1 of 4 rows leaves none for validation; give more rows, a larger --data.validation-fraction, or 0 for none",
        ),
        (
            rows_of({"a": 2, "b": 2}),
            {"validation": 0.5, "test": 0.5},
            "a validation fraction of 0.5 and a test fraction of 0.5 leave nothing to learn from; "
            "give fractions of at least 0 and below 1 in sum",
        ),
        (
            rows_of({"a": 2, "b": 2}),
            {"validation": -0.5},
            "a validation fraction of -0.5 and a test fraction of 0 leave nothing to learn from; "
            "give fractions of at least 0 and below 1 in sum",
        ),
    ],
)
def test_what_cannot_be_split_is_one_sentence(rows, options, sentence):
    with pytest.raises((CorpusError, ConfigError)) as error:
        split(rows, **({"validation": 0, "test": 0, "seed": 0} | options))
    assert str(error.value) == sentence


def test_banking77(data: Path):
    folder = data / "labelled" / "banking77"
    train, test = (read_rows(folder / f"{name}.csv", Columns(), "classify").rows for name in ("train", "test"))
    found = split(train, validation=0.1, test=test, seed=0)
    assert (len(found.train), len(found.validation), len(found.test)) == (9003, 1000, 3080)
    have, all_of = Counter(r.label for r in found.validation), Counter(r.label for r in train)
    assert all(abs(have[name] - count / 10) < 1 for name, count in all_of.items())
    assert any(sentence.startswith("77 labels in train, from ") for sentence in found.findings.sentences())


def test_chnsenticorp_has_no_header_row(data: Path):
    folder = data / "labelled" / "chnsenticorp"
    columns = Columns(names=("text", "label"))
    train, dev = (read_rows(folder / f"{name}.tsv", columns, "classify").rows for name in ("train", "dev"))
    assert {r.label for r in train} == {"positive", "negative"}
    assert len(split(train, validation=dev, test=0, seed=0).validation) == 1200


def test_spans_of_snips(data: Path):
    reading = Reading(on_bad_bytes="replace")
    rows = read_rows(data / "labelled" / "snips" / "validate_*.json", Columns(), "tag", reading=reading).rows
    found = split(rows, validation=0.1, test=0.2, seed=0)
    assert (len(found.validation), len(found.test)) == (70, 140)
    assert set(found.findings.labels["test"]) <= set(found.findings.labels["train"])
