"""Metrics: those of scikit-learn, scipy, seqeval and rouge_score, and what must hold whatever the rows."""

import random
import string
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer
from scipy import stats
from seqeval import metrics as seqeval
from seqeval.metrics.sequence_labeling import get_entities
from sklearn import metrics as sklearn

from pellucid.core.errors import ConfigError
from pellucid.evaluation import metrics

TAGS = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC", "B-ORG-2", "I-ORG-2"]


def floats(found):
    return {metric: float(value) for metric, value in found.items()}


@st.composite
def labelled(draw, most=6):
    classes = draw(st.integers(2, most))
    pairs = draw(st.lists(st.tuples(st.integers(0, classes - 1), st.integers(0, classes - 1)), min_size=1, max_size=40))
    truth, predicted = np.array(pairs).T
    return classes, truth, predicted


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning")
@given(labelled())
def test_classification_is_that_of_scikit_learn(given):
    classes, truth, predicted = given
    found = metrics.classification(truth, predicted, classes)
    assert found["accuracy"] == pytest.approx(sklearn.accuracy_score(truth, predicted))
    assert found["macro_f1"] == pytest.approx(sklearn.f1_score(truth, predicted, average="macro", zero_division=0))
    assert found["matthews"] == pytest.approx(sklearn.matthews_corrcoef(truth, predicted))
    every = range(classes)
    assert (
        metrics.confusion(truth, predicted, classes).tolist()
        == sklearn.confusion_matrix(truth, predicted, labels=every).tolist()
    )
    counts = metrics.tally(truth, predicted, classes)
    theirs = sklearn.precision_recall_fscore_support(truth, predicted, labels=every, zero_division=0)
    for mine, other in zip((counts.precision, counts.recall, counts.f1, counts.true), theirs, strict=True):
        np.testing.assert_allclose(mine, other)


@given(st.integers(0, 1000), st.integers(1, 30), st.integers(1, 5))
def test_multi_label_is_that_of_scikit_learn(seed, rows, labels):
    rng = np.random.default_rng(seed)
    truth, predicted = rng.random((2, rows, labels)) < 0.4
    found = metrics.multi_label(truth, predicted)
    both = truth.astype(int), predicted.astype(int)
    shape = (truth[:, 0], predicted[:, 0]) if labels == 1 else both  # scikit-learn reads one column as one list
    seen = [label for label in range(labels) if truth[:, label].any() or predicted[:, label].any()]
    # a label that never occurs says nothing about the predictions, as in single-label classification
    assert found["micro_f1"] == pytest.approx(2 * (truth & predicted).sum() / max(1, truth.sum() + predicted.sum()))
    macro = [sklearn.f1_score(truth[:, label], predicted[:, label], zero_division=0) for label in seen]
    assert found["macro_f1"] == pytest.approx(np.mean(macro) if seen else 0)
    assert found["exact_match"] == pytest.approx(sklearn.accuracy_score(*shape))
    assert found["hamming"] == pytest.approx(sklearn.hamming_loss(*shape))


@given(st.integers(0, 1000), st.integers(3, 40), st.booleans())
def test_regression_is_that_of_scikit_learn_and_scipy(seed, rows, ties):
    rng = np.random.default_rng(seed)
    truth, predicted = rng.normal(50, 3, (2, rows))
    if ties:
        truth, predicted = truth.round(-1), predicted.round()
    truth[0], truth[1] = 1, 2  # never constant
    predicted[0], predicted[1] = 3, 1
    found = metrics.regression(truth, predicted)
    assert found["mse"] == pytest.approx(sklearn.mean_squared_error(truth, predicted))
    assert found["mae"] == pytest.approx(sklearn.mean_absolute_error(truth, predicted))
    assert found["r2"] == pytest.approx(sklearn.r2_score(truth, predicted))
    assert found["pearson"] == pytest.approx(stats.pearsonr(truth, predicted).statistic)
    assert found["spearman"] == pytest.approx(stats.spearmanr(truth, predicted).statistic)


def test_regression_on_constants_is_a_number():
    same, other = np.full(4, 0.1), np.array([1.0, 2, 3, 4])
    assert metrics.regression(other, same)["pearson"] == metrics.regression(same, other)["spearman"] == 0
    assert metrics.regression(same, same)["r2"] == 1
    assert metrics.regression(same, other)["r2"] == 0


@settings(max_examples=30)
@given(st.integers(0, 1000))
def test_weights_are_repeated_rows(seed):
    """What the bootstrap rests on: a row that weighs three is three rows, one that weighs nothing is none."""
    rng = np.random.default_rng(seed)
    weights = rng.integers(0, 4, (2, 12)).astype(float)
    weights[:, 0] += 1
    truth, predicted = rng.integers(3, size=(2, 12))
    x, y = rng.integers(5, size=(2, 12)).astype(float)
    flags = rng.random((2, 12, 3)) < 0.5
    tags = [[[random.Random(seed + n).choice(TAGS) for _ in range(4)] for n in range(start, start + 12)] for start in (0, 50)]
    many = [
        metrics.classification(truth, predicted, 3, weights),
        metrics.multi_label(*flags, weights),
        metrics.regression(x, y, weights),
        metrics.tagging(metrics.tagged(*tags), weights),
        metrics.preference(x - y, weights),
    ]
    for draw, times in enumerate(weights.astype(int)):
        rows = np.repeat(np.arange(12), times)
        one = [
            metrics.classification(truth[rows], predicted[rows], 3),
            metrics.multi_label(flags[0][rows], flags[1][rows]),
            metrics.regression(x[rows], y[rows]),
            metrics.tagging(metrics.tagged([tags[0][n] for n in rows], [tags[1][n] for n in rows])),
            metrics.preference((x - y)[rows]),
        ]
        for together, alone in zip(many, one, strict=True):
            assert {key: float(value[draw]) for key, value in together.items()} == pytest.approx(floats(alone))


@given(labelled(), st.randoms())
def test_neither_the_order_of_rows_nor_the_numbers_of_classes_matter(given, shuffler):
    classes, truth, predicted = given
    order, names = list(range(len(truth))), list(range(classes))
    shuffler.shuffle(order)
    shuffler.shuffle(names)
    renamed = np.array(names)
    found = metrics.classification(renamed[truth[order]], renamed[predicted[order]], classes)
    assert floats(found) == pytest.approx(floats(metrics.classification(truth, predicted, classes)))


@given(labelled())
def test_perfect_and_constant_predictions(given):
    classes, truth, _ = given
    perfect = metrics.classification(truth, truth, classes)
    assert perfect["accuracy"] == perfect["macro_f1"] == 1
    assert perfect["matthews"] == (1 if len(set(truth)) > 1 else 0)
    assert metrics.classification(truth, np.zeros_like(truth), classes)["matthews"] == 0


# Spans


@given(
    st.lists(st.lists(st.tuples(st.sampled_from(TAGS), st.sampled_from(TAGS)), min_size=1, max_size=9), min_size=1, max_size=6)
)
def test_spans_are_those_of_seqeval(rows):
    """Ill-formed tags too: an I- at the start, after O, after another type."""
    truth, predicted = ([[pair[side] for pair in row] for row in rows] for side in (0, 1))
    for row in truth:
        assert metrics.spans(row) == set(get_entities(row))
    found = metrics.tagging(metrics.tagged(truth, predicted))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = {
            "span_f1": seqeval.f1_score(truth, predicted, zero_division=0),
            "span_precision": seqeval.precision_score(truth, predicted, zero_division=0),
            "span_recall": seqeval.recall_score(truth, predicted, zero_division=0),
            "token_accuracy": seqeval.accuracy_score(truth, predicted),
        }
        by_type = seqeval.classification_report(truth, predicted, output_dict=True, zero_division=0)
    assert floats(found) == pytest.approx(theirs)
    rows = metrics.tagged(truth, predicted)
    counts = metrics.span_tally(rows)
    for kind, precision, recall, f1, support in zip(
        rows.types, counts.precision, counts.recall, counts.f1, counts.true, strict=True
    ):
        other = by_type[kind]
        assert [precision, recall, f1, support] == pytest.approx(
            [other["precision"], other["recall"], other["f1-score"], other["support"]]
        )


@pytest.mark.parametrize("tag", ["", "X", "B_PER", "E-PER", "S-PER", "b-PER", "O-PER", "NOUN"])
def test_what_is_no_tag_of_spans_is_refused(tag):
    with pytest.raises(ConfigError, match=r"the truth, row 1.*is no tag of spans; use B-TYPE"):
        metrics.tagged([["O"], ["O", tag]], [["O"], ["O", "O"]])


def test_a_row_with_too_few_tags_is_named():
    with pytest.raises(ConfigError, match="row 1 has 1 predicted tags for 2 words"):
        metrics.tagged([["O"], ["O", "O"]], [["O"], ["O"]])


def test_tags_without_a_type_are_spans_of_one_kind():
    assert metrics.spans(["B", "I", "O", "I"]) == {("_", 0, 1), ("_", 3, 3)}


# Texts

ASCII = st.lists(
    st.sampled_from(["the", "cat", "A", "dog", "sat", "on", "mat.", "it's", "foo_bar", "42", "--", "U.S.A", "\n"])
).map(" ".join)


@given(ASCII, ASCII)
def test_rouge_l_is_that_of_rouge_score(truth, predicted):
    theirs = RougeScorer(["rougeL"], use_stemmer=False).score(truth, predicted)["rougeL"].fmeasure
    assert metrics.rouge_l(truth, predicted) == pytest.approx(theirs)


@given(st.text(string.printable, max_size=60), st.text(string.printable, max_size=60))
def test_rouge_l_is_that_of_rouge_score_on_noise(truth, predicted):
    theirs = RougeScorer(["rougeL"], use_stemmer=False).score(truth, predicted)["rougeL"].fmeasure
    assert metrics.rouge_l(truth, predicted) == pytest.approx(theirs)


def test_rouge_l_of_chinese_is_by_character_and_other_letters_count():
    assert metrics.words("我爱GPT-2！ Привет, café 42") == ["我", "爱", "gpt", "2", "привет", "café", "42"]
    assert metrics.rouge_l("今天天气很好", "今天天气不好") == pytest.approx(5 / 6)
    assert metrics.rouge_l("Привет мир", "мир") == pytest.approx(2 / 3)
    assert metrics.rouge_l("", "") == metrics.rouge_l("a", "") == metrics.rouge_l("?!", "?!") == 0


@given(st.lists(st.sampled_from("abc"), max_size=80), st.lists(st.sampled_from("abc"), max_size=80))
def test_the_longest_common_subsequence(a, b):
    table = np.zeros((len(a) + 1, len(b) + 1), int)
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            table[i + 1, j + 1] = table[i, j] + 1 if x == y else max(table[i, j + 1], table[i + 1, j])
    assert metrics.longest_common(a, b) == table[-1, -1]


def test_answers_are_compared_as_squad_does():
    found = metrics.written(["The  Cat, sat!", "an apple", "same"], ["cat sat", "apples", "same"])
    assert found["exact_match"].tolist() == [1, 0, 1]
    assert found["strict_match"].tolist() == [0, 0, 1]


def test_scripts_without_spaces_are_known():
    assert metrics.unspaced(["今天天气很好，我们去 shopping 吧", "好"])
    assert metrics.unspaced(["สวัสดีชาวโลก"])
    assert not metrics.unspaced(["한국어는 띄어쓰기를 한다"])
    assert not metrics.unspaced(["Smultronstället", "a review of 红楼梦"])
    assert not metrics.unspaced(["", "123 !"])


def test_a_tie_of_two_answers_is_half_right():
    assert metrics.preference(np.array([1.0, -1, 0, 2])) == {"accuracy": 0.625, "mean_margin": 0.5}


# What is refused


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([], "the truth: there are no rows; give at least one"),
        ([0, 1, 3], "the truth, row 2: 3 is none of the 3 classes, 0 to 2"),
        ([0, -1], "the truth, row 1: -1 is none of the 3 classes, 0 to 2"),
        ([0, 0.5], "the truth, row 1: 0.5 is none of the 3 classes, 0 to 2"),
        ([0, float("nan")], "the truth, row 1: nan is not a finite number"),
        ([float("inf")], "the truth, row 0: inf is not a finite number"),
        (["cat"], "the truth must be numbers in rows of one length, but could not convert string to float: 'cat'"),
        ([[0, 1]], r"the truth must be a list of class numbers, not an array of shape \[1, 2\]"),
        (None, "the truth: there are no rows"),
        (3, "the truth: there are no rows"),
    ],
)
def test_bad_class_numbers_are_one_sentence(values, message):
    with pytest.raises(ConfigError, match=message):
        metrics.class_numbers(values, 3, "the truth")


@pytest.mark.parametrize("values", [[0, 1], [[0, 2]], [[0], [0, 1]], [[float("nan"), 0]], []])
def test_bad_flags_are_refused(values):
    with pytest.raises(ConfigError, match="the truth"):
        metrics.flags(values, "the truth")


def test_lengths_must_agree():
    with pytest.raises(ConfigError, match="there are 2 predictions for 3 rows; give one for each"):
        metrics.classification(np.array([0, 1, 2]), np.array([0, 1]), 3)
    with pytest.raises(ConfigError, match="there are no rows to grade; give at least one"):
        metrics.written([], [])
