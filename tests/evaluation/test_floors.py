"""Floors: what a few lines of scikit-learn reach on real labels, for every task, the same each time."""

import csv
import time
import warnings

import numpy as np
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from pellucid.core.errors import ConfigError
from pellucid.evaluation.floors import LINEAR, MAJORITY, floors

GOOD = ["a good film", "good and warm", "so good", "a warm, good one", "good good", "warm and good"]
BAD = ["a bad film", "bad and cold", "so bad", "a cold, bad one", "bad bad", "cold and bad"]
TEXTS, TRUTH = GOOD + BAD, [1] * 6 + [0] * 6


@pytest.fixture(autouse=True)
def no_warnings():
    """What scikit-learn has to say about rare labels is not the user's concern."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.fixture(scope="module")
def banking(data):
    def read(name):
        with (data / f"labelled/banking77/{name}.csv").open(encoding="utf-8") as file:
            return [(row["text"], row["category"]) for row in csv.DictReader(file)]

    train, test = read("train"), read("test")
    labels = sorted({label for _, label in train})
    return labels, *(
        [[text for text, _ in rows], np.array([labels.index(label) for _, label in rows])] for rows in (train, test)
    )


def test_77_classes_with_few_labels_are_as_good_as_the_exact_solution(banking):
    labels, (texts, truth), (others, answers) = banking
    texts, truth = texts[::16], truth[::16]
    begun = time.process_time()
    found = floors("classify", texts, truth, others, labels=labels)
    assert time.process_time() - begun < 20  # 1.5 s on an idle core
    vectorizer = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    exact = LogisticRegression(C=100, tol=1e-3).fit(vectorizer.fit_transform(texts), truth)
    expected = exact.score(vectorizer.transform(others), answers)
    assert (found[LINEAR].values == answers).mean() > expected - 0.01
    assert (found[MAJORITY].values == np.bincount(truth).argmax()).all()
    np.testing.assert_allclose(found[LINEAR].probabilities.sum(axis=1), 1)
    assert found[LINEAR].probabilities.shape == (len(others), 77)


def test_chinese_is_read_by_characters(data):
    def read(name, most):
        lines = (data / f"labelled/chnsenticorp/{name}.tsv").read_text(encoding="utf-8").splitlines()
        rows = [line.rsplit("\t", 1) for line in lines]
        rows = [(row[0], row[1] == "positive") for row in rows if row[-1] in ("positive", "negative")][:most]
        return [text for text, _ in rows], np.array([label for _, label in rows])

    texts, truth = read("train", 400)
    others, answers = read("dev", None)
    found = floors("classify", texts, truth, others, labels=["negative", "positive"])
    assert (found[LINEAR].values == answers).mean() > 0.77  # words, of which there are hardly any, reach about 0.6


@pytest.mark.parametrize("weights", ["none", "balanced"])
def test_the_same_each_time(weights):
    once, again = (floors("classify", TEXTS, TRUTH, ["good", "bad"], labels="ab", class_weights=weights) for _ in range(2))
    np.testing.assert_array_equal(once[LINEAR].probabilities, again[LINEAR].probabilities)
    assert once[LINEAR].values.tolist() == [1, 0]


def test_balanced_weights_hear_the_minority():
    texts, truth = BAD * 8 + GOOD[:3], [0] * 48 + [1] * 3
    plain, balanced = (
        floors("classify", texts, truth, ["a warm film"], labels="ab", class_weights=weights)[LINEAR].probabilities[0, 1]
        for weights in ("none", "balanced")
    )
    assert balanced > plain


def test_a_class_that_training_lacks_gets_no_probability():
    found = floors("classify", TEXTS, TRUTH, ["good", "?"], labels=["bad", "good", "never"])
    assert found[LINEAR].probabilities[:, 2].tolist() == [0, 0]
    assert found[MAJORITY].probabilities.tolist() == [[0.5, 0.5, 0]] * 2


@pytest.mark.parametrize("rows", [2, 3, 7])
def test_very_few_rows_will_do(rows):
    texts, truth = ["good", "bad", "so good", "so bad", "good one", "bad one", "better"], [1, 0, 1, 0, 1, 0, 2]
    found = floors("classify", texts[:rows], truth[:rows], ["good", "bad"], labels=["bad", "good", "better"])
    assert found[LINEAR].values.tolist() == [1, 0]


def test_one_example_of_a_class_will_do():
    found = floors("classify", [*TEXTS, "dull"], [*TRUTH, 2], ["good", "dull dull"], labels=["bad", "good", "dull"])
    assert found[LINEAR].values.tolist()[0] == 1


def test_several_labels_at_once():
    truth = np.array([["good" in text, "warm" in text or "cold" in text, True, False] for text in TEXTS])
    found = floors("multi", TEXTS, truth, ["good, warm", "bad"], labels="abcd")
    assert found[LINEAR].values.tolist() == [[True, True, True, False], [False, False, True, False]]
    assert found["majority of each label"].values.tolist() == [[False, False, True, False]] * 2
    single = floors("multi", TEXTS, truth[:, :1], ["good, warm", "bad"], labels="a")
    assert single[LINEAR].values.tolist() == [[True], [False]]


def test_numbers():
    found = floors("regress", TEXTS, np.array(TRUTH) * 4.0 + 1, ["good", "bad", "unseen"])
    assert found["the mean"].values.tolist() == [3, 3, 3]
    ridge = found["TF-IDF + ridge"].values
    assert ridge[0] > ridge[2] > ridge[1]


def test_tags():
    train = [["in", "Paris", "may"], ["May", "may", "go"], ["Paris", "Paris"]]
    truth = [["O", "B-LOC", "O"], ["B-PER", "O", "O"], ["B-LOC", "B-PER"]]
    found = floors("tag", train, truth, [["Paris", "unseen", "May"], []])
    assert found["all words O"].values == [["O", "O", "O"], []]
    assert found["each word's commonest tag"].values == [["B-LOC", "O", "B-PER"], []]


def test_texts_and_preferences():
    found = floors("text", [], [], ["a", "b c"])
    assert {name: one.values for name, one in found.items()} == {"saying nothing": ["", ""], "copying the input": ["a", "b c"]}
    assert floors("prefer", [], None, [("long", "no"), ("a", "ab")])["the longer answer"].values.tolist() == [2, -1]


@pytest.mark.parametrize(
    ("task", "texts", "truth", "test", "options", "message"),
    [
        ("classfy", TEXTS, TRUTH, ["a"], {"labels": "ab"}, "the task 'classfy' is not known; choose classify, multi"),
        ("classify", TEXTS, TRUTH, [], {"labels": "ab"}, "there are no texts to predict"),
        ("classify", TEXTS, TRUTH[:3], ["a"], {"labels": "ab"}, "there are 3 labels for 12 training texts; give one for each"),
        ("classify", [], [], ["a"], {"labels": "ab"}, "there are no training texts"),
        ("classify", TEXTS, TRUTH, ["a"], {}, "classifying needs two labels or more, not 0; name them"),
        ("classify", TEXTS, [1] * 12, ["a"], {"labels": "ab"}, "all training rows have one label, so nothing can be learnt"),
        ("classify", TEXTS, [2] * 12, ["a"], {"labels": "ab"}, "the training labels, row 0: 2 is none of the 2 classes"),
        ("classify", ["!?"] * 12, TRUTH, ["a"], {"labels": "ab"}, "the training texts hold no word; is this the right column"),
        ("classify", TEXTS, TRUTH, ["a"], {"labels": "ab", "class_weights": "some"}, "class weights 'some' are not known"),
        ("regress", TEXTS, TRUTH, ["a"], {"class_weights": "balanced"}, "class weights have no effect on the task 'regress'"),
        ("regress", TEXTS, [float("nan")] * 12, ["a"], {}, "the training targets, row 0: nan is not a finite number"),
        ("multi", TEXTS, TRUTH, ["a"], {}, "the training labels must have a column for each label"),
        ("tag", [["a", "b"]], [["O"]], [["a"]], {}, "training row 0 has 1 tags for 2 words"),
    ],
)
def test_bad_input_is_one_sentence(task, texts, truth, test, options, message):
    with pytest.raises(ConfigError, match=message):
        floors(task, texts, truth, test, **options)
