"""What the read-backs themselves give away: stretches over which a pump did less, or more, than the recipe asked."""

from __future__ import annotations

from bisect import bisect_right
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from twin.estimation.pumps import APART_ABSOLUTE, APART_RELATIVE, Asked
from twin.evidence import ACTUATORS, ControlApplied
from twin.history import Batch
from twin.retrospect.causes import Name, limit_of

LOOK = 1.0 / 24.0
"""Read-backs and recipe are compared so often [d]."""
LEAST = 0.5
"""A shorter departure is an operator's hand and no cause [d]."""
BRIDGE = 0.25
"""Departures less than this apart are one [d]."""
FOLLOWS = 0.5
"""A batch whose pump departs from the recipe for more than this share of its time was played by another recipe."""


class Deviation(NamedTuple):
    """The read-backs of an actuator stay below, or above, what the recipe asked."""

    actuator: str
    since: float  # [d]
    until: float  # [d]
    applied: float  # mean rate [VVD; IU/mL/d]
    asked: float

    @property
    def cause(self) -> Name | None:
        """What a shortfall is called; None for an excess."""
        if self.applied >= self.asked:
            return None
        return "cytokine_missed" if self.actuator == "cytokine_dose" else "late_feed"


def deviations(batch: Batch, asked: Asked, at: float) -> tuple[Deviation, ...]:
    """Where the pumps, by their own word and without a command, departed from the recipe until `at` [d]. Ordered by time."""
    times = np.arange(0.5 * LOOK, at, LOOK)
    wanted = [asked(float(t)) for t in times]
    found: list[Deviation] = []
    for actuator in ACTUATORS:
        said = [c for c in batch.applied if c.actuator == actuator]
        did = np.array([float(getattr(batch.course.at(float(t)).control, actuator)) for t in times])
        ask = np.array([np.nan if w is None else float(getattr(w, actuator)) for w in wanted])
        free = np.array([not _commanded(said, float(t)) for t in times])
        tolerance = APART_ABSOLUTE * limit_of(batch.process.limits, actuator) + APART_RELATIVE * np.maximum(did, ask)
        off = free & (np.abs(did - ask) > tolerance)  # NaN: not known, no departure
        if not off.any() or off.mean() > FOLLOWS:
            continue
        for first, last in _runs(times, off):
            here = slice(first, last + 1)
            since, until = float(times[first] - 0.5 * LOOK), float(times[last] + 0.5 * LOOK)
            if until - since >= LEAST:
                found.append(Deviation(actuator, since, until, float(did[here].mean()), float(ask[here].mean())))
    return tuple(sorted(found, key=lambda d: d.since))


def _commanded(said: list[ControlApplied], t: float) -> bool:
    k = bisect_right(said, t, key=lambda c: c.at)
    return k > 0 and said[k - 1].cmd_id is not None


def _runs(times: np.ndarray, off: np.ndarray) -> list[tuple[int, int]]:
    """First and last index of every stretch, short gaps closed."""
    hits = np.flatnonzero(off)
    cuts = [0, *(i for i, (a, b) in enumerate(pairwise(hits), start=1) if times[b] - times[a] > BRIDGE), hits.size]
    return [(int(hits[a]), int(hits[b - 1])) for a, b in pairwise(cuts)]
