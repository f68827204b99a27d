"""Is a probe dead? Its noise tells: one that is frozen, quantised, or read in another unit scatters far less than it used to.

The variance of what readings some way apart differ by is held against the usual one of that very probe, and against that of its
stated noise, whichever is less: many a probe is quieter than it is said to be, and some have restless hours. Evidence for a dead
one gathers by the likelihood ratio of two variances (Page 1954). What moves by itself, as capacitance does while cells grow, is
never quiet.
"""

from __future__ import annotations

from math import inf, log, nan
from typing import NamedTuple

FULL, QUIET = 0.36, 0.02
"""Variance over the usual one: at the least of a sound probe, and of a dead one."""
SILENT = 20.0
"""So many nats for the second must gather. A test holds sound rigs of the mismatched simulator to less than that by a third."""
APART, TOGETHER = 1.0 / 48.0, 0.25
"""Readings closer in time [d] may be alike because a transmitter damps them; those further apart are not of one stretch."""
LEARNT, WINDOW = 12, 48
"""Steps from which what is usual is known, and over which it is averaged."""


class Scatter(NamedTuple):
    """What is remembered of a probe's noise."""

    mark: float = nan  # a reading to compare the next with, on the compared scale
    at: float = -inf  # when [d]
    usual: float = 0.0  # mean of (step from mark to mark)^2 over twice the variance of the stated noise
    steps: int = 0  # that it is the mean of
    nats: float = 0.0  # gathered for a dead probe

    @property
    def dead(self) -> bool:
        """Has it scattered too little for too long?"""
        return self.nats > SILENT

    @property
    def alive(self) -> bool:
        """Does it scatter as it used to? In between, neither is said: a dead probe may stir for a reading or two."""
        return self.nats < SILENT / 2.0


UNHEARD = Scatter()


def heard(s: Scatter, y: float, r: float, now: float) -> Scatter:
    """After a reading `y` on the compared scale at day `now`; `r` is the variance of its stated noise."""
    gap = now - s.at
    if gap < APART:
        return s
    if gap > TOGETHER:
        return Scatter(y, now, s.usual, s.steps, s.nats)
    stir, nats = (y - s.mark) ** 2 / (2.0 * r), 0.0
    if s.steps >= LEARNT:
        over = stir / max(min(1.0, s.usual), 1e-9)
        nats = max(0.0, s.nats + 0.5 * log(FULL / QUIET) - 0.5 * over * (1.0 / QUIET - 1.0 / FULL))
    if nats > 0.0:  # what is usual is not learnt from what may be dead
        return Scatter(y, now, s.usual, s.steps, min(nats, SILENT + 5.0))
    return Scatter(y, now, s.usual + (stir - s.usual) / min(s.steps + 1, WINDOW), s.steps + 1)
