"""Recursive Gaussian estimation as pure functions on a frozen Belief: one interface, two algorithms.

A filter does two things: `predict` carries a belief in time, `look` says what sensors would read at it. What is done
with a reading (gate, quarantine, conditioning) is the same for every filter and lives in `twin.estimation.screen`.

`ukf` uses filterpy's unscented machinery (weights of Merwe's scaled points, unscented transform); `ekf` uses CasADi's
Jacobians. filterpy's filter objects are not used: a second `update` at one instant would reuse the prior's sigma
points, and NaN would poison them silently.

Symbols (Sarkka, Bayesian Filtering and Smoothing, 2013): m mean, P covariance, Q process noise, S innovation covariance.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from filterpy.kalman import MerweScaledSigmaPoints, unscented_transform
from jaxtyping import Float
from scipy import linalg

from twin.estimation.belief import Belief

Vector = Float[np.ndarray, " n"]
Matrix = Float[np.ndarray, "n n"]


class Outlook(NamedTuple):
    """Coordinates and the readings of some channels (noise apart) as one joint Gaussian, coordinates first."""

    mean: Float[np.ndarray, " n+k"]
    cov: Float[np.ndarray, "n+k n+k"]


class StateSpace(Protocol):
    """The model that a filter needs; coordinates are those of a `Layout`. `drive` holds the inputs and is opaque here."""

    @property
    def moving(self) -> int:
        """How many of the first coordinates take part in the dynamics; `advance` neither reads nor moves the rest."""
        ...

    def advance(self, points: np.ndarray, drive: Any, span: float) -> np.ndarray:
        """Carry points [n, m] over `span` days."""
        ...

    def advance_jacobian(self, mean: Vector, drive: Any, span: float) -> tuple[Vector, Matrix]:
        """The same for one point, with the derivative of the result."""
        ...

    def process_noise(self, belief: Belief, span: float) -> Matrix:
        """Covariance Q gathered over `span` days."""
        ...

    def observe(self, points: np.ndarray, channels: Sequence[str], drive: Any) -> Float[np.ndarray, "k m"]:
        """Predicted readings of `channels` at points [n, m], on their compared scales."""
        ...

    def observe_jacobian(self, mean: Vector, channels: Sequence[str], drive: Any) -> tuple[np.ndarray, np.ndarray]:
        """The same for one point, [k], with the gradients [k, n]."""
        ...


class Filter(NamedTuple):
    """A swappable algorithm."""

    name: str
    predict: Callable[[Belief, Any, float], Belief]  # (belief, drive, until [d])
    look: Callable[[Belief, Sequence[str], Any], Outlook]  # (belief, channels, drive)
    transit: Callable[[Belief, Any, float], tuple[Belief, Matrix]]
    """As `predict`, with the covariance [n, n] of the coordinates before (rows) and after (columns): for smoothing."""


def symmetric(cov: Matrix) -> Matrix:
    return (cov + cov.T) / 2.0


def root(cov: Matrix) -> tuple[Matrix, bool]:
    """Upper Cholesky factor, and whether the covariance had lost definiteness and was repaired by its eigenvalues.

    A covariance that is not finite gives NaN: the belief says so itself (`Belief.finite`), and every gate stays shut.
    """
    factor, info = linalg.lapack.dpotrf(cov, lower=False, clean=True)  # pyright: ignore[reportAttributeAccessIssue]
    if info == 0 and np.isfinite(factor[-1, -1]):
        return factor, False
    if not np.isfinite(cov).all():
        return np.full_like(cov, np.nan), True
    values, vectors = linalg.eigh(symmetric(cov))
    floor = max(float(values[-1]), 1e-12) * 1e-12
    return linalg.cholesky(symmetric((vectors * np.maximum(values, floor)) @ vectors.T), check_finite=False), True


def ukf(model: StateSpace, size: int) -> Filter:
    """Unscented filter over `size` coordinates: alpha 1, beta 2, kappa 3-n (spread sqrt(3) in every direction)."""
    weights = MerweScaledSigmaPoints(size, alpha=1.0, beta=2.0, kappa=3.0 - size)
    wm, wc = np.asarray(weights.Wm, dtype=float), np.asarray(weights.Wc, dtype=float)
    spread = np.sqrt(3.0)  # sqrt(alpha^2 (n + kappa))

    def sigma_points(belief: Belief) -> tuple[np.ndarray, Belief]:
        """Points [n, 2n+1] as filterpy draws them (centre, +, -), and the belief with its repairs counted."""
        factor, repaired = root(belief.cov)
        offsets = spread * factor.T
        mean = belief.mean[:, None]
        points = np.concatenate([mean, mean + offsets, mean - offsets], axis=1)
        return points, belief.repaired() if repaired else belief

    # Cholesky factors are triangular: points spread along the resting coordinates move as the centre does
    moved = np.r_[: 1 + model.moving, size + 1 : size + 1 + model.moving]
    rest = np.r_[1 + model.moving : size + 1, size + 1 + model.moving : 2 * size + 1]

    def push(points: np.ndarray, drive: Any, span: float) -> np.ndarray:
        pushed = points.copy()
        pushed[:, moved] = model.advance(points[:, moved], drive, span)
        pushed[: model.moving, rest] = pushed[: model.moving, :1]
        return pushed

    def transit(belief: Belief, drive: Any, until: float) -> tuple[Belief, Matrix]:
        span = until - belief.time
        points, counted = sigma_points(belief)
        pushed = push(points, drive, span)
        mean, cov = unscented_transform(pushed.T, wm, wc, model.process_noise(belief, span))
        cross = ((points - belief.mean[:, None]) * wc) @ (pushed - mean[:, None]).T
        return Belief(until, mean, symmetric(cov), counted.repairs), cross

    def predict(belief: Belief, drive: Any, until: float) -> Belief:
        span = until - belief.time
        if span <= 0.0:
            return belief
        points, counted = sigma_points(belief)
        pushed = push(points, drive, span)
        mean, cov = unscented_transform(pushed.T, wm, wc, model.process_noise(belief, span))
        return Belief(until, mean, symmetric(cov), counted.repairs)

    def look(belief: Belief, channels: Sequence[str], drive: Any) -> Outlook:
        points, _ = sigma_points(belief)
        z = model.observe(points, channels, drive)
        centre = z @ wm
        dz = z - centre[:, None]
        weighted = dz * wc
        return _joint(belief, centre, weighted @ dz.T, (points - belief.mean[:, None]) @ weighted.T)

    return Filter("ukf", predict, look, transit)


def ekf(model: StateSpace, size: int) -> Filter:
    """Extended filter over `size` coordinates, linearised at the mean by automatic differentiation."""

    def transit(belief: Belief, drive: Any, until: float) -> tuple[Belief, Matrix]:
        span = until - belief.time
        mean, jacobian = model.advance_jacobian(belief.mean, drive, span)
        cross = belief.cov @ jacobian.T
        cov = symmetric(jacobian @ cross + model.process_noise(belief, span))
        return Belief(until, mean, cov, belief.repairs), cross

    def predict(belief: Belief, drive: Any, until: float) -> Belief:
        return transit(belief, drive, until)[0] if until > belief.time else belief

    def look(belief: Belief, channels: Sequence[str], drive: Any) -> Outlook:
        z, gradients = model.observe_jacobian(belief.mean, channels, drive)
        cross = belief.cov @ gradients.T
        return _joint(belief, z, gradients @ cross, cross)

    return Filter("ekf", predict, look, transit)


def _joint(belief: Belief, z: np.ndarray, zz: np.ndarray, cross: np.ndarray) -> Outlook:
    n, k = belief.mean.size, z.size
    cov = np.empty((n + k, n + k))
    cov[:n, :n], cov[:n, n:], cov[n:, :n], cov[n:, n:] = belief.cov, cross, cross.T, zz
    cov[range(n, n + k), range(n, n + k)] = np.maximum(np.diagonal(zz), 0.0)
    return Outlook(np.concatenate([belief.mean, z]), cov)


FILTERS: dict[str, Callable[[StateSpace, int], Filter]] = {"ukf": ukf, "ekf": ekf}
