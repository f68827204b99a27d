"""The Gaussian filters against a particle filter, and the particle filter against closed forms."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pytest

from tests.twin.particle import Cloud, Look, filtered, particle_filter
from twin.batch import start
from twin.bioreactor import Control
from twin.config import load_config
from twin.donors.prior import preset_prior
from twin.estimation.belief import Belief
from twin.estimation.filters import ekf, ukf
from twin.estimation.model import BioreactorModel
from twin.inputs import Drive

A = np.array([[0.95, 0.10, 0.0], [-0.05, 0.90, 0.2], [0.0, 0.0, 1.0]])
H = {"a": np.array([1.0, 0, 0]), "b": np.array([0.5, -1.0, 2.0])}
Q = np.diag([0.02, 0.03, 0.0])


class Linear:
    """x' = A x + u over a unit span; the last coordinate rests and gathers no noise."""

    changing, moving = 2, 3

    def advance(self, points: np.ndarray, drive: Any, span: float) -> np.ndarray:
        return A @ points + np.array([drive, 0.0, 0.0])[:, None]

    def process_noise(self, belief: Belief, span: float) -> np.ndarray:
        return Q * span

    def observe(self, points: np.ndarray, channels: Sequence[str], drive: Any) -> np.ndarray:
        return np.array([H[c] @ points for c in channels])


class Curved:
    """One coordinate that drifts with a wave and is read through an exponential."""

    changing = moving = 1

    def advance(self, points: np.ndarray, drive: Any, span: float) -> np.ndarray:
        return points + 0.6 * np.sin(2.0 * points)

    def process_noise(self, belief: Belief, span: float) -> np.ndarray:
        return np.array([[0.05 * span]])

    def observe(self, points: np.ndarray, channels: Sequence[str], drive: Any) -> np.ndarray:
        return np.exp(0.7 * points)


def repeated(make: Any, runs: int = 4) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean and standard deviation over independent runs of the filter, and the standard errors of the means."""
    clouds: list[Cloud] = [make(np.random.default_rng([77, i])) for i in range(runs)]
    means, covs = np.array([c.mean for c in clouds]), np.array([c.cov for c in clouds])
    return means.mean(0), covs.mean(0), means.std(0, ddof=1) / np.sqrt(runs)


def kalman(prior: Belief, looks: Sequence[Look]) -> tuple[np.ndarray, np.ndarray]:
    mean, cov = prior.mean, prior.cov
    for look in looks:
        mean, cov = A @ mean + np.array([look.drive, 0.0, 0.0]), A @ cov @ A.T + Q
        h = np.array([H[c] for c in look.channels])
        s = h @ cov @ h.T + np.diag(look.r)
        gain = cov @ h.T @ np.linalg.inv(s)
        mean, cov = mean + gain @ (look.y - h @ mean), cov - gain @ s @ gain.T
    return mean, cov


@pytest.mark.parametrize("guided", [False, True])
def test_particles_find_the_kalman_posterior_of_a_linear_model(guided: bool) -> None:
    """With the bootstrap and with the guide, a mean within four standard errors and a covariance within 3 %."""
    rng = np.random.default_rng(1)
    model: Any = Linear()
    factor = rng.normal(size=(3, 3))
    prior = Belief(0.0, rng.normal(size=3), factor @ factor.T + 0.1 * np.eye(3))
    looks = [
        Look(float(k), 0.3, ("a", "b")[: 1 + k % 2], rng.normal(size=1 + k % 2), np.full(1 + k % 2, 0.4))
        for k in range(1, 7)
    ]
    guide = ukf(model, 3) if guided else None
    mean, cov, error = repeated(lambda rng: particle_filter(model, prior, looks, 60_000, rng, guide))
    exact, spread = kalman(prior, looks)
    sd = np.sqrt(np.diagonal(spread))
    assert np.all(np.abs(mean - exact) < 4.0 * error + 0.002 * sd)
    assert np.all(error < 0.02 * sd)
    np.testing.assert_allclose(cov / np.outer(sd, sd), spread / np.outer(sd, sd), atol=0.03)
    if guided:  # the guess is exact here: but for their first spread no particle weighs more than another
        assert particle_filter(model, prior, looks, 10_000, rng, guide).ess > 9_000


@pytest.mark.parametrize("guided", [False, True])
def test_particles_find_the_posterior_of_a_curved_model(guided: bool) -> None:
    """Against Bayes' rule on a grid, where the posterior is far from normal."""
    model: Any = Curved()
    prior = Belief(0.0, np.array([0.4]), np.array([[1.0]]))
    looks = [
        Look(float(k), None, ("e",), np.array([y]), np.array([0.5])) for k, y in enumerate((2.0, 1.1, 1.4), start=1)
    ]
    x = np.linspace(-6.0, 6.0, 4001)
    density = np.exp(-0.5 * (x - 0.4) ** 2)
    ahead = model.advance(x[None], None, 1.0)[0]
    kernel = np.exp(-0.5 * (x[:, None] - ahead[None]) ** 2 / 0.05)
    for look in looks:
        density = (kernel @ density) * np.exp(-0.5 * (look.y[0] - np.exp(0.7 * x)) ** 2 / look.r[0])
        density /= density.sum()
    exact = float(density @ x)
    spread = float(np.sqrt(density @ (x - exact) ** 2))
    gauss = filtered(ukf(model, 1), prior, looks)[-1]
    mean, cov, error = repeated(
        lambda rng: particle_filter(model, prior, looks, 60_000, rng, ukf(model, 1) if guided else None)
    )
    assert abs(mean[0] - exact) < 4.0 * error[0] + 0.002 * spread
    assert error[0] < 0.02 * spread
    assert np.sqrt(cov[0, 0]) == pytest.approx(spread, rel=0.03)
    assert abs(gauss.mean[0] - exact) > 0.1 * spread  # the oracle sees what a Gaussian filter cannot


class Compared(NamedTuple):
    """Differences from the oracle, over all coordinates: of means in its standard deviations, of these in their ratio."""

    means: np.ndarray
    spreads: np.ndarray
    error: np.ndarray  # standard error of the oracle's means, in its standard deviations


PROCESS = load_config("car_nk")
PROBES = ("capacitance", "raman_glucose", "raman_lactate", "ph", "do", "oxygen_uptake", "weight")
LABS = ("viable_density", "viability", "glucose", "lactate", "glutamine", "ammonia")


def simulated(
    model: BioreactorModel, truth: np.ndarray, begin: float, every: float, count: int, drive: Drive,
    rng: np.random.Generator,
) -> tuple[list[Look], np.ndarray]:  # fmt: skip
    """Readings of the model's own world: probes each time, the laboratory every second; and the truth at the end."""
    looks: list[Look] = []
    anywhere = Belief(0.0, truth, np.eye(truth.size))
    root = np.sqrt(np.diagonal(model.process_noise(anywhere, every)))
    for k in range(1, count + 1):
        truth = model.advance(truth[:, None], drive, every)[:, 0] + root * rng.standard_normal(truth.size)
        channels = PROBES + (LABS if k % 2 == 0 else ())
        r = np.square([PROCESS.sensors[c].sd for c in channels])
        z = model.observe(truth[:, None], channels, drive)[:, 0]
        looks.append(Look(begin + k * every, drive, channels, z + np.sqrt(r) * rng.standard_normal(r.size), r))
    return looks, truth


def held_to_particles(day: float, seed: int) -> dict[str, Compared]:
    """A day with readings every six hours, from inoculation or from what the filter believes later, of a drawn donor."""
    batch = start("oracle", PROCESS, preset_prior(PROCESS))
    layout, model = batch.layout, BioreactorModel(PROCESS, batch.layout)
    guide, drive = ukf(model, layout.size), Drive(Control(perfusion=0.5, cytokine_dose=300.0), PROCESS.theta.medium)
    rng, prior = np.random.default_rng([seed, 6]), batch.prior
    truth = prior.mean + np.linalg.cholesky(prior.cov) @ rng.standard_normal(layout.size)
    if day > 0.0:
        before, truth = simulated(model, truth, 0.0, 0.25, round(4 * day), drive, rng)
        prior = filtered(guide, prior, before)[-1]
        truth = prior.mean + np.linalg.cholesky(prior.cov) @ rng.standard_normal(layout.size)
    looks, _ = simulated(model, truth, day, 0.25, 4, drive, rng)
    mean, cov, error = repeated(lambda rng: particle_filter(model, prior, looks, 50_000, rng, guide), runs=3)
    sd = np.sqrt(np.diagonal(cov))
    found: dict[str, Compared] = {}
    for algorithm in (guide, ekf(model, layout.size)):
        belief = filtered(algorithm, prior, looks)[-1]
        spread = np.sqrt(np.diagonal(belief.cov))
        found[algorithm.name] = Compared((belief.mean - mean) / sd, spread / sd - 1.0, error / sd)
    return found


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_filters_agree_with_particles_over_a_day() -> None:
    """Four days of matched donors, two from inoculation and two from day 3. The root mean square of the differences over
    all coordinates stays below .1 sd for the means and below 6 % for the spreads, on every one of them; what is curved
    most (lactate near its detection limit, limits of growth that nothing has tested yet) is up to .4 sd and 30 % off."""
    days = [held_to_particles(day, seed) for day in (0.0, 3.0) for seed in (1, 2)]
    for name in ("ukf", "ekf"):
        for found in (d[name] for d in days):
            off = np.abs(found.means)
            assert np.sqrt(np.mean(found.error**2)) < 0.02  # the oracle knows what it is asked
            assert np.sqrt(np.mean(off**2)) < 0.1
            assert np.all(off < 0.4 + 3.0 * found.error)
            assert np.sqrt(np.mean(found.spreads**2)) < 0.06
            assert np.all(np.abs(found.spreads) < 0.3)
    assert np.sqrt(np.mean(np.square([d["ukf"].means for d in days]))) < 0.06
