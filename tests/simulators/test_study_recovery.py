"""The study of the fit's own calibration: ranks tell a right posterior from a wrong one, and readings go where they belong."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import norm

from simulators.study import STUDIES
from simulators.study.recovery import (
    BINS,
    RANKED,
    Refit,
    figures,
    jobs,
    power,
    ranks,
    run,
    simulate,
    tables,
    timetable,
    uniform_p,
)
from twin.config import ConfigError, load_config
from twin.donors.data import COUNTS, FRACTIONS

PROCESS = load_config("car_nk")
PRIOR_SD, NOISE_SD = 1.0, 0.7


def conjugate(studies: int, k: int, sure: float, seed: int) -> np.ndarray:
    """Ranks [study, k] of a Gaussian mean in exact posterior draws, sds divided by `sure`."""
    rng = np.random.default_rng(seed)
    truth = PRIOR_SD * rng.standard_normal((studies, k))
    reading = truth + NOISE_SD * rng.standard_normal((studies, k))
    gain = PRIOR_SD**2 / (PRIOR_SD**2 + NOISE_SD**2)
    sd = PRIOR_SD * np.sqrt(1.0 - gain) / sure
    draws = gain * reading + sd * rng.standard_normal((400, studies, k))
    return np.stack([ranks(draws[:, i], truth[i]) for i in range(studies)])


def test_ranks_of_exact_posteriors_are_uniform() -> None:
    p = np.array([uniform_p(conjugate(24, 1, 1.0, seed)) for seed in range(400)])
    assert np.mean(p < 0.01) < 0.03
    assert np.mean(p < 0.5) == pytest.approx(0.5, abs=0.08)


def test_an_overconfident_posterior_is_found_as_often_as_declared() -> None:
    p = np.array([uniform_p(conjugate(24, 1, 2.0, seed)) for seed in range(300)])
    assert np.mean(p < 0.01) == pytest.approx(power(24, 0.5), abs=0.1)
    assert uniform_p(conjugate(200, 1, 2.0, 1)) < 1e-6
    assert power(24, 1.0) == pytest.approx(0.01)


def test_dependent_ranks_within_a_study_do_not_pass_for_many() -> None:
    """Five donors who share most of one error: as five independent ranks they would be refused far too often."""
    refused: list[tuple[bool, bool]] = []
    for seed in range(300):
        rng = np.random.default_rng(seed)
        z = 0.9 * rng.standard_normal((24, 1)) + np.sqrt(1 - 0.81) * rng.standard_normal((24, 5))
        found = np.minimum((norm.cdf(z) * (RANKED + 1)).astype(int), RANKED)
        refused.append((uniform_p(found) < 0.01, uniform_p(found.reshape(-1, 1)) < 0.01))
    corrected, naive = np.mean(refused, axis=0)
    assert corrected < 0.04
    assert naive > 0.15


def test_ranks_count_draws_below_the_truth() -> None:
    draws = np.arange(RANKED, dtype=float)[:, None]
    assert [int(ranks(draws, np.array([t]))[0]) for t in (-1.0, 0.5, 49.5, 1e3)] == [0, 1, 50, RANKED]
    even = np.arange(RANKED + 1)[:, None]
    assert uniform_p(even) == pytest.approx(1.0)
    assert uniform_p(np.zeros((BINS * 5, 1), dtype=int)) < 1e-6
    assert np.isnan(uniform_p(np.zeros((1, 4), dtype=int)))


def test_a_process_without_static_stages_is_refused() -> None:
    with pytest.raises(ConfigError, match="stages lack activation, seed_train"):
        jobs(1, 0, "cho", None)


@pytest.mark.slow
def test_simulated_readings_are_what_the_refitted_model_observes() -> None:
    """Two routes to one array: drawn by the model's nodes, and observed by the model built anew on the mapped data."""
    from twin.donors.model import build

    data = timetable(PROCESS, 4, 3001)
    made = simulate(data, PROCESS, 3001)
    assert set(made.truth) == set(made.spread) and all(np.isfinite(v).all() for v in made.truth.values())
    again = simulate(data, PROCESS, 3001)
    for c, s in made.data.samples.items():
        assert np.array_equal(s.value, again.data.samples[c].value)
        assert np.array_equal(s.time, data.samples[c].time) and not np.array_equal(s.value, data.samples[c].value)
    model = build(made.data, PROCESS)
    counts = model.rvs_to_values[model["counts"]].data
    assert np.exp(counts) == pytest.approx(made.data.samples[COUNTS].value + 0.001)
    fractions = np.concatenate([made.data.samples[c].value for c in data.samples if c in FRACTIONS])
    assert np.asarray(model.rvs_to_values[model["fractions"]].data) == pytest.approx(fractions)


@pytest.mark.slow
def test_a_small_study_gives_finite_rows() -> None:
    job = jobs(1, 3002, "car_nk", None)[0]
    assert job == Refit(3002, "car_nk")
    row = run(job._replace(donors=4, draws=40, tune=50))
    told = [v for p in row["parameters"].values() for v in (p["rank"], p["sd"])]
    assert all(np.isfinite(v).all() and (v >= 0).all() for v in told)
    assert row["parameters"]["theta mu_max"]["rank"].shape == (4,)
    assert 0.0 < row["parameters"]["theta mu_max"]["sd"].mean() < row["spread"]["theta mu_max"]
    found = {f.name: f for f in figures([row, row])}
    assert 0.0 <= found["90 % intervals of donor parameters"].value <= 1.0
    assert len(tables([row])[0].rows) == len(row["parameters"]) == 36
    assert "recovery" in STUDIES
