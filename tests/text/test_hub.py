"""Datasets of the hub, tested with folders on this machine: there is no network here."""

import builtins
import json
import re

import pytest

from pellucid.core.errors import CorpusError, MissingExtraError
from pellucid.text.corpus import Corpus
from pellucid.text.hub import parse

ROWS = [{"text": f"row {n}", "label": n % 2} for n in range(5)]


@pytest.fixture
def dataset(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (folder / "test.jsonl").write_text('{"text": "held out", "label": 1}\n')
    return folder


def test_a_dataset_streams_like_any_source(dataset):
    corpus = Corpus.open(f"hf:{dataset}")
    assert [document.text for document in corpus] == [document.text for document in corpus] == [row["text"] for row in ROWS]
    assert [(row.text, dict(row.fields)) for row in corpus.rows()] == [(row["text"], {"label": row["label"]}) for row in ROWS]
    assert [document.text for document in Corpus.open([f"hf:{dataset}:test"])] == ["held out"]
    assert corpus.bytes is None


def test_the_fingerprint_is_of_the_content(dataset):
    before = Corpus.open(f"hf:{dataset}").fingerprint()
    assert Corpus.open(f"hf:{dataset}").fingerprint() == before != Corpus.open(f"hf:{dataset}:test").fingerprint()
    moved = dataset.rename(dataset.with_name("moved"))
    assert Corpus.open(f"hf:{moved}").fingerprint() == before
    (moved / "train.jsonl").write_text('{"text": "new", "label": 0}\n')
    assert Corpus.open(f"hf:{moved}").fingerprint() != before


def test_a_dataset_that_cannot_be_reached_is_one_clear_sentence(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(CorpusError) as caught:
        Corpus.open("hf:nobody/nothing-at-all")
    assert re.fullmatch(
        r"hf:nobody/nothing-at-all cannot be read \([^\n]+\); "
        r"check the name and the network, or download it and give its files",
        str(caught.value),
    )


def test_a_split_that_is_not_there_is_one_clear_sentence(dataset):
    with pytest.raises(CorpusError, match=r"cannot be read \(.*dev.*\); check the name"):
        Corpus.open(f"hf:{dataset}:dev")


def test_a_wrong_field_says_which_there_are(dataset):
    with pytest.raises(CorpusError, match=r"has no field 'txt' \(it has 'text', 'label'\); did you mean 'text'\?"):
        Corpus.open(f"hf:{dataset}", text_field="txt")


def test_without_the_extra_it_says_how_to_get_it(monkeypatch, dataset):
    real = builtins.__import__

    def without(name, *arguments, **options):
        if name == "datasets":
            raise ImportError(name)
        return real(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingExtraError) as caught:
        Corpus.open(f"hf:{dataset}")
    assert str(caught.value) == (
        f"reading hf:{dataset} needs the extra `hub`, which is not installed; run: pip install 'pellucid[hub]'"
    )


@pytest.mark.parametrize(
    ("source", "parts"),
    [
        ("hf:imdb", ("imdb", None, "train")),
        ("hf:owner/name", ("owner/name", None, "train")),
        ("hf:owner/name:test", ("owner/name", None, "test")),
        ("hf:owner/name/config:test", ("owner/name", "config", "test")),
        ("hf:/no/such/folder/config", ("/no/such/folder", "config", "train")),
    ],
)
def test_names(source, parts):
    assert parse(source) == parts


@pytest.mark.parametrize("source", ["hf:", "hf:a/b/c/d", "hf:owner/"])
def test_a_name_that_is_none_is_one_clear_sentence(source):
    with pytest.raises(CorpusError) as caught:
        parse(source)
    assert str(caught.value) == (
        f"{source} is not a dataset's name; write hf:OWNER/NAME, hf:OWNER/NAME/CONFIG or hf:OWNER/NAME:SPLIT"
    )
