"""Intervals: as wide as theory says, as often right as they promise, the same for the same seed."""

import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from pellucid.core.errors import ConfigError
from pellucid.evaluation import metrics
from pellucid.evaluation.comparing import MODEL, compare
from pellucid.evaluation.intervals import bootstrap, draws, percentiles, wilson


def share(hits, **options):
    """A statistic of single rows."""
    return bootstrap(lambda weights: metrics.mean(hits, weights)[:, None], np.ones(len(hits), dtype=np.int64), **options)


def test_the_interval_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(0)
    covered = 0
    for trial in range(250):
        hits = (rng.random(200) < 0.8).astype(float)
        found = percentiles(hits.mean(), share(hits, seed=trial, resamples=400)[:, 0])
        covered += found.low <= 0.8 <= found.high
    assert 0.915 <= covered / 250 <= 0.98  # 95 % but for two standard errors, and what percentiles miss on 200 rows


def test_the_interval_of_a_difference_covers_it_as_often_as_it_says():
    """Macro-F1 and accuracy of two systems that share most mistakes: the paired interval is for their difference."""
    rng = np.random.default_rng(1)
    covered, trials = 0, 100
    for trial in range(trials):
        truth = rng.integers(3, size=300)
        hard = rng.random(300) < 0.4
        model = np.where(hard & (rng.random(300) < 0.5), (truth + 1) % 3, truth)
        floor = np.where(hard & (rng.random(300) < 0.75), (truth + 1) % 3, truth)
        _, _, gap = compare("classify", truth, {MODEL: model, "floor": floor}, ("a", "b", "c")).estimate("accuracy", trial)
        covered += gap.estimate.low <= 0.1 <= gap.estimate.high  # 0.4 x (0.75 - 0.5)
    assert 0.9 <= covered / trials <= 0.99


def test_kinds_of_rows_are_drawn_as_rows_are():
    """Both ways of drawing have the means and variances of a multinomial."""
    for counts in (np.array([1] * 30), np.array([400, 100, 0, 500])):
        found, total = draws(counts, 4000, np.random.default_rng(0)), counts.sum()
        assert (found.sum(axis=1) == total).all()
        p = counts / total
        np.testing.assert_allclose(found.mean(axis=0), total * p, atol=5 * np.sqrt(total * 0.25 / 4000))
        np.testing.assert_allclose(found.var(axis=0), total * p * (1 - p), rtol=0.15)


def test_it_is_as_wide_as_theory_says():
    values = np.random.default_rng(0).normal(size=2000)
    found = percentiles(values.mean(), share(values, seed=3)[:, 0])
    assert found.high - found.low == pytest.approx(2 * 1.96 * values.std() / np.sqrt(2000), rel=0.08)


def test_the_same_seed_gives_the_same_interval_in_portions_too(monkeypatch):
    hits = np.random.default_rng(0).random(50)
    whole = share(hits, seed=7)
    np.testing.assert_array_equal(whole, share(hits, seed=7))
    assert (whole != share(hits, seed=8)).any()
    monkeypatch.setattr("pellucid.evaluation.intervals.PORTION", 170)
    np.testing.assert_allclose(share(hits, seed=7), whole, rtol=1e-12)


def test_a_thousand_resamples_of_ten_thousand_rows_and_77_classes_are_quick():
    rng = np.random.default_rng(0)
    truth = rng.integers(77, size=10_000)
    model, floor = (np.where(rng.random(10_000) < p, truth, rng.integers(77, size=10_000)) for p in (0.9, 0.8))
    begun = time.process_time()
    estimates, by_class, gap = compare("classify", truth, {MODEL: model, "floor": floor}, tuple(map(str, range(77)))).estimate(
        "accuracy", 0
    )
    assert time.process_time() - begun < 5  # 0.6 s on an idle core
    assert len(by_class) == 77
    assert gap.estimate.low > 0.08
    assert estimates[MODEL]["accuracy"].low < estimates[MODEL]["accuracy"].value < estimates[MODEL]["accuracy"].high


@given(st.integers(1, 500), st.data())
def test_wilson_is_that_of_scipy(rows, data):
    successes = data.draw(st.integers(0, rows))
    theirs = stats.binomtest(successes, rows).proportion_ci(0.95, method="wilson")
    found = wilson(successes, rows)
    assert (found.value, found.low, found.high) == pytest.approx((successes / rows, theirs.low, theirs.high), abs=1e-12)


@pytest.mark.parametrize(("counts", "resamples"), [([], 10), ([0, 0], 10), ([1], 0)])
def test_nothing_to_draw_is_refused(counts, resamples):
    with pytest.raises(ConfigError, match=r"no rows to draw from|make no interval"):
        bootstrap(lambda weights: weights, np.array(counts, dtype=np.int64), seed=0, resamples=resamples)


@pytest.mark.parametrize(("successes", "rows"), [(1, 0), (-1, 3), (4, 3), (float("nan"), 3)])
def test_what_is_no_share_is_refused(successes, rows):
    with pytest.raises(ConfigError, match="is no share; give 0 to"):
        wilson(successes, rows)
