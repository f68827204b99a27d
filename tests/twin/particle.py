"""A particle filter, the oracle of the Gaussian ones: exact as the particles become many, whatever is curved.

Auxiliary (Pitt and Shephard 1999; here with a look-ahead to the end): particles are drawn where readings still to come
will want them, by a Gaussian smoother's guess, and weighted for it. The guess costs or saves particles; it does not enter
the answer. Without one this is the bootstrap filter (Gordon, Salmond, Smith 1993).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.linalg import cho_factor, cho_solve

from twin.estimation.belief import Belief
from twin.estimation.conditioning import condition
from twin.estimation.filters import Filter, StateSpace

CHUNK = 8192
WIDE = 1.1
"""First particles are spread wider than guessed by this factor: a guess that is too sure would leave out the tails."""


class Look(NamedTuple):
    """Readings of one instant, and the drive on the way to it."""

    until: float  # [d]
    drive: Any
    channels: tuple[str, ...]
    y: np.ndarray  # on the compared scales
    r: np.ndarray  # variances of the noise there


class Hint(NamedTuple):
    """What readings still to come say of the coordinates at one instant: exp(-x'Ax/2 + b'x), guessed."""

    a: np.ndarray  # [n, n], no negative eigenvalue
    b: np.ndarray  # [n]


class Cloud(NamedTuple):
    """Moments of weighted particles."""

    mean: np.ndarray
    cov: np.ndarray
    ess: float  # least effective sample size on the way
    ancestors: int  # first particles that have a descendant


def filtered(algorithm: Filter, prior: Belief, looks: Sequence[Look]) -> list[Belief]:
    """The Gaussian belief after every instant; the prior first."""
    beliefs = [prior]
    for look in looks:
        beliefs.append(_told(algorithm, algorithm.predict(beliefs[-1], look.drive, look.until), look))
    return beliefs


def hints(algorithm: Filter, prior: Belief, looks: Sequence[Look]) -> tuple[list[Hint], list[Hint]]:
    """At every instant from the prior's on, what the Gaussian smoother makes of readings (at it and later, only later)."""
    past = filtered(algorithm, prior, looks)
    steps = [algorithm.transit(b, look.drive, look.until) for b, look in zip(past, looks, strict=False)]
    smooth = past[-1].mean, past[-1].cov
    at, later = [], [_difference(smooth, past[-1])]
    for before, (ahead, cross) in zip(past[-2::-1], steps[::-1], strict=True):
        at.insert(0, _difference(smooth, ahead))
        gain = np.linalg.solve(ahead.cov, cross.T).T
        smooth = (
            before.mean + gain @ (smooth[0] - ahead.mean),
            before.cov + gain @ (smooth[1] - ahead.cov) @ gain.T,
        )
        later.insert(0, _difference(smooth, before))
    return at, later


def particle_filter(
    model: StateSpace,
    prior: Belief,
    looks: Sequence[Look],
    count: int,
    rng: np.random.Generator,
    guide: Filter | None = None,
) -> Cloud:
    """The posterior after all looks by `count` particles; they are resampled where half of them have lost their weight."""
    n = prior.mean.size
    nothing = Hint(np.zeros((n, n)), np.zeros(n))
    at, later = hints(guide, prior, looks) if guide else ([nothing] * len(looks), [nothing] * (len(looks) + 1))
    points, weights = _begun(prior, later[0], count, rng)
    origin, least, time = np.arange(count), np.inf, prior.time
    for look, hint, ahead in zip(looks, at, later[1:], strict=True):
        span = look.until - time
        points = _moved(model, points, look.drive, span)
        root = np.sqrt(np.diagonal(model.process_noise(prior, span)))
        noise, gained = _nudges(points, root, hint, rng)
        points += root[:, None] * noise
        weights = weights + gained + _likelihood(model, points, look)
        tilted = weights + _value(ahead, points)
        share = np.exp(tilted - tilted.max())
        share /= share.sum()
        ess = 1.0 / float(np.sum(share**2))
        least, time = min(least, ess), look.until
        if ess < count / 2.0:
            chosen = np.searchsorted(np.cumsum(share), (rng.random() + np.arange(count)) / count).clip(max=count - 1)
            points, origin = points[:, chosen], origin[chosen]
            weights = -_value(ahead, points)
    share = np.exp(weights - weights.max())
    share /= share.sum()
    mean = points @ share
    away = points - mean[:, None]
    return Cloud(mean, (away * share) @ away.T, least, np.unique(origin).size)


# --- parts -------------------------------------------------------------------------------------------------------------


def _told(algorithm: Filter, belief: Belief, look: Look) -> Belief:
    joint, n = algorithm.look(belief, look.channels, look.drive), belief.mean.size
    for row, (y, r) in enumerate(zip(look.y, look.r, strict=True), start=n):
        joint = condition(joint, row, float(y), float(r))
    cov = joint.cov[:n, :n]
    return Belief(belief.time, joint.mean[:n], (cov + cov.T) / 2.0)


def _difference(smooth: tuple[np.ndarray, np.ndarray], belief: Belief) -> Hint:
    """Precision that the smoothed Gaussian has over the belief; none where rounding leaves it negative."""
    mean, cov = smooth
    precise, vague = np.linalg.inv(cov), np.linalg.inv(belief.cov)
    scale = np.sqrt(np.diagonal(belief.cov))
    values, vectors = np.linalg.eigh((precise - vague) * np.outer(scale, scale))
    a = (vectors * np.maximum(values, 0.0)) @ vectors.T / np.outer(scale, scale)
    return Hint(a, precise @ mean - vague @ belief.mean)


def _begun(prior: Belief, hint: Hint, count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Particles of the prior as the hint would have it, a little wider, and the logarithms of their weights."""
    lower, wide = np.linalg.cholesky(prior.cov), WIDE if hint.a.any() else 1.0
    z, gained = _drawn(lower.T @ hint.a @ lower, lower.T @ (hint.b - hint.a @ prior.mean), count, rng, wide)
    return prior.mean[:, None] + lower @ z, gained


def _drawn(
    a: np.ndarray, b: np.ndarray, count: int, rng: np.random.Generator, wide: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """Standard normal draws [n, count] tilted by exp(-z'az/2 + b'z), and ln of what each must be weighted with."""
    precision = np.eye(len(a)) + a
    factor = cho_factor(precision, lower=True)
    centre = cho_solve(factor, b)
    z = rng.standard_normal((len(a), count))
    off = wide * np.linalg.solve(np.tril(factor[0]).T, z)
    drawn = (centre[:, None] if centre.ndim == 1 else centre) + off
    half_log_det = float(np.sum(np.log(np.diagonal(factor[0]))))
    return drawn, (np.sum(z**2, 0) - np.sum(drawn**2, 0)) / 2.0 - half_log_det + len(a) * np.log(wide)


def _nudges(
    points: np.ndarray, root: np.ndarray, hint: Hint, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Standardised process noise of every particle as the hint would have it, and ln of its weight."""
    scaled = root[:, None] * hint.a
    return _drawn(scaled * root, root[:, None] * hint.b[:, None] - scaled @ points, points.shape[1], rng)


def _moved(model: StateSpace, points: np.ndarray, drive: Any, span: float) -> np.ndarray:
    parts = [model.advance(points[:, i : i + CHUNK], drive, span) for i in range(0, points.shape[1], CHUNK)]
    return np.concatenate(parts, axis=1)


def _likelihood(model: StateSpace, points: np.ndarray, look: Look) -> np.ndarray:
    parts = [
        model.observe(points[:, i : i + CHUNK], look.channels, look.drive) for i in range(0, points.shape[1], CHUNK)
    ]
    off = look.y[:, None] - np.concatenate(parts, axis=1)
    return -0.5 * np.sum(off**2 / look.r[:, None], 0)


def _value(hint: Hint, points: np.ndarray) -> np.ndarray:
    return hint.b @ points - 0.5 * np.sum(points * (hint.a @ points), 0)
