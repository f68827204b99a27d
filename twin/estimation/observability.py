"""What the data so far inform: every state, donor parameter and sensor error before and after them, and by which channels.

Two questions, two measures. *How much is known* is the posterior standard deviation over that of the prior alone, carried
to the same instant under the same inputs. *Who told it* is mutual information: a reading y that is taken in after the
readings before it tells -ln(1 - rho^2) / 2 nats about a coordinate now, rho its correlation with that coordinate given
those readings. By the chain rule these add up, on a linear model to ln (prior sd / posterior sd) exactly, so every channel
has a share. (Leaving a channel out instead would take a pass each, and two channels that tell the same would both seem to
tell nothing.) The correlation of an old reading with a coordinate now follows from the filter's own moves, transposed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal, NamedTuple

import numpy as np
from scipy import linalg

from twin.batch import believe_at
from twin.estimation.belief import N_STATE, Belief, Layout
from twin.estimation.filters import Matrix, root
from twin.estimation.smooth import Move, Take, backwards, way, within
from twin.history import Batch
from twin.sensors import CHANNELS

INFORMED, WEAKLY = 0.7, 0.95
"""Posterior over prior sd up to which a coordinate is informed (half its variance explained) or weakly so (a tenth)."""

ENTANGLED = 0.9
"""Posterior correlation from which two coordinates are known mainly as one combination: knowing the other would
halve the standard deviation of either, and more."""

Kind = Literal["state", "parameter", "sensor error"]
Verdict = Literal["informed", "weakly", "not observable yet"]


class Entangled(NamedTuple):
    """Two coordinates that the data know mainly as one combination."""

    other: str
    correlation: float  # posterior
    known: Literal["product", "ratio", "combination"]
    left: float  # share of its standard deviation that a coordinate would keep if the other were known


class Informed(NamedTuple):
    """What the data so far say about one coordinate."""

    name: str
    kind: Kind
    prior_sd: float  # of the logarithm; of the offset itself for the error of a channel that is read as it is
    posterior_sd: float
    ratio: float
    verdict: Verdict
    channels: tuple[tuple[str, float], ...]  # shares of what all readings told [0..1], largest first; none: ()
    nats: float  # what all readings told
    entangled: tuple[Entangled, ...]


def observability(batch: Batch, now: float) -> tuple[Informed, ...]:
    """For every coordinate of the batch's layout: what the evidence sampled until `now` [d] tells of it.

    Costs about two passes of the filter. Raises ValueError for a time before inoculation or NaN.
    """
    if not batch.prior.time <= now < np.inf:
        raise ValueError(f"now: expected a day from {batch.prior.time:g} on, got {now!r}")
    count = sum(m.sampled_at <= now for m in batch.evidence)
    seen = replace(
        batch, evidence=batch.evidence[:count], checkpoints=tuple(c for c in batch.checkpoints if c.count <= count)
    )
    before = believe_at(replace(batch, evidence=(), checkpoints=()), now)
    after = believe_at(batch, now)
    told = _told(seen, after)
    layout, logs = batch.layout, _logarithmic(batch)
    ties = (_correlations(before), _correlations(after))
    prior_sd, posterior_sd = (np.sqrt(np.maximum(np.diagonal(b.cov), 0.0)) for b in (before, after))
    found: list[Informed] = []
    for i, name in enumerate(layout.names):
        ratio = float(posterior_sd[i] / prior_sd[i]) if prior_sd[i] > 0.0 else 1.0
        nats = {c: float(v[i]) for c, v in told.items() if v[i] > 0.0}
        total = sum(nats.values())
        shares = sorted(((c, v / total) for c, v in nats.items()), key=lambda s: (-s[1], s[0]))
        found.append(
            Informed(
                name, _kind(i, layout), float(prior_sd[i]), float(posterior_sd[i]), ratio, verdict(ratio), tuple(shares), total,
                _entangled(i, *ties, layout.names, logs),
            )
        )  # fmt: skip
    return tuple(found)


def verdict(ratio: float) -> Verdict:
    """What a ratio of posterior to prior standard deviation amounts to."""
    return "informed" if ratio <= INFORMED else "weakly" if ratio <= WEAKLY else "not observable yet"


def _told(batch: Batch, after: Belief) -> Mapping[str, np.ndarray]:
    """Nats that the readings of every channel told about the coordinates of the belief `after` the newest of them [n]."""
    told = {c: np.zeros(batch.layout.size) for c in batch.process.sensors}
    onward = np.eye(batch.layout.size)  # of coordinates at the place reached, going back, to those now
    variance = np.diagonal(after.cov).copy()  # of the coordinates now, given the readings up to that place
    for move in reversed([*way(batch, batch.belief, [after.time])]):
        onward = onward @ _transition(move)
    for stop in backwards(batch):
        for step in reversed(within(batch, stop)):
            if isinstance(step, Take):
                without = variance + np.square(onward @ step.cross) / step.s
                told[step.channel] += 0.5 * np.log(without / variance)
                variance = without
        for move in reversed(stop.way):
            onward = onward @ _transition(move)
    return told


def _transition(move: Move) -> Matrix:
    """Regression of the coordinates after a move on those before: the Jacobian, or what an unscented filter has for it."""
    factor, _ = root(move.before.cov)
    return linalg.cho_solve((factor, False), move.cross, check_finite=False).T


def _kind(i: int, layout: Layout) -> Kind:
    return "state" if i < N_STATE else "parameter" if i < layout.error_start else "sensor error"


def _logarithmic(batch: Batch) -> frozenset[str]:
    """Coordinates that are logarithms: all but the offsets of channels that are read as they are."""
    offsets = {
        s.error.name
        for s in batch.process.sensors.values()
        if s.error is not None and CHANNELS[s.channel].scale == "linear"
    }
    return frozenset(batch.layout.names) - offsets


def _correlations(belief: Belief) -> Matrix:
    sd = np.sqrt(np.maximum(np.diagonal(belief.cov), 1e-300))
    return belief.cov / np.outer(sd, sd)


def _entangled(
    i: int, before: Matrix, after: Matrix, names: Sequence[str], logs: frozenset[str]
) -> tuple[Entangled, ...]:
    """The coordinates that the readings, and not the prior, tied to coordinate `i`; the closest first."""
    tied = [j for j in range(len(names)) if j != i and abs(after[i, j]) >= ENTANGLED > abs(before[i, j])]
    found: list[Entangled] = []
    for j in sorted(tied, key=lambda j: -abs(after[i, j])):
        rho, both = float(after[i, j]), names[i] in logs and names[j] in logs
        known = "combination" if not both else "product" if rho < 0.0 else "ratio"
        found.append(Entangled(names[j], rho, known, float(np.sqrt(max(1.0 - rho * rho, 0.0)))))
    return tuple(found)
