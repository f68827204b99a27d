"""Scores against their closed forms, calibration against what is known of it, and the golden ranges of small counts."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit, logit
from scipy.stats import kstest, norm

from twin.scores import (
    bootstrap,
    brier,
    coverage_power,
    crps,
    crps_normal,
    logistic_calibration,
    pit,
    roc,
    threshold_at,
    warned,
)

RNG = np.random.default_rng(20)


def test_crps_of_two_members_by_hand() -> None:
    """Members 0 and 2, truth 1: mean distance 1; mean difference of pairs 1 (plain, with themselves) or 2 (fair)."""
    assert crps(np.array([0.0, 2.0]), np.array(1.0), fair=False) == pytest.approx(0.5)
    assert crps(np.array([2.0, 0.0]), np.array(1.0)) == pytest.approx(0.0)


def test_crps_of_one_member_is_the_absolute_error_and_cannot_be_fair() -> None:
    assert crps(np.array([3.0]), np.array(1.0), fair=False) == 2.0
    with pytest.raises(ValueError, match="at least 2"):
        crps(np.array([3.0]), np.array(1.0))


@given(st.lists(st.floats(-10, 10), min_size=2, max_size=9), st.floats(-10, 10))
def test_crps_is_the_double_sum_of_its_definition(members: list[float], truth: float) -> None:
    v, m = np.array(members), len(members)
    apart = np.abs(v[:, None] - v).sum()
    near = np.abs(v - truth).mean()
    assert crps(v, np.array(truth), fair=False) == pytest.approx(near - apart / (2 * m * m), abs=1e-9)
    assert crps(v, np.array(truth)) == pytest.approx(near - apart / (2 * m * (m - 1)), abs=1e-9)


def test_a_fair_ensemble_of_eight_scores_in_the_mean_as_the_gaussian_it_is_drawn_from() -> None:
    fair = crps(1.0 + 2.0 * RNG.standard_normal((40_000, 8)), np.full(40_000, 2.5))
    assert fair.mean() == pytest.approx(crps_normal(1.0, 2.0, 2.5), abs=4 * fair.std() / 200)
    assert crps_normal(0.0, 1.0, 0.0) == pytest.approx((np.sqrt(2) - 1) / np.sqrt(np.pi))


def test_pit_is_uniform_where_truth_is_one_more_draw_ties_included() -> None:
    for drawn in (RNG.standard_normal((4000, 11)), RNG.integers(0, 3, (4000, 11)).astype(float)):
        assert kstest(pit(drawn[:, 1:], drawn[:, 0], RNG), "uniform").pvalue > 0.01
    narrow = pit(0.5 * RNG.standard_normal((4000, 10)), RNG.standard_normal(4000), RNG)
    assert kstest(narrow, "uniform").pvalue < 1e-6


def test_brier_by_hand() -> None:
    found = brier(np.array([1.0, 0.0, 0.5, 0.5]), np.array([True, False, True, False]))
    assert found.score == pytest.approx(0.125)
    assert found.base == pytest.approx(0.25)
    assert (found.reliability, found.resolution, found.within) == pytest.approx((0.0, 0.125, 0.0))
    assert found.skill == pytest.approx(0.5)
    assert np.isnan(brier(np.array([0.9]), np.array([True])).skill)


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=40), st.integers(1, 12))
def test_the_parts_of_brier_add_up(pairs: list[tuple[float, bool]], bins: int) -> None:
    b = brier(np.array([p for p, _ in pairs]), np.array([y for _, y in pairs]), bins)
    assert b.score == pytest.approx(b.reliability - b.resolution + b.base + b.within, abs=1e-12)


def test_forecasts_that_are_the_base_rate_score_as_the_base_rate() -> None:
    y = RNG.random(300) < 0.3
    b = brier(np.full(300, y.mean()), y)
    assert b.score == pytest.approx(b.base)


def test_the_slope_of_forecasts_that_are_too_sure_is_what_made_them_so() -> None:
    true = expit(1.5 * RNG.standard_normal(40_000))
    y = RNG.random(true.size) < true
    honest = logistic_calibration(true, y, 10**9)
    assert (honest.slope, honest.intercept) == pytest.approx((1.0, 0.0), abs=0.05)
    sure = logistic_calibration(expit(2.0 * logit(true) + 1.0), y, 10**9)
    assert (sure.slope, sure.intercept) == pytest.approx((0.5, -0.5), abs=0.05)
    assert abs(honest.slope - 1.0) < 4 * honest.slope_sd
    assert not honest.separated


def test_the_slope_on_a_two_by_two_table_is_the_log_odds_ratio() -> None:
    """Forecasts of 1/4 and 3/4 alone: the model is saturated, so fitted log odds are the observed ones."""
    p = np.repeat([0.25, 0.75], [10, 20])
    y = np.r_[np.arange(10) < 3, np.arange(20) < 16]
    fit = logistic_calibration(p, y, 10**9)
    assert fit.intercept + fit.slope * logit(0.25) == pytest.approx(logit(0.3), abs=1e-5)
    assert fit.intercept + fit.slope * logit(0.75) == pytest.approx(logit(0.8), abs=1e-5)


def test_separated_outcomes_have_a_finite_slope_and_say_so() -> None:
    for y in ([False, False, True, True], [True, True, True, True]):
        fit = logistic_calibration(np.array([0.1, 0.2, 0.8, 1.0]), np.array(y), 100)
        assert fit.separated
        assert np.isfinite(fit).all()
    with pytest.raises(ValueError, match="alike"):
        logistic_calibration(np.full(4, 0.5), np.array([True, False, True, False]), 100)


def test_the_area_under_the_roc_is_the_share_of_pairs_in_order() -> None:
    score, happened = np.round(RNG.random(60), 1), RNG.random(60) < 0.4
    yes, no = score[happened], score[~happened]
    pairs = (yes[:, None] > no).mean() + 0.5 * (yes[:, None] == no).mean()
    curve = roc(score, happened)
    assert curve.auc == pytest.approx(pairs)
    assert curve.auc == pytest.approx(float(np.trapezoid(curve.hits, curve.false_alarms)))
    assert (curve.false_alarms[0], curve.hits[0], curve.false_alarms[-1], curve.hits[-1]) == (0.0, 0.0, 1.0, 1.0)
    with pytest.raises(ValueError, match="both outcomes"):
        roc(score, np.zeros(60, dtype=bool))


@given(st.lists(st.integers(0, 20), min_size=1, max_size=50), st.floats(0, 0.99))
def test_a_threshold_gives_no_more_alarms_than_asked_and_none_lower_does(score: list[int], rate: float) -> None:
    values = np.array(score) / 20
    cut = threshold_at(values, rate)
    assert (values >= cut).mean() <= rate + 1e-9
    lower = values[values < cut].max()
    assert (values >= lower).mean() > rate


def test_a_threshold_of_a_gaussian_is_its_quantile() -> None:
    assert threshold_at(RNG.standard_normal(100_000), 0.05) == pytest.approx(norm.ppf(0.95), abs=0.02)


def test_warnings_are_given_at_the_other_halfs_threshold() -> None:
    """Passing batches peak at .2 (even places) and .4 (odd): even ones are held to just above .4, odd ones to above .2."""
    courses = [([1.0, 2.0, 3.0], [0.1, peak, 0.1]) for peak in (0.2, 0.4, 0.2, 0.4)]
    failing = [([1.0, 2.0, 3.0], [0.0, 0.3, 0.9]), ([1.0, 2.0, 3.0], [0.0, 0.3, 0.9])]
    said = warned(courses + failing, np.array([False] * 4 + [True] * 2), 0.0)
    assert said.threshold == pytest.approx((0.4, 0.2))
    np.testing.assert_array_equal(said.first[4:], [3.0, 2.0])
    assert said.false_alarms == 0.5  # the odd ones, at a threshold that saw none of them
    np.testing.assert_array_equal(np.isfinite(said.first[:4]), [False, True, False, True])


@pytest.mark.parametrize(("n", "coverage", "low", "high"), [(17, 0.9, 13, 17), (17, 0.5, 5, 12), (400, 0.9, 348, 371)])
def test_the_counts_that_agree_with_a_coverage(n: int, coverage: float, low: int, high: int) -> None:
    power = coverage_power(n, coverage)
    assert (power.low, power.high) == (low, high)
    assert f"{low}-{high} of {n}" in str(power)


def test_a_count_finds_a_coverage_with_the_power_that_it_states() -> None:
    for n in (17, 60, 400):
        power = coverage_power(n)
        drawn = np.random.default_rng(n).binomial(n, power.worse, 200_000)
        assert ((drawn < power.low) | (drawn > power.high)).mean() == pytest.approx(power.power, abs=0.005)
    assert coverage_power(17).worse < coverage_power(60).worse < coverage_power(400).worse < 0.9
    assert coverage_power(1).worse == 0.0  # one interval refuses nothing
    with pytest.raises(ValueError, match="at least 1"):
        coverage_power(0)


def test_the_bootstrap_of_a_mean_is_its_standard_error() -> None:
    values = RNG.standard_normal(400)
    low, high = bootstrap(lambda k: float(values[k].mean()), 400, np.random.default_rng(1), 4000)
    assert 0.5 * (high - low) == pytest.approx(1.96 * values.std() / 20, rel=0.06)
    assert np.isnan(bootstrap(lambda k: float("nan"), 4, RNG, 10)).all()


def test_probabilities_are_checked() -> None:
    for bad in ([1.2], [float("nan")], []):
        with pytest.raises(ValueError, match="from 0 to 1"):
            brier(np.array(bad), np.array([True] * len(bad)))
