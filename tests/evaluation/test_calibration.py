"""Calibration: formulas written out row by row, scikit-learn's curve and scores, and the temperature that made the logits."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as sklearn
from sklearn.calibration import calibration_curve

from pellucid.core.errors import ConfigError
from pellucid.evaluation import calibration


def drawn(seed, rows=300, labels=4, scale=2.0):
    """Logits whose probabilities are true, and a truth drawn from them."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, scale, (rows, labels))
    chances = calibration.probabilities(logits, multi=False)
    return logits, np.array([rng.choice(labels, p=row) for row in chances])


def drawn_flags(seed, rows=300, labels=3):
    rng = np.random.default_rng(seed)
    logits = rng.normal(-1, 2, (rows, labels))
    return logits, rng.random((rows, labels)) < 1 / (1 + np.exp(-logits))


@given(st.integers(0, 1000), st.integers(2, 6), st.sampled_from([0.5, 2, 8]))
def test_the_calibration_error_is_that_of_guo(seed, labels, scale):
    """Fifteen bins (a, b], each a loop of its own."""
    logits, truth = drawn(seed, 60, labels, scale)
    chances = torch.tensor(logits).softmax(dim=1).numpy()
    sure, right = chances.max(axis=1), chances.argmax(axis=1) == truth
    expected = 0.0
    for number in range(15):
        inside = (sure > number / 15) & (sure <= (number + 1) / 15)
        if inside.any():
            expected += inside.sum() / len(truth) * abs(right[inside].mean() - sure[inside].mean())
    assert calibration.calibration_error(*calibration.decisions(chances, truth)) == pytest.approx(expected)
    assert calibration.figures(calibration.row_figures(logits, truth))["ece"] == pytest.approx(expected)


def test_the_reliability_curve_is_that_of_scikit_learn():
    rng = np.random.default_rng(0)
    sure = rng.random((500, 1))
    right = (rng.random((500, 1)) < sure**2).astype(float)
    found = calibration.reliability(sure, right)
    there = found.rows > 0
    accuracy, confidence = calibration_curve(right[:, 0], sure[:, 0], n_bins=15, strategy="uniform")
    np.testing.assert_allclose(found.accuracy[there], accuracy)
    np.testing.assert_allclose(found.confidence[there], confidence)
    assert found.rows.sum() == 500


def test_brier_and_likelihood_are_those_of_scikit_learn_and_torch():
    logits, truth = drawn(0)
    rows = calibration.figures(calibration.row_figures(logits, truth))
    chances = torch.tensor(logits).softmax(dim=1).numpy()
    assert rows["nll"] == pytest.approx(sklearn.log_loss(truth, chances))
    one_hot = np.eye(4)[truth]
    assert rows["brier"] == pytest.approx(4 * sklearn.mean_squared_error(one_hot, chances))
    logits, flags = drawn_flags(0)
    rows = calibration.figures(calibration.row_figures(logits, flags))
    theirs = torch.nn.functional.binary_cross_entropy_with_logits(
        torch.tensor(logits), torch.tensor(flags, dtype=torch.float64)
    )
    assert rows["nll"] == pytest.approx(theirs.item())
    columns = [sklearn.brier_score_loss(flags[:, n], 1 / (1 + np.exp(-logits[:, n]))) for n in range(3)]
    assert rows["brier"] == pytest.approx(np.mean(columns))


def test_the_classwise_error_is_that_of_each_class():
    logits, truth = drawn(1, labels=3)
    chances = calibration.probabilities(logits, multi=False)
    expected = []
    for label in range(3):
        place = np.clip(np.ceil(chances[:, label] * 15) - 1, 0, 14)
        gaps = [(place == n) @ (chances[:, label] - (truth == label)) for n in range(15)]
        expected.append(np.abs(gaps).sum() / len(truth))
    np.testing.assert_allclose(calibration.classwise_error(chances, truth), expected)


@pytest.mark.parametrize("stretched", [0.3, 1.0, 4.0])
@pytest.mark.parametrize("make", [drawn, drawn_flags])
def test_the_temperature_is_found_again(make, stretched):
    logits, truth = make(0, 4000)
    assert calibration.fit_temperature(logits * stretched, truth) == pytest.approx(stretched, rel=0.08)


@pytest.mark.parametrize("make", [drawn, drawn_flags])
def test_no_temperature_is_likelier(make):
    logits, truth = make(3, 200)
    found = calibration.fit_temperature(logits * 3, truth)

    def likelihood(temperature):
        return -calibration.surprise(logits * 3 / temperature, truth).mean()

    assert likelihood(found) >= max(likelihood(found * factor) for factor in (0.9, 0.99, 1.01, 1.1))


def test_scaling_mends_calibration_on_other_rows_and_changes_no_prediction():
    logits, truth = drawn(0, 4000)
    seen, unseen = slice(0, 2000), slice(2000, None)
    temperature = calibration.fit_temperature(4 * logits[seen], truth[seen])
    before = calibration.figures(calibration.row_figures(4 * logits[unseen], truth[unseen]))
    after = calibration.figures(calibration.row_figures(4 * logits[unseen] / temperature, truth[unseen]))
    assert after["ece"] < 0.3 * before["ece"]
    assert after["nll"] < before["nll"]


@given(st.integers(0, 100), st.randoms())
def test_neither_order_nor_a_constant_added_to_logits_matters(seed, shuffler):
    logits, truth = drawn(seed, 40)
    order = list(range(40))
    shuffler.shuffle(order)
    one = calibration.figures(calibration.row_figures(logits, truth))
    other = calibration.figures(calibration.row_figures(logits[order] + 7, truth[order]))
    for metric, value in one.items():
        assert other[metric] == pytest.approx(value, abs=1e-9)


def test_huge_logits_are_no_overflow():
    logits, truth = np.array([[1e4, -1e4], [-1e4, 1e4]]), np.array([0, 1])
    with np.errstate(all="raise", under="ignore"):
        assert calibration.figures(calibration.row_figures(logits, truth)) == {"ece": 0, "brier": 0, "nll": 0}
        assert calibration.probabilities(logits, multi=True).tolist() == [[1, 0], [0, 1]]
        assert calibration.fit_temperature(logits, truth) > 0


def test_a_validation_set_without_mistakes_ends_at_the_limit():
    assert calibration.fit_temperature([[1, 0], [0, 1]], [0, 1]) == pytest.approx(0.05)
    assert calibration.fit_temperature([[1, 0], [0, 1]], [1, 0]) == pytest.approx(20)


@pytest.mark.parametrize(
    ("logits", "truth", "message"),
    [
        ([], [], "the logits: there are no rows; give at least one"),
        ([[1.0, 2.0]], [2], "the truth, row 0: 2 is none of the 2 classes, 0 to 1"),
        ([[1.0, float("nan")]], [0], "the logits, row 0: nan is not a finite number"),
        ([[1.0, 2.0], [3.0, 4.0]], [0], r"logits of shape \[2, 2\] do not fit a truth of shape \[1\]"),
        ([[1.0, 2.0]], [[1, 0, 1]], r"logits of shape \[1, 2\] do not fit a truth of shape \[1, 3\]"),
        ([1.0, 2.0], [0, 1], "the logits must have a column for each of two labels or more"),
        ([[1.0], [2.0]], [0, 0], "the logits must have a column for each of two labels or more"),
        ([[1.0, 2.0], [3.0]], [0, 0], "the logits must be numbers in rows of one length"),
        ([[1.0, 2.0]], [[0.5, 0]], "the truth, row 0: 0.5 must be 0 or 1"),
    ],
)
def test_bad_logits_are_one_sentence(logits, truth, message):
    with pytest.raises(ConfigError, match=message):
        calibration.fit_temperature(logits, truth)
