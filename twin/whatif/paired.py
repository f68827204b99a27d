"""Paired futures: the present belief under what is scheduled and under an edit of it, future by future.

Both ensembles are of the same draws: state, donor and sensor errors, the noise of biology, what the laboratory misreads and when
its results are known (common random numbers; Glasserman, Monte Carlo Methods in Financial Engineering, 2003, section 4.1). They
share their instants, those of the edits included, so that nothing gets out of step; what differs between two futures of a
pair is the edit's doing. The empty edit differs by 0, exactly.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from twin.bioreactor import Control, State
from twin.futures import (
    HORIZON,
    QUANTITIES,
    ROUND,
    Band,
    Ensemble,
    Forecast,
    Schedule,
    band,
    passes,
    quantiles,
    release,
    run_futures,
    summary,
)
from twin.history import Batch
from twin.process import Limits
from twin.whatif.edits import Edits, most_of

SHORTEST = 2.0 * ROUND
"""An edit that is shorter may fall between two instants of the futures and do nothing [d]."""


class Change(NamedTuple):
    """A probability without and with the edit; `se` is the standard error of `delta`, of paired futures."""

    before: float
    after: float
    delta: float
    se: float


class Shift(NamedTuple):
    """5, 50 and 95 % quantiles of a quantity without and with the edit, and of its paired difference."""

    before: tuple[float, float, float]
    after: tuple[float, float, float]
    delta: tuple[float, float, float]


@dataclass(frozen=True, slots=True, eq=False)
class WhatIf:
    """What an edit would change."""

    edits: Edits
    now: float  # [d]
    before: Forecast
    after: Forecast
    delta: Mapping[str, Band]  # paired differences by quantity, until the first of both harvests is due
    harvested: Mapping[str, Shift]  # by quantity, each future at its own harvest
    harvest: Shift  # day of harvest [d]
    medium: Shift  # still to be perfused [vessel volumes]
    p_pass: Mapping[str, Change]  # by CQA
    p_release: Change
    capped: tuple[str, ...]  # actuators that were asked for more than they can do, and do their most
    n: int


@dataclass(frozen=True, slots=True, eq=False)
class Pair:
    """The ensembles without and with the edits, over the same instants, and which actuators were held to their limit."""

    before: Ensemble
    after: Ensemble
    ends: tuple[float, float]  # latest harvest of each [d]
    capped: tuple[str, ...]


def whatif(
    batch: Batch, now: float, edits: Edits | str | Iterable[str], schedule: Schedule, *, n: int = 2000, seed: int = 0,
    step: float = 0.25,
) -> WhatIf:  # fmt: skip
    """What `edits` of `schedule` from `now` [d] on would change, in `n` paired futures.

    Raises ValueError in one line: an edit that is not understood, of an unknown input, over already or past the harvest.
    """
    edits = edits if isinstance(edits, Edits) else Edits.parse(edits)
    pair = run_pair(batch, now, edits, schedule, n=n, seed=seed, step=step)
    (one, two), (end, other), targets = (pair.before, pair.after), pair.ends, batch.process.targets
    both = one.t <= min(end, other) + ROUND
    states = [State(*np.moveaxis(e.states[both], 1, 0)) for e in (one, two)]
    return WhatIf(
        edits=edits, now=now, before=summary(_until(one, end), targets), after=summary(_until(two, other), targets),
        delta={k: band(one.t[both], q(states[1]) - q(states[0])) for k, q in QUANTITIES.items()},
        harvested={k: _shift(q(one.harvested), q(two.harvested)) for k, q in QUANTITIES.items()},
        harvest=_shift(one.t[one.harvest], two.t[two.harvest]), medium=_shift(one.perfused, two.perfused),
        p_pass={t.cqa: _change(passes(t, one.harvested), passes(t, two.harvested)) for t in targets},
        p_release=_change(release(one, targets), release(two, targets)) if targets else Change(1.0, 1.0, 0.0, 0.0),
        capped=pair.capped, n=n,
    )  # fmt: skip


def run_pair(
    batch: Batch, now: float, edits: Edits, schedule: Schedule, *, n: int, seed: int, step: float = 0.25
) -> Pair:
    """Both ensembles from the same chances. Raises ValueError as `whatif` does."""
    latest, furthest = batch.process.recipe.harvest_latest, now + HORIZON
    if edits.harvest is None and latest <= now:
        raise ValueError(
            f"the harvest was due on day {latest:g}, now is day {now:.4g}: nothing lies ahead; expected an earlier day"
        )
    edits = edits.checked(batch.process, now, furthest)
    for e in edits.rates:
        since, until = e.window(now)
        if until - max(since, now) < SHORTEST:
            raise ValueError(
                f"edit {str(e)!r}: is too short to be forecast; expected {1440.0 * SHORTEST:.0f} min at least"
            )
    ends = min(max(latest, now), furthest), edits.harvest or min(latest, furthest)
    turns = [t for e in edits.rates for t in e.window(now)]
    capped: set[str] = set()

    def run(plan: Schedule, harvest_at: float | None) -> Ensemble:
        return run_futures(
            batch, now, plan, n=n, seed=seed, step=step, harvest_at=harvest_at, until=max(ends), also=(*turns, *ends)
        )

    before = run(schedule, None)
    after = run(edited_schedule(schedule, edits, batch.process.limits, now, capped), edits.harvest)
    return Pair(before, after, ends, tuple(sorted(capped)))


def edited_schedule(schedule: Schedule, edits: Edits, limits: Limits, now: float, capped: set[str]) -> Schedule:
    """`schedule` under `edits`, in their order; what asks for more than a limit, and for more than was done, gets the limit.

    The names of actuators that were held to their limit are added to `capped`.
    """
    most = most_of(limits)

    def plan(t: float, x: State) -> Control:
        u = schedule(t, x)
        for e in edits.rates:
            since, until = e.window(now)
            if since - ROUND <= t < until - ROUND:
                did = np.asarray(getattr(u, e.actuator), dtype=float)
                asked, limit = e.rate(did), np.maximum(getattr(most, e.actuator), did)
                if np.any(asked > limit):
                    capped.add(e.actuator)
                u = u._replace(**{e.actuator: np.minimum(asked, limit)})
        return u

    return plan


def _until(ensemble: Ensemble, end: float) -> Ensemble:
    """The ensemble without what lies after `end` [d]."""
    kept = ensemble.t <= end + ROUND
    return ensemble if kept.all() else replace(ensemble, t=ensemble.t[kept], states=ensemble.states[kept])


def _shift(before: np.ndarray, after: np.ndarray) -> Shift:
    return Shift(quantiles(before), quantiles(after), quantiles(after - before))


def _change(before: np.ndarray, after: np.ndarray) -> Change:
    one, two = before.astype(float), after.astype(float)
    delta = two - one
    se = float(delta.std(ddof=1) / np.sqrt(delta.size)) if delta.size > 1 else 0.0
    return Change(float(one.mean()), float(two.mean()), float(delta.mean()), se)
