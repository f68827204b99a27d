"""What batches run to one schedule share beyond the balances: a Gaussian-process discrepancy over visit and level.

Feeds by hand, shifts of temperature, and the sessions in which a laboratory counts and analyses fall on the same days in
every batch of a campaign, and no record names them; and how far a culture then departs from the balances goes with how far
it has come. The twin's error therefore has a part that goes by day and level (model discrepancy, Kennedy and O'Hagan 2001;
the batch trajectory of Wold 1998). Here it is a part of the model: from one visit to the next, ln of a coordinate that
starts at z drifts by ``f(k, z) + u_gk`` beyond the balances,

    f ~ GP(0, tau^2 K),    K = exp(-|t_k - t_k'| / days) (1 + exp(-(z - z')^2 / (2 level^2))) / 2,    u_gk ~ N(0, omega^2),

f common to all groups, half of it by day alone and half by day and level; u a group's own and shared by its replicates, so
that three clones count as three and not as six. The filter carries the posterior mean of f, its dependence on the level, its
variance and omega^2, so that forecasts over many days and their intervals hold it too. At levels where no training batch
was, what goes by level is nought again and as uncertain as before.

How much of the innovations is shared, and over which lengths, is settled by the training groups: tau, omega and both
lengths are averaged over a grid with their marginal likelihood as weight. Where nothing is shared, tau goes to nought and
with it the correction.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.linalg import cho_factor, cho_solve

from twin.batch import Batch, believe_at
from twin.bioreactor import Coordinates
from twin.estimation.belief import Belief
from twin.estimation.filters import Filter

DRIFTS: Mapping[str, str] = {
    "viable_density": "viable",
    "glucose": "glucose",
    "lactate": "lactate",
    "glutamine": "glutamine",
    "ammonia": "ammonia",
}
"""Channel -> coordinate whose drift it shows: those that read one coordinate on the log scale."""

SIZES = (0.0, 0.03, 0.06, 0.1, 0.15, 0.2, 0.3, 0.4, 0.6)
"""Grid of tau and of omega, of ln from one visit to the next; every pair is as likely before the data."""
DAYS = (0.0, 1.0, 3.0)  # grid of the length in time [d]; 0: every visit for itself
LEVELS = (np.inf, 1.0, 0.3)  # grid of the length in ln of the coordinate; inf: by day alone
SAME_VISIT = 0.015  # d: visits of different batches this close are one day of the calendar
SLIVER = 0.02  # shares of an interval below this are rounding of the visits
WILD = 36.0  # normalised innovation squared beyond which a reading teaches nothing
RELEVANT = 1e-3  # odds against the best point below which a point of the grid is left out
MARGIN, PITCH = 3.0, 0.1  # of ln: how far beyond the training levels the table goes, and its step
NODES, _SHARES = np.polynomial.hermite_e.hermegauss(7)
WEIGHTS = _SHARES / _SHARES.sum()  # Gauss-Hermite, for an expectation under a standard Gaussian


class Drift(NamedTuple):
    """Drift of ln over a span for a level that is itself uncertain, to second order."""

    mean: float
    slope: float  # regression on the level at the start
    variance: float  # about that regression


@dataclass(frozen=True, slots=True, eq=False)
class Discrepancy:
    """Drift of ln of one coordinate beyond the balances, by interval between visits and level at its start."""

    edges: Float[np.ndarray, " k+1"]  # ascending from 0 [d]
    levels: Float[np.ndarray, " m"]  # ascending, of ln
    drift: Float[np.ndarray, "k m"]  # posterior mean, of ln, over the whole interval
    variance: Float[np.ndarray, "k m"]  # of a new group's drift over the interval: posterior and between groups
    outside: float  # variance a day after the last edge, where nothing is known

    def within(self, after: float, until: float, level: float, spread: float) -> Drift:
        """Drift of ln over (after, until] [d] from a level N(level, spread) of ln; variances add up over adjoining spans."""
        share = shares(self.edges, after, until)
        beyond = max(0.0, until - max(after, float(self.edges[-1]))) * self.outside
        at = level + np.sqrt(max(spread, 1e-12)) * NODES
        mean, noise = np.zeros_like(at), np.full_like(at, beyond)
        for k in np.flatnonzero(share):
            mean += share[k] * np.interp(at, self.levels, self.drift[k])
            noise += share[k] * np.interp(at, self.levels, self.variance[k])
        centre = float(WEIGHTS @ mean)
        slope = float(WEIGHTS @ (NODES * mean)) / float(np.sqrt(max(spread, 1e-12)))
        rest = float(WEIGHTS @ np.square(mean - centre)) - slope**2 * max(spread, 1e-12)
        return Drift(centre, slope, float(WEIGHTS @ noise) + max(rest, 0.0))


Discrepancies = Mapping[str, Discrepancy]
"""By coordinate."""


def shares(edges: Float[np.ndarray, " k+1"], after: float, until: float) -> Float[np.ndarray, " k"]:
    """Share of every interval that lies within (after, until]."""
    low, high = edges[:-1], edges[1:]
    return np.maximum(np.minimum(until, high) - np.maximum(after, low), 0.0) / (high - low)


def corrected(algorithm: Filter, discrepancies: Discrepancies) -> Filter:
    """The filter with the drifts in its predictions, visit by visit."""
    rows = {Coordinates._fields.index(name): found for name, found in discrepancies.items()}
    if not rows:
        return algorithm
    edges = np.unique(np.concatenate([d.edges for d in rows.values()]))

    def step(before: Belief, drive: Any, until: float) -> tuple[Belief, np.ndarray]:
        after, cross = algorithm.transit(before, drive, until)
        mean, cov, cross = after.mean.copy(), after.cov.copy(), cross.copy()
        for row, found in rows.items():
            spread = float(before.cov[row, row])
            drift = found.within(before.time, until, float(before.mean[row]), spread)
            mean[row] += drift.mean
            cov[row, :] += drift.slope * cross[row, :]
            cov[:, row] += drift.slope * cross[row, :]
            cov[row, row] += drift.slope**2 * spread + drift.variance
            cross[:, row] += drift.slope * before.cov[:, row]
        return Belief(until, mean, cov, after.repairs), cross

    def stops(after: float, until: float) -> list[float]:
        between = edges[(edges > after + SAME_VISIT) & (edges < until - SAME_VISIT)]
        return [*(float(e) for e in between), until]

    def predict(belief: Belief, drive: Any, until: float) -> Belief:
        if until <= belief.time:
            return belief
        for stop in stops(belief.time, until):
            belief, _ = step(belief, drive, stop)
        return belief

    def transit(belief: Belief, drive: Any, until: float) -> tuple[Belief, np.ndarray]:
        if until <= belief.time:
            return algorithm.transit(belief, drive, until)
        first, *later = stops(belief.time, until)
        after, cross = step(belief, drive, first)
        for stop in later:
            between = after
            after, next_cross = step(between, drive, stop)
            cross = cross @ np.linalg.solve(between.cov, next_cross)  # as a smoother chains its gains
        return after, cross

    return algorithm._replace(predict=predict, transit=transit)


class Evidence(NamedTuple):
    """What innovations say of one coordinate's drift: ``drift = weight @ f(visit, level) + u + noise``."""

    visit: Float[np.ndarray, " p"]  # index of the interval of each part
    level: Float[np.ndarray, " p"]  # ln of the coordinate at its start
    weight: Float[np.ndarray, "n p"]  # share of the interval that each innovation spans
    drift: Float[np.ndarray, " n"]
    noise: Float[np.ndarray, " n"]  # variance
    groups: Sequence[str]  # [n]


def fitted(
    batches: Sequence[Batch], groups: Sequence[str], used: Discrepancies, sizes: Sequence[float] = SIZES
) -> Discrepancies:
    """Discrepancies from the innovations of finished batches; `groups` names each one's group, `used` is what they ran with.

    `sizes` is the grid of omega. A channel with fewer than two intervals gets none.
    """
    found: dict[str, Discrepancy] = {}
    for channel, name in DRIFTS.items():
        edges = _visits([0.0, *(i.time for b in batches for i in b.innovations if i.channel == channel)])
        if edges.size >= 3 and (evidence := gathered(batches, groups, channel, edges, used.get(name))) is not None:
            found[name] = posterior(edges, evidence, sizes)
    return found


def gathered(
    batches: Sequence[Batch],
    groups: Sequence[str],
    channel: str,
    edges: Float[np.ndarray, " k+1"],
    used: Discrepancy | None,
) -> Evidence | None:
    """What the innovations of `channel` say; None where no reading follows another."""
    row = Coordinates._fields.index(DRIFTS[channel])
    parts: list[tuple[int, float]] = []
    spans: list[dict[int, float]] = []
    drift: list[float] = []
    noise: list[float] = []
    group: list[str] = []
    for batch, its_group in zip(batches, groups, strict=True):
        since = 0.0
        for i in (i for i in batch.innovations if i.channel == channel):
            share = shares(edges, since, i.time)
            if share.max() > SLIVER and i.nis < WILD:
                span: dict[int, float] = {}
                assumed, variance = 0.0, 0.0
                for k in np.flatnonzero(share > SLIVER):
                    start = max(since, float(edges[k]))
                    start = min(start + SAME_VISIT, i.time)  # once a bolus is in
                    belief = believe_at(batch, start)
                    level = float(belief.mean[row])
                    span[len(parts)] = float(share[k])
                    parts.append((int(k), level))
                    if used is not None:
                        part = used.within(start, min(i.time, float(edges[k + 1])), level, float(belief.cov[row, row]))
                        assumed, variance = assumed + part.mean, variance + part.variance
                spans.append(span)
                drift.append(i.residual + assumed)
                noise.append(max(i.s - variance, 0.2 * i.s))
                group.append(its_group)
            since = i.time
    if not spans:
        return None
    weight = np.zeros((len(spans), len(parts)))
    for n, span in enumerate(spans):
        weight[n, list(span)] = list(span.values())
    visit, level = np.array(parts).T
    return Evidence(visit.astype(int), level, weight, np.array(drift), np.array(noise), group)


def kernel(days: float, level: float, apart: np.ndarray, between: np.ndarray) -> np.ndarray:
    """Correlation of f at points `apart` in time [d] and `between` in ln; arrays that broadcast.

    Half goes by day alone and half by day and level; in time that of an Ornstein-Uhlenbeck process, at a length of 0 every
    visit for itself.
    """
    in_time = np.exp(-np.abs(apart) / days) if days else (np.abs(apart) < 1e-9).astype(float)
    return in_time * (1.0 + np.exp(-0.5 * np.square(between / level))) / 2.0


def posterior(edges: Float[np.ndarray, " k+1"], evidence: Evidence, sizes: Sequence[float] = SIZES) -> Discrepancy:
    """Discrepancy given the evidence, over every visit and level; sizes and lengths averaged out.

    Linear Gaussian: ``drift ~ N(0, tau^2 W K W' + omega^2 sum_g W_g W_g' + diag(noise))`` (Rasmussen and Williams 2006, 2.2).
    `sizes` is the grid of omega.
    """
    k, when = edges.size - 1, (edges[:-1] + edges[1:]) / 2
    visit, level, weight, drift, noise, groups = evidence
    low, high = level.min() - MARGIN, level.max() + MARGIN
    levels = np.linspace(low, high, int(np.ceil((high - low) / PITCH)) + 1)
    same = np.array(groups)[:, None] == np.array(groups)[None, :]
    own = same * (weight @ (visit[:, None] == visit[None, :]) @ weight.T)
    lengths, grid = list(product(DAYS, LEVELS)), list(product(SIZES, sizes))
    apart, between = when[visit][:, None] - when[visit], level[:, None] - level
    shared = [weight @ kernel(*length, apart, between) @ weight.T for length in lengths]

    def covariance(i: Any, j: Any) -> np.ndarray:
        tau, omega = grid[j]
        return tau**2 * shared[i] + omega**2 * own + np.diag(noise)

    logs = np.array([[_log_density(covariance(i, j), drift) for j in range(len(grid))] for i in range(len(lengths))])
    odds = np.exp(logs - logs.max())
    odds[odds < RELEVANT] = 0.0
    odds /= odds.sum()
    outside = float(np.sum(odds @ np.square(grid)))
    mean, square, variance = np.zeros((k, levels.size)), np.zeros((k, levels.size)), np.full((k, levels.size), outside)
    for i in np.flatnonzero(odds.any(axis=1)):
        near = kernel(*lengths[i], when[:, None, None] - when[visit], levels[:, None] - level) @ weight.T  # [k, m, n]
        explained = np.zeros_like(own, dtype=float)
        for j in np.flatnonzero(odds[i]):
            inverse = np.linalg.inv(covariance(i, j))
            guess = grid[j][0] ** 2 * near @ (inverse @ drift)
            mean += odds[i, j] * guess
            square += odds[i, j] * np.square(guess)
            explained += odds[i, j] * grid[j][0] ** 4 * inverse
        variance -= np.einsum("kmn,kmn->km", near @ explained, near)
    variance = np.maximum(variance, 0.0) + np.maximum(square - np.square(mean), 0.0)
    return Discrepancy(edges, levels, mean, variance, outside * k / float(edges[-1] - edges[0]))


def _log_density(cov: np.ndarray, values: np.ndarray) -> float:
    """Of a Gaussian of mean nought, up to a constant."""
    factor = cho_factor(cov, lower=True, overwrite_a=True, check_finite=False)
    fit = values @ cho_solve(factor, values, check_finite=False)
    return float(-0.5 * fit - np.log(np.diagonal(factor[0])).sum())


def _visits(times: Sequence[float]) -> Float[np.ndarray, " k+1"]:
    """Visits of all batches in order [d], those within `SAME_VISIT` of one another as one, at their median."""
    ordered = np.unique(np.array(times, dtype=float))
    parts = np.split(ordered, np.flatnonzero(np.diff(ordered) > SAME_VISIT) + 1)
    return np.array([np.median(p) for p in parts])
