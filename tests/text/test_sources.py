"""Paths, folders and patterns: what is read, in which order, and what is said when there is nothing."""

import os
from pathlib import Path

import pytest

from pellucid.core.errors import CorpusError
from pellucid.text.corpus import Corpus
from pellucid.text.sources import FORMATS, endings, find

ENDINGS = endings(FORMATS)


def put(path: Path, text: str = "some text") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def names(*sources: str | Path) -> list[str]:
    return [file.path.name for file in find(sources).files]


def message(*sources: str | Path) -> str:
    with pytest.raises(CorpusError) as caught:
        find(sources)
    return str(caught.value)


def test_a_folder_is_read_through_without_hidden_and_unknown_files(tmp_path):
    for name in (
        "b.txt",
        "a/c.md",
        "a/deep/d.jsonl.gz",
        "e.CSV",
        "f.tsv.zst",
        "g.parquet",
        ".hidden.txt",
        ".git/h.txt",
        "i.png",
        "a/j",
    ):
        put(tmp_path / name)
    found = find([tmp_path])
    assert [file.path.relative_to(tmp_path).as_posix() for file in found.files] == [
        "a/c.md", "a/deep/d.jsonl.gz", "b.txt", "e.CSV", "f.tsv.zst", "g.parquet",
    ]  # fmt: skip
    assert [(file.format, file.compression) for file in found.files] == [
        ("text", ""), ("jsonl", "gz"), ("text", ""), ("csv", ""), ("tsv", "zst"), ("parquet", ""),
    ]  # fmt: skip
    assert found.skipped == 2


def test_patterns_go_through_folders(tmp_path, monkeypatch):
    for name in ("a.txt", "b/c.txt", "b/d/e.txt", "b/f.log"):
        put(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    assert names("**/*.txt") == ["a.txt", "c.txt", "e.txt"]
    assert names("*.txt") == ["a.txt"]
    assert names(str(tmp_path / "b" / "*.log")) == ["f.log"]


def test_order_and_repetition_of_sources_do_not_matter(tmp_path):
    a, b, folder = put(tmp_path / "x/a.txt"), put(tmp_path / "x/b.txt"), tmp_path / "x"
    assert names(b, a, folder, str(folder / "*.txt")) == ["a.txt", "b.txt"]


def test_a_named_file_is_read_whatever_its_ending(tmp_path):
    assert [d.text for d in Corpus.open(put(tmp_path / "notes.log", "a log"))] == ["a log"]
    assert [d.text for d in Corpus.open(put(tmp_path / "[odd].name", "odd"))] == ["odd"]


def test_a_missing_path_is_one_clear_sentence(tmp_path):
    path = tmp_path / "nowhere.txt"
    assert message(path) == f"{path} does not exist; check the path (texts in memory are read by Corpus.of)"


def test_an_empty_folder_is_one_clear_sentence(tmp_path):
    assert message(tmp_path) == f"{tmp_path} is an empty folder; put text in it ({ENDINGS}), or name another"


def test_a_folder_without_readable_formats_says_which_there_are(tmp_path):
    path = put(tmp_path / "wiki.raw")
    assert message(tmp_path) == (
        f"{tmp_path} holds no file that ends in {ENDINGS}; name the files themselves to read them as text, for example {path}"
    )
    assert ".txt .md .jsonl .csv .tsv .parquet" in ENDINGS


def test_a_pattern_that_matches_nothing_is_one_clear_sentence(tmp_path):
    pattern = str(tmp_path / "*.txt")
    assert message(pattern) == f"{pattern} matches no file; check the pattern (** goes through folders)"


def test_an_unreadable_folder_is_one_clear_sentence(tmp_path, monkeypatch):
    def walk(folder, onerror):
        onerror(PermissionError(13, "Permission denied", str(folder)))
        yield from ()

    monkeypatch.setattr(os, "walk", walk)  # the tests may run as root, whom nothing is forbidden
    assert message(tmp_path) == f"{tmp_path} cannot be read (Permission denied); change its permissions, or leave it out"


def test_no_source_is_one_clear_sentence():
    with pytest.raises(CorpusError, match="no source of text is given"):
        Corpus.open([])
