"""How good forecasts were: proper scores, calibration, warnings, and what so small a sample can tell. Pure.

CRPS after Gneiting and Raftery (2007) and, fair to a finite ensemble, Ferro (2014); Brier's score with Murphy's (1973)
parts; calibration by logistic regression after Cox (1958); ROC by ranks. Probabilities are fractions, never per cent.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from scipy.optimize import minimize
from scipy.special import expit, logit
from scipy.stats import binom, norm, rankdata

Z95 = float(norm.ppf(0.975))


def crps(ensemble: Float[np.ndarray, "*k m"], truth: Float[np.ndarray, " *k"], fair: bool = True) -> np.ndarray:
    """Continuous ranked probability score of ensembles of `m` members (last axis), in the unit of `truth`.

    E|X - y| - E|X - X'|/2. `fair` divides the second mean by m (m - 1): what an infinite ensemble of the same
    distribution would score, in expectation. Plain divides by m^2: the score of the ensemble as a distribution of its own.
    Raises ValueError for one member where `fair` is asked.
    """
    members = np.sort(np.asarray(ensemble, dtype=float), axis=-1)
    m = members.shape[-1]
    if fair and m < 2:
        raise ValueError("a fair CRPS needs at least 2 members")
    ranks = 2.0 * np.arange(1, m + 1) - m - 1.0
    apart = (members * ranks).sum(axis=-1) / (m * (m - 1.0) if fair else m * m)
    return np.abs(members - np.asarray(truth, dtype=float)[..., None]).mean(axis=-1) - apart


def crps_normal(mean: float, sd: float, truth: float) -> float:
    """CRPS of a Gaussian forecast, in the unit of `truth` (Gneiting 2005). `sd` above 0."""
    z = (truth - mean) / sd
    return float(sd * (z * (2 * norm.cdf(z) - 1) + 2 * norm.pdf(z) - 1 / np.sqrt(np.pi)))


def pit(
    ensemble: Float[np.ndarray, "*k m"], truth: Float[np.ndarray, " *k"], rng: np.random.Generator
) -> Float[np.ndarray, " *k"]:
    """Where the truth lies in the ensemble, 0 to 1: uniform where truth and members are exchangeable, ties included.

    The rank is drawn among ties and the place within a rank is drawn too (randomised PIT), from `rng`.
    """
    members, y = np.asarray(ensemble, dtype=float), np.asarray(truth, dtype=float)[..., None]
    below, equal = (members < y).sum(axis=-1), (members == y).sum(axis=-1)
    return (below + (equal + 1.0) * rng.random(below.shape)) / (members.shape[-1] + 1.0)


class Brier(NamedTuple):
    """Brier score and its parts: score = reliability - resolution + base + within, exactly."""

    score: float  # mean of (p - outcome)^2
    base: float  # what the base rate would score: its variance
    reliability: float  # of bins: mean squared distance of observed rate and mean forecast
    resolution: float  # of bins: spread of observed rates
    within: (
        float  # what bins hide: spread of forecasts within a bin, and its covariance with outcomes (Stephenson 2008)
    )

    @property
    def skill(self) -> float:
        """Share of the base rate's score that is gone; NaN where all outcomes are alike."""
        return 1.0 - self.score / self.base if self.base > 0.0 else float("nan")


def brier(p: Float[np.ndarray, " n"], happened: Bool[np.ndarray, " n"], bins: int = 10) -> Brier:
    """Brier score of probabilities `p`, with its parts over `bins` equal bins of [0, 1]. Raises ValueError for no forecast."""
    p, y = _checked(p, happened)
    place = np.minimum((p * bins).astype(int), bins - 1)
    rate, reliability, resolution, within = y.mean(), 0.0, 0.0, 0.0
    for k in np.unique(place):
        mine = place == k
        forecast, observed = p[mine] - p[mine].mean(), y[mine] - y[mine].mean()
        reliability += mine.mean() * (p[mine].mean() - y[mine].mean()) ** 2
        resolution += mine.mean() * (y[mine].mean() - rate) ** 2
        within += mine.mean() * float(np.mean(forecast * (forecast - 2.0 * observed)))
    score = float(np.mean(np.square(p - y)))
    return Brier(score, float(rate * (1.0 - rate)), float(reliability), float(resolution), float(within))


class Calibration(NamedTuple):
    """logit P(it happens) = intercept + slope logit(p): 0 and 1 where forecasts mean what they say."""

    slope: float  # below 1: too sure
    intercept: float
    slope_sd: float
    intercept_sd: float
    separated: bool  # forecasts part the outcomes without a mistake, or outcomes are all alike


def logistic_calibration(p: Float[np.ndarray, " n"], happened: Bool[np.ndarray, " n"], members: int) -> Calibration:
    """Maximum-likelihood slope and intercept (Cox 1958) of probabilities that are shares of an ensemble of `members`.

    A share k/m is read as (k + 1/2)/(m + 1), so that 0 and 1 have a logit. Where data are separated there is no finite
    maximum: the estimate is then that of the likelihood penalised by Jeffreys' prior (Firth 1993), and `separated` says so.
    Standard deviations are from the information matrix. Raises ValueError where all forecasts are alike.
    """
    p, y = _checked(p, happened)
    x = logit((p * members + 0.5) / (members + 1.0))
    if np.ptp(x) == 0.0:
        raise ValueError("no slope: all forecasts are alike")
    yes, no = x[y > 0.5], x[y < 0.5]
    parted = not yes.size or not no.size or yes.min() >= no.max() or yes.max() <= no.min()
    design = np.column_stack([np.ones_like(x), x])

    def information(b: np.ndarray) -> np.ndarray:
        q = expit(design @ b)
        return design.T @ (design * (q * (1.0 - q))[:, None])

    def loss(b: np.ndarray) -> float:
        z = design @ b
        likelihood = float(np.sum(np.logaddexp(0.0, z) - y * z))
        return likelihood - 0.5 * float(np.linalg.slogdet(information(b))[1]) if parted else likelihood

    def gradient(b: np.ndarray) -> np.ndarray:
        return design.T @ (expit(design @ b) - y)

    found = minimize(loss, np.zeros(2), method="Nelder-Mead", options={"xatol": 1e-8, "fatol": 1e-10}) if parted else (
        minimize(loss, np.zeros(2), jac=gradient, method="BFGS", options={"gtol": 1e-8})
    )  # fmt: skip
    intercept_sd, slope_sd = np.sqrt(np.diagonal(np.linalg.pinv(information(found.x))))
    return Calibration(float(found.x[1]), float(found.x[0]), float(slope_sd), float(intercept_sd), parted)


class Roc(NamedTuple):
    """Shares of alarms as the threshold falls: first (0, 0), last (1, 1)."""

    false_alarms: Float[np.ndarray, " k"]  # of what did not happen
    hits: Float[np.ndarray, " k"]  # of what happened
    threshold: Float[np.ndarray, " k"]  # alarm where score >= threshold; first inf
    auc: float  # P(score of what happened > score of what did not), ties half


def roc(score: Float[np.ndarray, " n"], happened: Bool[np.ndarray, " n"]) -> Roc:
    """Receiver operating characteristic. Raises ValueError unless some happened and some did not."""
    score, y = np.asarray(score, dtype=float), np.asarray(happened, dtype=bool)
    yes, no = int(y.sum()), int((~y).sum())
    if not yes or not no:
        raise ValueError(f"an ROC needs both outcomes, not {yes} of {y.size}")
    cut = np.append(np.inf, np.unique(score)[::-1])
    alarm = score[None] >= cut[:, None]
    auc = (rankdata(score)[y].sum() - yes * (yes + 1) / 2.0) / (yes * no)
    return Roc(alarm[:, ~y].mean(axis=1), alarm[:, y].mean(axis=1), cut, float(auc))


def threshold_at(score: Float[np.ndarray, " n"], rate: float) -> float:
    """Lowest threshold at which at most a share `rate` of `score` (of what did not happen) gives an alarm: >= threshold.

    It lies just above the highest score that must stay silent. Raises ValueError for no score or a rate outside [0, 1).
    """
    ordered = np.sort(np.asarray(score, dtype=float))
    if not ordered.size or not 0.0 <= rate < 1.0:
        raise ValueError(f"a threshold needs scores and a rate of 0 to 1, not {ordered.size} scores and {rate!r}")
    silent = ordered[ordered.size - 1 - int(np.floor(rate * ordered.size + 1e-9))]
    return float(np.nextafter(silent, np.inf))


class Warned(NamedTuple):
    """Batches that are warned of from the first day on which P(fail) reaches a threshold that the other half chose."""

    first: Float[np.ndarray, " n"]  # day of the first warning [d]; NaN where there was none
    threshold: tuple[float, float]  # that batches 0, 2, 4, ... are held to, and 1, 3, 5, ...
    false_alarms: float  # share of the batches that pass


def warned(
    courses: Sequence[tuple[Sequence[float], Sequence[float]]], failed: Bool[np.ndarray, " n"], rate: float = 0.05
) -> Warned:
    """First warnings of batches, each with its days [d] and P(fail) on them, at a share `rate` of false alarms.

    A batch that passes and is ever warned of is a false alarm. The threshold of each half (even and odd places) is the lowest
    that gives `rate` of them on the other half. Raises ValueError where a half holds no batch that passes.
    """
    failed = np.asarray(failed, dtype=bool)
    worst = np.array([max(p, default=0.0) for _, p in courses])
    even = np.arange(failed.size) % 2 == 0
    chosen = threshold_at(worst[~even & ~failed], rate), threshold_at(worst[even & ~failed], rate)
    first = np.array([
        next((day for day, p in zip(*course, strict=True) if p >= (chosen[0] if mine else chosen[1])), np.nan)
        for course, mine in zip(courses, even, strict=True)
    ])  # fmt: skip
    return Warned(first, chosen, float(np.mean(np.isfinite(first[~failed]))))


class Power(NamedTuple):
    """What a count of `n` intervals can tell of their coverage."""

    n: int
    coverage: float  # claimed
    low: int  # counts from low to high are accepted
    high: int
    worse: float  # the highest lower coverage that is refused with probability `power`; 0 where none is
    power: float

    def __str__(self) -> str:
        return (
            f"{self.low}-{self.high} of {self.n} accept {self.coverage:.0%} (95 %); "
            f"{self.power:.0%} power only against a coverage of {self.worse:.2f} or less"
        )


def coverage_power(n: int, coverage: float = 0.9, level: float = 0.95, power: float = 0.8) -> Power:
    """Counts that agree with intervals of `coverage` (central binomial range of `level`), and what they would miss.

    Raises ValueError for n below 1 or a fraction that is not between 0 and 1.
    """
    if n < 1 or not all(0.0 < v < 1.0 for v in (coverage, level, power)):
        raise ValueError(f"n {n!r} of at least 1 and fractions between 0 and 1 are needed")
    low, high = (int(binom.ppf(q, n, coverage)) for q in ((1.0 - level) / 2.0, (1.0 + level) / 2.0))

    def refused(true: float) -> float:
        return float(binom.cdf(low - 1, n, true) + binom.sf(high, n, true))

    return Power(n, coverage, low, high, _highest(lambda q: refused(q) >= power, coverage), power)


def _highest(holds: Callable[[float], bool], below: float) -> float:
    """Highest value under `below` at which a property of low values still holds, by bisection; 0 where it never does."""
    if not holds(0.0):
        return 0.0
    low, high = 0.0, below
    while high - low > 1e-6:
        middle = 0.5 * (low + high)
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low


def bootstrap(
    statistic: Callable[[np.ndarray], float], n: int, rng: np.random.Generator, resamples: int = 500
) -> tuple[float, float]:
    """95 % percentile interval of `statistic` of n resampled indices. Resamples on which it is NaN are left out."""
    values = np.array([statistic(rng.integers(0, n, n)) for _ in range(resamples)])
    values = values[np.isfinite(values)]
    if not values.size:
        return float("nan"), float("nan")
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)


def _checked(p: np.ndarray, happened: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    p, y = np.asarray(p, dtype=float), np.asarray(happened, dtype=float)
    if not p.size or p.shape != y.shape or not np.all((p >= 0.0) & (p <= 1.0)):
        raise ValueError("probabilities from 0 to 1 are needed, one an outcome, at least one")
    return p, y
