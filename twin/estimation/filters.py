"""Recursive Gaussian estimation as pure functions on a frozen Belief: one interface, two algorithms.

`ukf` uses filterpy's unscented machinery (Merwe sigma points, unscented transform); `ekf` uses CasADi's Jacobians.
filterpy's filter objects are not used: a second `update` at one instant would reuse the prior's sigma points, and NaN
would poison them silently. Here sigma points are redrawn before every update and a reading is one scalar.

Symbols (Sarkka, Bayesian Filtering and Smoothing, 2013): m mean, P covariance, Q process noise, R measurement noise,
S innovation covariance, K gain, NIS = residual^2/S.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import numpy as np
from filterpy.kalman import MerweScaledSigmaPoints, unscented_transform
from jaxtyping import Float
from scipy import linalg

from twin.estimation.belief import Belief

Vector = Float[np.ndarray, " n"]
Matrix = Float[np.ndarray, "n n"]

STREAK = 3
"""With so many rejections of one channel in a row the belief is widened and the reading taken; then counting starts anew."""
INFLATE = 9.0


class Datum(NamedTuple):
    """One scalar reading on the scale where its noise is Gaussian."""

    channel: str
    y: float
    r: float  # variance of the noise
    gate: float  # in standard deviations of the innovation


class Innovation(NamedTuple):
    """What one reading said against what was expected of it."""

    time: float  # [d]
    channel: str
    residual: float  # on the compared scale of the channel
    s: float  # its variance under the model
    nis: float
    accepted: bool


class StateSpace(Protocol):
    """The model that a filter needs; coordinates are those of a `Layout`. `drive` holds the inputs and is opaque here."""

    def advance(self, points: np.ndarray, drive: Any, span: float) -> np.ndarray:
        """Carry points [n, m] over `span` days."""
        ...

    def advance_jacobian(self, mean: Vector, drive: Any, span: float) -> tuple[Vector, Matrix]:
        """The same for one point, with the derivative of the result."""
        ...

    def process_noise(self, belief: Belief, span: float) -> Matrix:
        """Covariance Q gathered over `span` days."""
        ...

    def doubted(self, channel: str) -> Vector:
        """Which coordinates (1 or 0) a reading of `channel` puts in doubt when it contradicts them persistently."""
        ...

    def observe(self, points: np.ndarray, channel: str, drive: Any) -> np.ndarray:
        """Predicted readings [m] at points [n, m], on the compared scale."""
        ...

    def observe_jacobian(self, mean: Vector, channel: str, drive: Any) -> tuple[float, Vector]:
        """The same for one point, with its gradient."""
        ...


class Filter(NamedTuple):
    """A swappable algorithm."""

    name: str
    predict: Callable[[Belief, Any, float], Belief]  # (belief, drive, until [d])
    update: Callable[[Belief, Datum, Any, int], tuple[Belief, Innovation]]  # (belief, datum, drive, streak)


def symmetric(cov: Matrix) -> Matrix:
    return (cov + cov.T) / 2.0


def root(cov: Matrix) -> Matrix:
    """Upper Cholesky factor, as filterpy wants it; a covariance that lost definiteness is repaired by its eigenvalues.

    A covariance that is not finite gives NaN: the belief says so itself (`Belief.finite`), and every gate stays shut.
    """
    if not np.isfinite(cov).all():
        return np.full_like(cov, np.nan)
    try:
        return linalg.cholesky(cov, check_finite=False)
    except linalg.LinAlgError:
        values, vectors = linalg.eigh(symmetric(cov))
        floor = max(float(values[-1]), 1e-12) * 1e-12
        return linalg.cholesky(symmetric((vectors * np.maximum(values, floor)) @ vectors.T), check_finite=False)


def _condition(
    belief: Belief, datum: Datum, predicted: float, variance: float, cross: Vector
) -> tuple[Belief, Innovation]:
    """Gaussian conditioning on one scalar, behind the gate.

    `variance` is that of the prediction without noise, `cross` its covariance with the coordinates. The gate is written
    to accept, so that NaN is rejected.
    """
    residual = datum.y - predicted
    s = variance + datum.r
    nis = residual * residual / s
    accepted = bool(nis <= datum.gate * datum.gate)
    innovation = Innovation(belief.time, datum.channel, float(residual), float(s), float(nis), accepted)
    if not accepted:
        return belief, innovation
    gain = cross / s
    return Belief(
        belief.time, belief.mean + gain * residual, symmetric(belief.cov - np.outer(gain, gain) * s)
    ), innovation


Look = Callable[[Belief], tuple[float, float, Vector]]
"""Prediction of a reading at a belief: its mean, its variance without noise, its covariance with the coordinates."""


def _update(model: StateSpace, belief: Belief, datum: Datum, look: Look, streak: int) -> tuple[Belief, Innovation]:
    """Condition behind the gate; at the `STREAK`-th rejection in a row the belief is widened and the reading taken in.

    The widening is of rank one, along what the reading depends on (its covariance with the doubted coordinates): the
    predicted variance grows up to `INFLATE`-fold, and nothing that the reading does not speak of is touched.
    """
    updated, innovation = _condition(belief, datum, *look(belief))
    if innovation.accepted or streak + 1 < STREAK or not np.isfinite(innovation.nis):
        return updated, innovation
    _, variance, cross = look(belief)
    doubt = cross * model.doubted(datum.channel)
    wide = belief.cov + (INFLATE - 1.0) / max(variance, 1e-300) * np.outer(doubt, doubt)
    widened = Belief(belief.time, belief.mean, wide)
    return _condition(widened, datum._replace(gate=np.inf), *look(widened))[0], innovation


def ukf(model: StateSpace, size: int) -> Filter:
    """Unscented filter over `size` coordinates: alpha 1, beta 2, kappa 3-n (spread sqrt(3) in every direction)."""
    sigma = MerweScaledSigmaPoints(size, alpha=1.0, beta=2.0, kappa=3.0 - size, sqrt_method=root)

    def predict(belief: Belief, drive: Any, until: float) -> Belief:
        span = until - belief.time
        if span <= 0.0:
            return belief
        points = sigma.sigma_points(belief.mean, belief.cov)
        pushed = model.advance(points.T, drive, span).T
        mean, cov = unscented_transform(pushed, sigma.Wm, sigma.Wc, model.process_noise(belief, span))
        return Belief(until, mean, symmetric(cov))

    def update(belief: Belief, datum: Datum, drive: Any, streak: int = 0) -> tuple[Belief, Innovation]:
        def look(at: Belief) -> tuple[float, float, Vector]:
            points = sigma.sigma_points(at.mean, at.cov)
            z = model.observe(points.T, datum.channel, drive)
            predicted = float(sigma.Wm @ z)
            dz = z - predicted
            return predicted, max(float(sigma.Wc @ (dz * dz)), 0.0), (points - at.mean).T @ (sigma.Wc * dz)

        return _update(model, belief, datum, look, streak)

    return Filter("ukf", predict, update)


def ekf(model: StateSpace, size: int) -> Filter:
    """Extended filter over `size` coordinates, linearised at the mean by automatic differentiation."""

    def predict(belief: Belief, drive: Any, until: float) -> Belief:
        span = until - belief.time
        if span <= 0.0:
            return belief
        mean, jacobian = model.advance_jacobian(belief.mean, drive, span)
        return Belief(until, mean, symmetric(jacobian @ belief.cov @ jacobian.T + model.process_noise(belief, span)))

    def update(belief: Belief, datum: Datum, drive: Any, streak: int = 0) -> tuple[Belief, Innovation]:
        def look(at: Belief) -> tuple[float, float, Vector]:
            predicted, gradient = model.observe_jacobian(at.mean, datum.channel, drive)
            cross = at.cov @ gradient
            return predicted, float(gradient @ cross), cross

        return _update(model, belief, datum, look, streak)

    return Filter("ekf", predict, update)


FILTERS: dict[str, Callable[[StateSpace, int], Filter]] = {"ukf": ukf, "ekf": ekf}
