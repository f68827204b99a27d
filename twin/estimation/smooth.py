"""What is believed of every instant of a batch given all of its evidence: Rauch-Tung-Striebel smoothing.

The filter goes forward once more from its checkpoints, keeping of every move what was believed before and after it and
the covariance between the two; the smoother comes back (Rauch 1965; unscented: Sarkka 2008). A move is time that passes,
a calibration (the sensor's error is drawn anew: nothing that is learnt later speaks of the old one), or a belief that was
widened when it was contradicted. Readings need no step back: they are in what was believed after them.

Symbols (Sarkka, Bayesian Filtering and Smoothing, 2013): m mean, P covariance, G smoothing gain.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from scipy import linalg

from twin.estimation.belief import Belief
from twin.estimation.filters import Filter, Matrix, root, symmetric
from twin.estimation.screen import Datum, Enacted, _belief, _enact, _let_go, _widened, fuse
from twin.evidence import Measurement
from twin.history import Batch, Checkpoint, _calibrated, _datum, instants, last_checkpoint

SEGMENT = 256
"""Least pieces of evidence between the checkpoints from which the filter goes forward again: what bounds the memory."""


class Move(NamedTuple):
    """A change of the belief other than by a reading."""

    before: Belief
    after: Belief
    cross: Matrix  # covariance of the coordinates before (rows) and after (columns)


@dataclass(frozen=True, slots=True, eq=False)
class Smoothed:
    """Beliefs given all evidence, in order of time."""

    beliefs: tuple[Belief, ...]

    @property
    def times(self) -> tuple[float, ...]:
        """Instants of the beliefs [d]."""
        return tuple(b.time for b in self.beliefs)

    def at(self, t: float) -> Belief:
        """The belief of an instant. Raises KeyError for one that is none of `times`."""
        position = bisect_left(self.beliefs, t, key=lambda b: b.time)
        if position == len(self.beliefs) or self.beliefs[position].time != t:
            raise KeyError(f"{t!r} d was not smoothed: it is no instant of evidence and was not asked for")
        return self.beliefs[position]


def smoothed(batch: Batch, times: Iterable[float] | None = None, *, instants_too: bool = True) -> Smoothed:
    """Beliefs at every instant of evidence and at `times` [d], given all evidence of the batch.

    After the newest evidence this is the prediction; at its instant it is the filter's belief. An instant of evidence is
    smoothed together with its readings. Memory grows with the number of beliefs asked for (`instants_too` False: those at
    `times` only) and the longest stretch between checkpoints. Raises ValueError for a time before inoculation or NaN.
    """
    wanted = sorted({float(t) for t in times or ()})
    if not all(t >= batch.prior.time for t in wanted):
        raise ValueError(f"times: days from {batch.prior.time:g} on are needed, not {wanted[0]!r}")
    later = batch.belief
    found = _ahead(batch, later, [t for t in wanted if t > later.time])[::-1]
    if instants_too or later.time in wanted:
        found.append(later)
    for begin, until in _segments(batch):
        for stop in reversed(_forward(batch, begin, until)):
            belief = later
            for move in reversed(stop.within):
                belief = back(move, belief)
            moves = [*_way(batch, stop.begin, [stop.time])]
            between = [t for t in wanted if stop.begin.time < t < stop.time]
            found += _between(batch, stop, belief, between)
            for move in reversed(moves):
                belief = back(move, belief)
            later = belief
            if instants_too or later.time in wanted:
                found.append(later)
    return Smoothed(tuple(reversed(found)))
