"""What batches run to one schedule share beyond the balances: a discrepancy term by day, learnt from the other groups.

Feeds by hand, shifts of temperature, and the sessions in which a laboratory counts and analyses fall on the same days in
every batch of a campaign, and no record names them. The twin's error therefore has a part that goes by the calendar
(model discrepancy, Kennedy and O'Hagan 2001; the batch trajectory of Wold 1998). Here it is a part of the model: from one
visit to the next, ln of a coordinate drifts by ``d_k + u_gk`` beyond the balances, with ``d_k ~ N(0, tau^2)`` common to all
groups and ``u_gk ~ N(0, omega^2)`` a group's own. The filter carries the posterior mean of ``d_k`` and adds its variance
and ``omega^2``, so that forecasts over many days and their intervals hold it too.

The replicates of a group share ``u_gk``, so that three clones count as three and not as six. How much of the innovations
belongs to the calendar is settled by the training groups: tau and omega are averaged over a grid with their marginal
likelihood as weight. Where nothing is shared, tau goes to nought and with it the correction.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy.linalg import cho_factor, cho_solve

from twin.batch import Batch
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

LEVELS = (0.0, 0.03, 0.06, 0.1, 0.15, 0.2, 0.3, 0.4, 0.6)
"""Grid of tau and of omega, of ln from one visit to the next; every pair is as likely before the data."""
SAME_VISIT = 0.015  # d: visits of different batches this close are one day of the calendar
WILD = 36.0  # normalised innovation squared beyond which a reading teaches nothing


@dataclass(frozen=True, slots=True, eq=False)
class Calendar:
    """Drift of ln of one coordinate beyond the balances, by interval between visits."""

    edges: Float[np.ndarray, " k+1"]  # ascending from 0 [d]
    drift: Float[np.ndarray, " k"]  # posterior mean, of ln, over the whole interval
    variance: Float[np.ndarray, " k"]  # of a new group's drift over the interval: posterior and between groups
    outside: float  # variance a day after the last edge, where nothing is known

    def between(self, after: float, until: float) -> tuple[float, float]:
        """Mean and variance of the drift of ln over (after, until] [d]; both add up over adjoining spans."""
        share = shares(self.edges, after, until)
        beyond = max(0.0, until - max(after, float(self.edges[-1])))
        return float(share @ self.drift), float(share @ self.variance + beyond * self.outside)


Calendars = Mapping[str, Calendar]
"""By coordinate."""


def shares(edges: Float[np.ndarray, " k+1"], after: float, until: float) -> Float[np.ndarray, " k"]:
    """Share of every interval that lies within (after, until]."""
    low, high = edges[:-1], edges[1:]
    return np.maximum(np.minimum(until, high) - np.maximum(after, low), 0.0) / (high - low)


def corrected(algorithm: Filter, calendars: Calendars) -> Filter:
    """The filter with the drifts of the calendars in its predictions."""
    rows = {Coordinates._fields.index(name): calendar for name, calendar in calendars.items()}
    if not rows:
        return algorithm

    def drifted(before: Belief, after: Belief) -> Belief:
        if after.time <= before.time:
            return after
        mean, cov = after.mean.copy(), after.cov.copy()
        for row, calendar in rows.items():
            drift, variance = calendar.between(before.time, after.time)
            mean[row] += drift
            cov[row, row] += variance
        return Belief(after.time, mean, cov, after.repairs)

    def predict(belief: Belief, drive: Any, until: float) -> Belief:
        return drifted(belief, algorithm.predict(belief, drive, until))

    def transit(belief: Belief, drive: Any, until: float) -> tuple[Belief, np.ndarray]:
        after, cross = algorithm.transit(belief, drive, until)
        return drifted(belief, after), cross

    return algorithm._replace(predict=predict, transit=transit)


def fitted(batches: Sequence[Batch], groups: Sequence[str], used: Calendars) -> Calendars:
    """Calendars from the innovations of finished batches; `groups` names the group of each, `used` is what they ran with.

    A channel with fewer than two intervals gets none.
    """
    found: dict[str, Calendar] = {}
    for channel, name in DRIFTS.items():
        times = [i.time for b in batches for i in b.innovations if i.channel == channel]
        edges = _visits([0.0, *times])
        if edges.size < 3:
            continue
        share: list[np.ndarray] = []
        drift: list[float] = []  # what the innovation says the drift was
        noise: list[float] = []
        group: list[str] = []
        for batch, its_group in zip(batches, groups, strict=True):
            since = 0.0
            for i in (i for i in batch.innovations if i.channel == channel):
                part = shares(edges, since, i.time)
                if part.any() and i.nis < WILD:
                    assumed, variance = used[name].between(since, i.time) if name in used else (0.0, 0.0)
                    share.append(part)
                    drift.append(i.residual + assumed)
                    noise.append(max(i.s - variance, 0.2 * i.s))
                    group.append(its_group)
                since = i.time
        if share:
            found[name] = posterior(edges, np.array(share), np.array(drift), np.array(noise), group)
    return found


def posterior(
    edges: Float[np.ndarray, " k+1"],
    share: Float[np.ndarray, "n k"],
    drift: Float[np.ndarray, " n"],
    noise: Float[np.ndarray, " n"],
    groups: Sequence[str],
) -> Calendar:
    """Calendar given `drift` read with variances `noise` over `share` of the intervals; tau and omega averaged out.

    Linear Gaussian: ``drift ~ N(0, tau^2 F F' + omega^2 sum_g F_g F_g' + diag(noise))``.
    """
    k = share.shape[1]
    same = np.array(groups)[:, None] == np.array(groups)[None, :]
    common = share @ share.T
    logs: list[float] = []
    means: list[np.ndarray] = []
    variances: list[np.ndarray] = []
    squares: list[float] = []
    for tau in LEVELS:
        for omega in LEVELS:
            factor = cho_factor(tau**2 * common + omega**2 * common * same + np.diag(noise), lower=True)
            weighted = cho_solve(factor, drift)
            logs.append(float(-0.5 * drift @ weighted - np.log(np.diagonal(factor[0])).sum()))
            means.append(tau**2 * share.T @ weighted)
            explained = np.einsum("nk,nk->k", share, cho_solve(factor, share))
            variances.append(np.maximum(tau**2 - tau**4 * explained, 0.0) + omega**2)
            squares.append(tau**2 + omega**2)
    weight = np.exp(np.array(logs) - max(logs))
    weight /= weight.sum()
    mean = weight @ np.array(means)
    variance = weight @ (np.array(variances) + np.square(np.array(means) - mean))
    outside = float(weight @ np.array(squares)) * k / float(edges[-1] - edges[0])
    return Calendar(edges, mean, variance, outside)


def _visits(times: Sequence[float]) -> Float[np.ndarray, " k+1"]:
    """Visits of all batches in order [d], those within `SAME_VISIT` of one another as one, at their median."""
    ordered = np.unique(np.array(times, dtype=float))
    parts = np.split(ordered, np.flatnonzero(np.diff(ordered) > SAME_VISIT) + 1)
    return np.array([np.median(p) for p in parts])
