"""Draws of a belief: nothing is done where nothing is known, and the exact posterior is drawn where growth was read."""

from __future__ import annotations

import numpy as np
import pytest

from twin.batch import Batch, assimilate, believe_at, start
from twin.bioreactor import physiology
from twin.config import load_config
from twin.donors.prior import preset_prior
from twin.estimation.belief import N_STATE, Belief, draws, split
from twin.estimation.draw import PROPOSED, informed_draws
from twin.evidence import Measurement

PROCESS = load_config("car_nk")
BATCH = start("b", PROCESS, preset_prior(PROCESS))
LAYOUT = BATCH.layout


def growth(points: np.ndarray) -> np.ndarray:
    x, cell, _ = split(points, LAYOUT, PROCESS.theta.cell)
    return np.log(physiology(x, PROCESS.theta._replace(cell=cell)).mu)


def informed(batch: Batch, at: float, n: int, seed: int = 1) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return informed_draws(believe_at(batch, at), batch.prior, LAYOUT, PROCESS.theta, n, rng)


def test_before_any_reading_draws_are_those_of_the_gaussian() -> None:
    plain = draws(BATCH.prior, PROPOSED * 64, np.random.default_rng(1))
    kept = informed(BATCH, 0.0, 64)
    assert {tuple(c) for c in kept.T} <= {tuple(c) for c in plain.T}
    many = informed(BATCH, 0.0, 20_000)
    np.testing.assert_allclose(many.mean(axis=1), BATCH.prior.mean, atol=0.02)
    np.testing.assert_allclose(many[N_STATE].std(), BATCH.prior.cov[N_STATE, N_STATE] ** 0.5, rtol=0.03)


def test_the_same_seed_gives_the_same_draws() -> None:
    batch = assimilate(BATCH, Measurement("x", "viable_density", 0.8, 1.0, 1.0))
    np.testing.assert_array_equal(informed(batch, 1.5, 32), informed(batch, 1.5, 32))


@pytest.mark.parametrize("off", [-0.3, -0.15, 0.0, 0.15, 0.3])
def test_a_limit_that_would_have_stopped_growth_that_is_read_is_as_unlikely_as_by_bayes(off: float) -> None:
    """Growth read once, near the replicative limit, `off` in ln from what the prior expects (whose own sd is about .45).

    The exact posterior by importance sampling from the prior, against draws about the Gaussian that a filter comes to whose
    tangent is at its own mean. The lower end of the limit; at the upper one the Gaussian has no draws to keep.
    """
    mean, cov = BATCH.prior.mean.copy(), np.zeros((LAYOUT.size, LAYOUT.size))
    mean[LAYOUT.index("doublings")] = np.log(15.0)
    i, j = LAYOUT.index("mu_max"), LAYOUT.index("PD_max")
    cov[i, i], cov[j, j] = 0.15**2, 0.30**2
    prior, noise = Belief(0.0, mean, cov), 0.05
    read, at = growth(mean[:, None]) + off, mean
    for _ in range(5):
        here = growth(at[:, None])
        slope = (growth(at[:, None] + 1e-5 * np.eye(LAYOUT.size)) - here) / 1e-5
        gain = cov @ slope / (slope @ cov @ slope + noise**2)
        at = mean + gain * float(read[0] - here[0] - slope @ (mean - at))
    after = Belief(0.0, at, cov - np.outer(gain, slope @ cov))

    drawn = draws(prior, 400_000, np.random.default_rng(2))
    weight = np.exp(-0.5 * np.square((growth(drawn) - read) / noise))
    order = np.argsort(drawn[j])
    exact = float(np.interp(0.05, np.cumsum(weight[order]) / weight.sum(), drawn[j][order]))

    rng = np.random.default_rng(3)
    right = float(np.quantile(informed_draws(after, prior, LAYOUT, PROCESS.theta, 20_000, rng)[j], 0.05))
    straight = float(np.quantile(draws(after, 20_000, rng)[j], 0.05))
    assert right == pytest.approx(exact, abs=0.015)
    assert straight < exact - 0.015


def test_a_culture_that_cannot_grow_is_drawn_all_the_same() -> None:
    batch = BATCH
    for k in range(4):
        batch = assimilate(batch, Measurement(f"d{k}", "viable_density", 0.02, 12.0 + 0.3 * k, 12.0 + 0.3 * k))
    assert np.isfinite(informed(batch, 13.0, 32)).all()
