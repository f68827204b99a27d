"""Recursive Gaussian estimation as pure functions on a frozen Belief: one interface, two algorithms.

A filter does two things: `predict` carries a belief in time, `expect` says what sensors would read at it. What is done
with a reading (gate, quarantine, conditioning) is the same for every filter and lives in `twin.estimation.screen`.

`ukf` uses filterpy's weights of Merwe's scaled points; `ekf` uses CasADi's
Jacobians. filterpy's filter objects are not used: a second `update` at one instant would reuse the prior's sigma
points, and NaN would poison them silently.

Symbols (Sarkka, Bayesian Filtering and Smoothing, 2013): m mean, P covariance, Q process noise, S innovation covariance.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import isfinite
from typing import Any, NamedTuple, Protocol

import numpy as np
from filterpy.kalman import MerweScaledSigmaPoints
from jaxtyping import Float
from scipy import linalg
from scipy.linalg.lapack import dpotrf  # pyright: ignore[reportAttributeAccessIssue]

from twin.estimation.belief import Belief

Vector = Float[np.ndarray, " n"]
Matrix = Float[np.ndarray, "n n"]


class Outlook(NamedTuple):
    """Coordinates and the readings of some channels (noise apart) as one joint Gaussian, coordinates first."""

    mean: Float[np.ndarray, " n+k"]
    cov: Float[np.ndarray, "n+k n+k"]


class Expected(NamedTuple):
    """The readings of some channels (noise apart) as a belief has them, and how they go with its coordinates."""

    mean: Float[np.ndarray, " k"]
    cov: Float[np.ndarray, "k k"]
    cross: Float[np.ndarray, "n k"]

    def beside(self, belief: Belief) -> Outlook:
        """One Gaussian of the belief that has them, and of them."""
        n, k = self.cross.shape
        cov = np.empty((n + k, n + k))
        cov[:n, :n], cov[:n, n:], cov[n:, :n], cov[n:, n:] = belief.cov, self.cross, self.cross.T, self.cov
        return Outlook(np.concatenate([belief.mean, self.mean]), cov)


class StateSpace(Protocol):
    """The model that a filter needs; coordinates are those of a `Layout`. `drive` holds the inputs and is opaque here."""

    @property
    def changing(self) -> int:
        """How many of the first coordinates the dynamics change: the state."""
        ...

    @property
    def moving(self) -> int:
        """How many of the first coordinates take part in the dynamics; `advance` neither reads nor moves the rest."""
        ...

    def advance(self, points: np.ndarray, drive: Any, span: float) -> np.ndarray:
        """Carry points [n, m] over `span` days; of the resting coordinates some, or all, may be left out."""
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
    expect: Callable[[Belief, Sequence[str], Any], Expected]  # (belief, channels, drive)
    transit: Callable[[Belief, Any, float], tuple[Belief, Matrix]]
    """As `predict`, with the covariance [n, n] of the coordinates before (rows) and after (columns): for smoothing."""

    def look(self, belief: Belief, channels: Sequence[str], drive: Any) -> Outlook:
        """What is expected of the channels, and the belief itself."""
        return self.expect(belief, channels, drive).beside(belief)


def symmetric(cov: Matrix) -> Matrix:
    both = cov + cov.T
    both /= 2.0
    return both


def root(cov: Matrix) -> tuple[Matrix, bool]:
    """Upper Cholesky factor, and whether the covariance had lost definiteness and was repaired by its eigenvalues.

    A covariance that is not finite gives NaN: the belief says so itself (`Belief.finite`), and every gate stays shut.
    """
    factor, info = dpotrf(cov, lower=False, clean=True)
    if info == 0 and isfinite(factor[-1, -1]):
        return factor, False
    if not np.isfinite(cov).all():
        return np.full_like(cov, np.nan), True
    values, vectors = linalg.eigh(symmetric(cov))
    floor = max(float(values[-1]), 1e-12) * 1e-12
    return linalg.cholesky(symmetric((vectors * np.maximum(values, floor)) @ vectors.T), check_finite=False), True


def ukf(model: StateSpace, size: int) -> Filter:
    """Unscented filter over `size` coordinates: alpha 1, beta 2, kappa 3-n (spread sqrt(3) in every direction).

    Moments are summed about the central point, where no weight is negative, and over the points that differ from it:
    Cholesky factors are triangular, so points spread along the resting coordinates move as the centre does.
    """
    weights = MerweScaledSigmaPoints(size, alpha=1.0, beta=2.0, kappa=3.0 - size)
    weight = float(weights.Wc[-1])
    root_weight, evenly = float(np.sqrt(weight)), np.full(2 * size + 1, weight)
    spread, changing, moving = float(np.sqrt(3.0)), model.changing, model.moving  # sqrt(alpha^2 (n + kappa))

    def sigma_points(mean: Vector, factor: Matrix, along: int) -> np.ndarray:
        """The centre, and points in pairs along the first rows of the upper factor, in the coordinates of `mean`."""
        offsets, centre = spread * factor[:along, : mean.size].T, mean[:, None]
        return np.concatenate((centre, centre + offsets, centre - offsets), axis=1)

    def moments(values: np.ndarray) -> tuple[Vector, Matrix, np.ndarray]:
        """Mean [k] and covariance [k, k] of values at the points [k, w], and their covariance with the spreads [k, w//2].

        With these weights the covariance is that about the centre and one column more: how far the mean is from it.
        """
        along, centre = values.shape[1] // 2, values[:, 0]
        away = values - centre[:, None]
        pairs = away[:, 1 : along + 1] - away[:, along + 1 :]
        pairs *= weight * spread
        off = away @ evenly[: 2 * along + 1]
        away[:, 0] = off / root_weight
        cov = away @ away.T
        cov *= weight
        return centre + off, cov, pairs

    def pushed(belief: Belief, drive: Any, until: float) -> tuple[Belief, Matrix, Matrix]:
        """The belief at `until`; the factor of the one before, and covariances of its spreads with what they become."""
        span = until - belief.time
        factor, repaired = root(belief.cov)
        moved = model.advance(sigma_points(belief.mean[:moving], factor, moving), drive, span)[:changing]
        mean, cov = belief.mean.copy(), factor.T @ factor if repaired else belief.cov.copy()
        mean[:changing], cov[:changing, :changing], pairs = moments(moved)
        cov[:changing, changing:] = pairs @ factor[:moving, changing:]
        cov[changing:, :changing] = cov[:changing, changing:].T
        cov += model.process_noise(belief, span)
        return Belief(until, mean, cov, belief.repairs + repaired), factor, pairs

    def transit(belief: Belief, drive: Any, until: float) -> tuple[Belief, Matrix]:
        after, factor, pairs = pushed(belief, drive, until)
        cross = factor.T @ factor
        cross[:, :changing] = factor[:moving].T @ pairs.T
        return after, cross

    def predict(belief: Belief, drive: Any, until: float) -> Belief:
        return pushed(belief, drive, until)[0] if until > belief.time else belief

    def expect(belief: Belief, channels: Sequence[str], drive: Any) -> Expected:
        factor, _ = root(belief.cov)
        z, zz, pairs = moments(model.observe(sigma_points(belief.mean, factor, size), channels, drive))
        return Expected(z, zz, factor.T @ pairs.T)

    return Filter("ukf", predict, expect, transit)


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

    def expect(belief: Belief, channels: Sequence[str], drive: Any) -> Expected:
        z, gradients = model.observe_jacobian(belief.mean, channels, drive)
        cross = belief.cov @ gradients.T
        zz = gradients @ cross
        np.fill_diagonal(zz, np.maximum(np.diagonal(zz), 0.0))  # rounding
        return Expected(z, zz, cross)

    return Filter("ekf", predict, expect, transit)


FILTERS: dict[str, Callable[[StateSpace, int], Filter]] = {"ukf": ukf, "ekf": ekf}
