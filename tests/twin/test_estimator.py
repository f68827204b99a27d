"""The filters against the dumbest textbook Kalman filter, and their behaviour at the gate."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from twin.estimation.belief import Belief
from twin.estimation.filters import FILTERS, STREAK, Datum, Filter, root

A = np.array([[0.95, 0.10, 0.0, 0.0], [-0.05, 0.90, 0.2, 0.0], [0.0, 0.0, 0.99, 0.05], [0.0, 0.0, 0.0, 1.0]])
B = np.array([0.3, -0.1, 0.0, 0.0])
H = {"a": np.array([1.0, 0, 0, 0]), "b": np.array([0.5, -1.0, 0, 2.0]), "c": np.array([0, 0, 1.0, 1.0])}
Q = np.diag([0.02, 0.03, 0.01, 0.005])


class Linear:
    """x' = A x + B u over a unit span; Q per unit span."""

    def advance(self, points: np.ndarray, drive: Any, span: float) -> np.ndarray:
        assert span == 1.0
        return A @ points + (B * drive)[:, None]

    def advance_jacobian(self, mean: np.ndarray, drive: Any, span: float) -> tuple[np.ndarray, np.ndarray]:
        return A @ mean + B * drive, A

    def process_noise(self, belief: Belief, span: float) -> np.ndarray:
        return Q * span

    def doubted(self, channel: str) -> np.ndarray:
        return np.ones(4)

    def observe(self, points: np.ndarray, channel: str, drive: Any) -> np.ndarray:
        return H[channel] @ points

    def observe_jacobian(self, mean: np.ndarray, channel: str, drive: Any) -> tuple[float, np.ndarray]:
        return float(H[channel] @ mean), H[channel]


def textbook(
    mean: np.ndarray, cov: np.ndarray, steps: list[tuple[float, dict[str, float], float]]
) -> tuple[np.ndarray, np.ndarray]:
    """Kalman 1960, all sensors of an instant stacked into one vector update."""
    for drive, readings, r in steps:
        mean, cov = A @ mean + B * drive, A @ cov @ A.T + Q
        if readings:
            h = np.array([H[k] for k in readings])
            s = h @ cov @ h.T + r * np.eye(len(readings))
            gain = cov @ h.T @ np.linalg.inv(s)
            mean = mean + gain @ (np.array(list(readings.values())) - h @ mean)
            cov = cov - gain @ s @ gain.T
    return mean, cov


def run(algorithm: Filter, belief: Belief, steps: list[tuple[float, dict[str, float], float]]) -> Belief:
    for k, (drive, readings, r) in enumerate(steps):
        belief = algorithm.predict(belief, drive, float(k + 1))
        for channel, y in readings.items():
            belief, innovation = algorithm.update(belief, Datum(channel, y, r, 1e9), drive, 0)
            assert innovation.accepted
    return belief


@pytest.mark.parametrize("name", FILTERS)
def test_filter_equals_the_textbook_on_a_linear_model_with_several_sensors_at_once(name: str) -> None:
    rng = np.random.default_rng(3)
    steps = [
        (float(rng.normal()), {k: float(rng.normal(0, 2)) for k in ("a", "b", "c")[: k % 4]}, 0.4) for k in range(60)
    ]
    prior = Belief(0.0, rng.normal(size=4), np.diag([1.0, 2.0, 0.5, 0.1]) + 0.05)
    belief = run(FILTERS[name](Linear(), 4), prior, steps)
    mean, cov = textbook(prior.mean, prior.cov, steps)
    np.testing.assert_allclose(belief.mean, mean, rtol=0, atol=1e-10)
    np.testing.assert_allclose(belief.cov, cov, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", FILTERS)
def test_an_outlier_is_rejected_and_leaves_the_belief_untouched(name: str) -> None:
    algorithm, prior = FILTERS[name](Linear(), 4), Belief(0.0, np.zeros(4), np.eye(4))
    for bad in (1e3, np.inf, -np.inf, np.nan):
        after, innovation = algorithm.update(prior, Datum("a", bad, 0.1, 5.0), 0.0, 0)
        assert not innovation.accepted
        assert after == prior


@pytest.mark.parametrize("name", FILTERS)
def test_a_streak_of_rejections_widens_and_accepts_but_never_a_nan(name: str) -> None:
    algorithm, prior = FILTERS[name](Linear(), 4), Belief(0.0, np.zeros(4), np.eye(4))
    widened, innovation = algorithm.update(prior, Datum("a", 20.0, 0.1, 5.0), 0.0, STREAK - 1)
    assert not innovation.accepted
    assert widened.mean[0] > 15.0
    assert widened.cov[0, 0] < 0.11  # the reading was taken in
    assert widened.cov[1, 1] == 1.0  # what it does not speak of is as it was
    same, _ = algorithm.update(prior, Datum("a", np.nan, 0.1, 5.0), 0.0, STREAK + 5)
    assert same == prior


def test_a_covariance_that_lost_definiteness_is_repaired() -> None:
    broken = np.diag([1.0, 1.0, -1e-9])
    factor = root(broken)
    np.testing.assert_allclose(factor.T @ factor, np.diag([1.0, 1.0, 0.0]), atol=1e-6)


def test_a_covariance_that_is_not_finite_gives_a_belief_that_says_so() -> None:
    broken = Belief(0.0, np.zeros(4), np.full((4, 4), np.nan))
    after = FILTERS["ukf"](Linear(), 4).predict(broken, 0.0, 1.0)
    assert not after.finite


@pytest.mark.parametrize("name", FILTERS)
def test_no_time_passes_no_belief_changes(name: str) -> None:
    prior = Belief(2.0, np.ones(4), np.eye(4))
    assert FILTERS[name](Linear(), 4).predict(prior, 0.0, 2.0) is prior
