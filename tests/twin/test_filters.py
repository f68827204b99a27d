"""The filters against the dumbest textbook Kalman filter."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from filterpy.kalman import MerweScaledSigmaPoints, unscented_transform

from twin.estimation.belief import Belief
from twin.estimation.conditioning import condition
from twin.estimation.filters import FILTERS, Filter, root

A = np.array([[0.95, 0.10, 0.0, 0.0], [-0.05, 0.90, 0.2, 0.0], [0.0, 0.0, 0.99, 0.05], [0.0, 0.0, 0.0, 1.0]])
B = np.array([0.3, -0.1, 0.0, 0.0])
H = {"a": np.array([1.0, 0, 0, 0]), "b": np.array([0.5, -1.0, 0, 2.0]), "c": np.array([0, 0, 1.0, 1.0])}
Q = np.diag([0.02, 0.03, 0.01, 0.005])


class Linear:
    """x' = A x + B u over a unit span; Q per unit span."""

    changing = moving = 4

    def advance(self, points: np.ndarray, drive: Any, span: float) -> np.ndarray:
        assert span == 1.0
        return A @ points + (B * drive)[:, None]

    def advance_jacobian(self, mean: np.ndarray, drive: Any, span: float) -> tuple[np.ndarray, np.ndarray]:
        return A @ mean + B * drive, A

    def process_noise(self, belief: Belief, span: float) -> np.ndarray:
        return Q * span

    def observe(self, points: np.ndarray, channels: Sequence[str], drive: Any) -> np.ndarray:
        return np.array([H[c] @ points for c in channels])

    def observe_jacobian(self, mean: np.ndarray, channels: Sequence[str], drive: Any) -> tuple[np.ndarray, np.ndarray]:
        rows = np.array([H[c] for c in channels])
        return rows @ mean, rows


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
        if readings:
            joint = algorithm.look(belief, tuple(readings), drive)
            for row, y in enumerate(readings.values(), start=4):
                joint = condition(joint, row, y, r)
            belief = Belief(belief.time, joint.mean[:4], joint.cov[:4, :4])
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
def test_transit_is_predict_with_the_covariance_between_before_and_after(name: str) -> None:
    rng = np.random.default_rng(8)
    factor = rng.normal(size=(4, 4))
    prior = Belief(0.0, rng.normal(size=4), factor @ factor.T + 0.1 * np.eye(4))
    algorithm = FILTERS[name](Linear(), 4)
    after, cross = algorithm.transit(prior, 0.7, 1.0)
    assert after == algorithm.predict(prior, 0.7, 1.0)
    np.testing.assert_allclose(cross, prior.cov @ A.T, atol=1e-10)


def test_sigma_points_are_those_of_the_library() -> None:
    """The unscented moments of a curved function, by filterpy's own points and by ours."""
    rng = np.random.default_rng(5)
    factor = rng.normal(size=(4, 4))
    belief = Belief(0.0, rng.normal(size=4), factor @ factor.T + 0.1 * np.eye(4))

    class Curved(Linear):
        def observe(self, points: np.ndarray, channels: Sequence[str], drive: Any) -> np.ndarray:
            return np.array([np.exp(0.3 * points[0]) + points[1] ** 2])

    joint = FILTERS["ukf"](Curved(), 4).look(belief, ("a",), 0.0)
    sigma = MerweScaledSigmaPoints(4, alpha=1.0, beta=2.0, kappa=-1.0)
    points = sigma.sigma_points(belief.mean, belief.cov)
    z = np.exp(0.3 * points[:, 0]) + points[:, 1] ** 2
    mean, cov = unscented_transform(z[:, None], sigma.Wm, sigma.Wc)
    np.testing.assert_allclose([joint.mean[-1], joint.cov[-1, -1]], [mean[0], cov[0, 0]], rtol=1e-12)
    cross = ((points - belief.mean).T * sigma.Wc) @ (z - mean[0])
    np.testing.assert_allclose(joint.cov[:4, -1], cross, rtol=0, atol=1e-12)


def test_a_covariance_that_lost_definiteness_is_repaired() -> None:
    broken = np.diag([1.0, 1.0, -1e-9])
    factor, repaired = root(broken)
    assert repaired
    np.testing.assert_allclose(factor.T @ factor, np.diag([1.0, 1.0, 0.0]), atol=1e-6)


def test_a_covariance_that_is_not_finite_gives_a_belief_that_says_so() -> None:
    broken = Belief(0.0, np.zeros(4), np.full((4, 4), np.nan))
    after = FILTERS["ukf"](Linear(), 4).predict(broken, 0.0, 1.0)
    assert not after.finite


@pytest.mark.parametrize("name", FILTERS)
def test_no_time_passes_no_belief_changes(name: str) -> None:
    prior = Belief(2.0, np.ones(4), np.eye(4))
    assert FILTERS[name](Linear(), 4).predict(prior, 0.0, 2.0) is prior


def test_what_is_expected_beside_the_belief_is_what_is_seen() -> None:
    """GIVEN a linear model, THEN expectations and cross-covariance are H m, H P H' and P H', and `look` joins them to the belief."""
    rng = np.random.default_rng(2)
    factor = rng.normal(size=(4, 4))
    belief = Belief(0.0, rng.normal(size=4), factor @ factor.T + 0.1 * np.eye(4))
    h = np.array([H["a"], H["c"]])
    for make in FILTERS.values():
        algorithm = make(Linear(), 4)
        expected, joint = algorithm.expect(belief, ("a", "c"), 0.0), algorithm.look(belief, ("a", "c"), 0.0)
        np.testing.assert_allclose(expected.mean, h @ belief.mean, atol=1e-12)
        np.testing.assert_allclose(expected.cov, h @ belief.cov @ h.T, atol=1e-12)
        np.testing.assert_allclose(expected.cross, belief.cov @ h.T, atol=1e-12)
        np.testing.assert_array_equal(joint.mean, np.concatenate([belief.mean, expected.mean]))
        np.testing.assert_array_equal(
            joint.cov, np.block([[belief.cov, expected.cross], [expected.cross.T, expected.cov]])
        )


def test_covariances_stay_symmetric_to_the_last_bit() -> None:
    rng = np.random.default_rng(11)
    factor = rng.normal(size=(4, 4))
    cov = factor @ factor.T + 0.1 * np.eye(4)
    prior = Belief(0.0, rng.normal(size=4), (cov + cov.T) / 2.0)
    for make in FILTERS.values():
        algorithm = make(Linear(), 4)
        ahead = algorithm.predict(prior, 0.3, 1.0)
        np.testing.assert_array_equal(ahead.cov, ahead.cov.T)
