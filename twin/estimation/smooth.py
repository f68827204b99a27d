"""What is believed of every instant of a batch given all of its evidence: Rauch-Tung-Striebel smoothing.

The filter goes forward once more from its checkpoints, keeping of every move what was believed before and after it and
the covariance between the two; the smoother comes back (Rauch 1965; unscented: Sarkka 2008). A move is time that passes,
a calibration (the sensor's error is drawn anew: nothing that is learnt later speaks of the old one), or a belief that was
widened when readings contradicted it. Readings need no step back: they are in what was believed after them.

Symbols (Sarkka, Bayesian Filtering and Smoothing, 2013): m mean, P covariance, G smoothing gain.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy import linalg

from twin.estimation.belief import Belief, Layout
from twin.estimation.conditioning import condition, let_go, state_of, widened
from twin.estimation.filters import Matrix, Outlook, root, symmetric
from twin.estimation.screen import Datum, Enacted, fuse
from twin.history import Batch, Checkpoint, carry, datum_of, instants, last_checkpoint, recalibrated
from twin.inputs import Drive

SEGMENT = 256
"""Least evidence between the checkpoints from which the filter goes forward again: what bounds the memory."""


class Move(NamedTuple):
    """A change of the belief other than by a reading."""

    before: Belief
    after: Belief
    cross: Matrix  # covariance of the coordinates before (rows) and after (columns)


class Take(NamedTuple):
    """A reading that was taken in."""

    channel: str
    cross: np.ndarray  # covariance of the coordinates and the reading, given the readings before it [n]
    s: float  # variance of the reading, given the same


class Stop(NamedTuple):
    """One instant of evidence on the way forward."""

    begin: Belief  # after the evidence of the instant before
    way: tuple[Move, ...]  # from there to this instant
    drive: Drive
    data: tuple[Datum, ...]
    enacted: tuple[Enacted, ...]
    after: Belief

    @property
    def arrived(self) -> Belief:
        """The belief before the readings."""
        return self.way[-1].after if self.way else self.begin

    @property
    def widened(self) -> bool:
        """Whether the belief was widened for a reading."""
        return any(step.verdict == "widened" or step.let_go for step in self.enacted)


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
            raise KeyError(f"{t!r} d was not smoothed: it was not asked for and no evidence is of this instant")
        return self.beliefs[position]


def smoothed(batch: Batch, times: Iterable[float] | None = None, *, only: bool = False) -> Smoothed:
    """Beliefs at every instant of evidence that informs the state and at `times` [d], given all evidence of the batch.

    With `only`, those at `times` alone. At the newest evidence it is the filter's belief, after it the prediction. Memory
    grows with the beliefs that are returned and with the longest stretch between checkpoints.
    Raises ValueError for a time that is not a number or before inoculation.
    """
    asked = sorted({float(t) for t in (() if times is None else times)})
    if not all(batch.prior.time <= t < np.inf for t in asked):
        raise ValueError(f"times: expected days from {batch.prior.time:g} on, got {asked}")
    wanted, newest = set(asked), batch.belief
    found = [carry(batch, batch.newest, t).belief for t in reversed(asked) if t > newest.time]
    later = newest
    for stop in backwards(batch):
        if not only or later.time in wanted:
            found.append(later)
        for move in reversed(within(batch, stop) if stop.widened else ()):
            later = back(move, later) if isinstance(move, Move) else later
        found += _between(batch, stop, later, [t for t in asked if stop.begin.time < t < stop.after.time])
        for move in reversed(stop.way):
            later = back(move, later)
    if later.time in wanted and (not found or found[-1].time > later.time):
        found.append(later)
    return Smoothed(tuple(reversed(found)))


def back(move: Move, later: Belief) -> Belief:
    """What is believed of the time before a move, given what is finally believed of the time after it."""
    before, after, cross = move
    factor, repaired = root(after.cov)
    gain = linalg.cho_solve((factor, False), cross.T, check_finite=False).T
    mean = before.mean + gain @ (later.mean - after.mean)
    cov = symmetric(before.cov + gain @ (later.cov - after.cov) @ gain.T)
    smoother = Belief(before.time, mean, cov, before.repairs)
    return smoother.repaired() if repaired else smoother


def backwards(batch: Batch) -> Iterator[Stop]:
    """The instants of evidence, newest first, by going forward from one checkpoint after the other."""
    marks = [last_checkpoint(batch, 0)]
    for c in batch.checkpoints:
        if c.count >= marks[-1].count + SEGMENT:
            marks.append(c)
    ends = [*(c.count for c in marks[1:]), len(batch.evidence)]
    for begin, until in zip(reversed(marks), reversed(ends), strict=True):
        yield from reversed(_forward(batch, begin, until))


def within(batch: Batch, stop: Stop) -> list[Move | Take]:
    """What became of the belief at one instant, in order. What widened it is noise of no duration."""
    layout, n = batch.layout, batch.layout.size
    channels = tuple(dict.fromkeys(d.sensor.channel for d in stop.data))
    joint = batch.filter.look(stop.arrived, channels, stop.drive)
    steps: list[Move | Take] = []
    for datum, step in zip(stop.data, stop.enacted, strict=True):
        row = n + channels.index(datum.sensor.channel)
        wide = _leap(joint, stop.arrived, datum, step, row, layout)
        if wide is not None:
            now = state_of(joint, stop.arrived, n)
            steps.append(Move(now, wide, now.cov))
            joint = batch.filter.look(wide, channels, stop.drive)
        if step.verdict in ("accepted", "widened"):
            steps.append(Take(datum.sensor.channel, joint.cov[:n, row], float(joint.cov[row, row]) + datum.r))
            joint = condition(joint, row, datum.y, datum.r)
    return steps


def _forward(batch: Batch, point: Checkpoint, until: int) -> list[Stop]:
    """Once more through the evidence from a checkpoint to the `until`-th piece."""
    belief, watches, sensors = point.belief, point.watches, batch.process.sensors
    stops: list[Stop] = []
    for group in instants(batch.evidence[point.count : until]):
        data = tuple(datum_of(batch, m) for m in group if m.channel in sensors)
        if not data:
            continue
        at = group[0].sampled_at
        moves, drive = tuple(way(batch, belief, [at])), batch.course.at(at)
        renewed = {c for when, c in batch.course.calibrations if belief.time < when <= at}
        known = {c: w for c, w in watches.items() if c not in renewed}
        fused = fuse(batch.filter, moves[-1].after if moves else belief, data, drive, known, batch.layout, sensors)
        stops.append(Stop(belief, moves, drive, data, fused.enacted, fused.belief))
        belief, watches = fused.belief, fused.watches
    return stops


def way(batch: Batch, belief: Belief, stops: Sequence[float]) -> Iterator[Move]:
    """From a belief through ascending `stops`, halting wherever an input changes or a sensor is calibrated."""
    for stop in stops:
        if stop <= belief.time:
            continue
        for end, drive, calibrated in batch.course.spans(belief.time, stop):
            after, cross = batch.filter.transit(belief, drive, end)
            for channel in calibrated:
                after = recalibrated(batch, after, channel)
                sensor = batch.process.sensors.get(channel)
                if sensor is not None and sensor.error is not None:
                    cross[:, batch.layout.index(sensor.error.name)] = 0.0
            yield Move(belief, after, cross)
            belief = after


def _between(batch: Batch, stop: Stop, later: Belief, asked: Sequence[float]) -> list[Belief]:
    """Beliefs at times between two instants of evidence, newest first, by a way of their own that halts at them."""
    if not asked:
        return []
    found: list[Belief] = []
    for move in reversed([*way(batch, stop.begin, [*asked, later.time])]):
        if found and found[-1].time == asked[0]:
            break
        later = back(move, later)
        if later.time in asked:
            found.append(later)
    return found


def _leap(joint: Outlook, belief: Belief, datum: Datum, step: Enacted, row: int, layout: Layout) -> Belief | None:
    """The belief as it was widened for a reading, or None: as `twin.estimation.screen` does it."""
    now = state_of(joint, belief, layout.size)
    if step.verdict == "widened":
        return widened(now, joint.cov[: layout.size, row], float(joint.cov[row, row]), layout, step.inflate)
    if step.let_go and datum.sensor.error is not None:
        return let_go(now, datum.sensor.error, layout)
    return None
