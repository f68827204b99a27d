"""A batch as a value, and how its belief is rebuilt: checkpoints, rewind, replay.

The posterior is a function of the *set* of facts, bit for bit, whatever the order in which they arrived: a fact that
belongs before the newest checkpoint rewinds to the last earlier one and replays from there. That lives here and nowhere
else; the verbs that tell a batch something are in `twin.batch`.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
from immutables import Map

from twin.donors.prior import DonorPrior
from twin.estimation.belief import N_STATE, Belief, Layout
from twin.estimation.filters import Filter
from twin.estimation.screen import Datum, Innovation, Watch, follow, fuse
from twin.evidence import ControlApplied, Event, Measurement
from twin.inputs import Course
from twin.process import Process
from twin.sensors import CHANNELS, compared

KEEP_ALL = 256
"""So many of the newest checkpoints are all kept; of older ones every KEEP_EVERY-th (bounded memory over long batches)."""
KEEP_EVERY = 32


@dataclass(frozen=True, slots=True, eq=False)
class Checkpoint:
    """Belief after the first `count` pieces of evidence, and what is remembered of every channel."""

    count: int
    belief: Belief
    watches: Mapping[str, Watch] = field(default_factory=dict[str, Watch])
    informed: int = 0  # innovations so far: pieces of evidence whose channel has a sensor
    shadow: Belief | None = None  # the same readings through the shadow filter


class Revision(NamedTuple):
    """A fact that came late and moved what was believed."""

    cause: str  # id of the fact
    at: float  # when it belongs [d]
    jump: float  # largest shift of a state coordinate of the newest belief, in its own standard deviations


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Evidence and belief of one batch. Only the functions of this module make new ones."""

    id: str
    process: Process
    layout: Layout
    filter: Filter
    prior: Belief
    donor_prior: DonorPrior
    course: Course
    shadow: Filter | None = None
    evidence: tuple[Measurement, ...] = ()  # by (sampled_at, channel, id); the valid version of each
    superseded: tuple[Measurement, ...] = ()  # earlier and retracted versions, kept
    applied: tuple[ControlApplied, ...] = ()  # by (at, actuator, id)
    events: tuple[Event, ...] = ()  # by (at, kind, id)
    innovations: tuple[Innovation, ...] = ()  # of the evidence that informs the state, in its order
    checkpoints: tuple[Checkpoint, ...] = ()
    valid: Map[str, Measurement] = Map()  # the highest version of every measurement, by id
    told: Map[str, ControlApplied | Event] = Map()  # by kind and id
    revisions: tuple[Revision, ...] = ()  # in order of arrival

    @property
    def newest(self) -> Checkpoint:
        """The checkpoint after the newest evidence."""
        return self.checkpoints[-1] if self.checkpoints else _beginning(self)

    @property
    def belief(self) -> Belief:
        """Belief after the newest evidence."""
        return self.newest.belief

    @property
    def watches(self) -> Mapping[str, Watch]:
        """What is remembered of every channel after the newest evidence."""
        return self.newest.watches


def revised(before: Batch, after: Batch, cause: str, since: float) -> Batch:
    """`after`, with the revision noted if the fact belonged before evidence already seen."""
    old, new = before.belief, after.belief
    if not before.checkpoints or since >= old.time:
        return after
    at = max(old.time, new.time)
    new = carry(after, after.newest, at).belief
    shift = np.abs(new.mean - carry(before, before.newest, at).belief.mean)[:N_STATE]
    jump = float(np.max(shift / np.sqrt(np.maximum(np.diagonal(new.cov)[:N_STATE], 1e-300))))
    return replace(after, revisions=(*before.revisions, Revision(cause, since, jump)))


def _beginning(batch: Batch) -> Checkpoint:
    return Checkpoint(0, batch.prior, shadow=batch.prior if batch.shadow else None)


def last_checkpoint(batch: Batch, count: int) -> Checkpoint:
    """The newest checkpoint that has seen at most `count` pieces of evidence."""
    position = bisect_right(batch.checkpoints, count, key=lambda c: c.count)
    return batch.checkpoints[position - 1] if position else _beginning(batch)


def replay(batch: Batch, position: int) -> Batch:
    """Rebuild checkpoints and innovations from evidence[position] on, the first of its instant."""
    point = last_checkpoint(batch, position)
    kept = bisect_right(batch.checkpoints, position, key=lambda c: c.count)
    if point.count == len(batch.evidence) and kept == len(batch.checkpoints):
        return batch
    checkpoints, innovations = list(batch.checkpoints[:kept]), list(batch.innovations[: point.informed])
    for group in instants(batch.evidence[point.count :]):
        point, new = absorb(batch, point, group)
        checkpoints.append(point)
        innovations += new
    return replace(batch, checkpoints=_thin(checkpoints), innovations=tuple(innovations))


def instants(evidence: tuple[Measurement, ...]) -> list[tuple[Measurement, ...]]:
    """Evidence grouped by the instant of sampling."""
    groups: list[tuple[Measurement, ...]] = []
    for m in evidence:
        if groups and groups[-1][-1].sampled_at == m.sampled_at:
            groups[-1] = (*groups[-1], m)
        else:
            groups.append((m,))
    return groups


def _thin(checkpoints: list[Checkpoint]) -> tuple[Checkpoint, ...]:
    """The newest checkpoints, and of the older ones one in each `KEEP_EVERY` pieces of evidence."""
    if len(checkpoints) <= 2 * KEEP_ALL:
        return tuple(checkpoints)
    old, new = checkpoints[:-KEEP_ALL], checkpoints[-KEEP_ALL:]
    kept: list[Checkpoint] = []
    for c in old:
        if not kept or c.count // KEEP_EVERY > kept[-1].count // KEEP_EVERY:
            kept.append(c)
    return (*kept, *new)


def absorb(
    batch: Batch, point: Checkpoint, group: tuple[Measurement, ...]
) -> tuple[Checkpoint, tuple[Innovation, ...]]:
    """All evidence of one instant into the belief. Channels without a sensor entry are kept but inform nothing."""
    sensors, count = batch.process.sensors, point.count + len(group)
    data = tuple(datum_of(batch, m) for m in group if m.channel in sensors)
    if not data:
        return replace(point, count=count), ()
    at = group[0].sampled_at
    point = carry(batch, point, at)
    drive = batch.course.at(at)
    fused = fuse(batch.filter, point.belief, data, drive, point.watches, batch.layout, sensors)
    shadow = point.shadow
    if batch.shadow is not None and shadow is not None:
        shadow = follow(batch.shadow, shadow, data, fused.enacted, drive, batch.layout)
    informed = point.informed + len(fused.innovations)
    return Checkpoint(count, fused.belief, fused.watches, informed, shadow), fused.innovations


def datum_of(batch: Batch, m: Measurement) -> Datum:
    """A measurement as the filter takes it: on its compared scale, with the variance of its noise there."""
    sensor, channel = batch.process.sensors[m.channel], CHANNELS[m.channel]
    sd = sensor.sd
    if m.sd is not None:
        sd = m.sd / (m.value + channel.limit) if channel.scale == "log" else m.sd
    return Datum(sensor, m.value, float(compared(m.channel, m.value)), sd * sd, m.confirmed)


def carry(batch: Batch, point: Checkpoint, until: float) -> Checkpoint:
    """Predict to `until`, stopping wherever an input changes or a sensor is calibrated."""
    belief, shadow, watches = point.belief, point.shadow, point.watches
    if until <= belief.time:
        return point
    for end, drive, calibrated in batch.course.spans(belief.time, until):
        belief = batch.filter.predict(belief, drive, end)
        if batch.shadow is not None and shadow is not None:
            shadow = batch.shadow.predict(shadow, drive, end)
        for channel in calibrated:
            belief = recalibrated(batch, belief, channel)
            shadow = recalibrated(batch, shadow, channel) if shadow is not None else None
            watches = {k: w for k, w in watches.items() if k != channel}
    return Checkpoint(point.count, belief, watches, point.informed, shadow)


def recalibrated(batch: Batch, belief: Belief, channel: str) -> Belief:
    """Forget a sensor's learnt error: it has been calibrated. An unknown channel changes nothing."""
    sensor = batch.process.sensors.get(channel)
    if sensor is None or sensor.error is None:
        return belief
    i = batch.layout.index(sensor.error.name)
    mean, cov = belief.mean.copy(), belief.cov.copy()
    mean[i], cov[i, :], cov[:, i] = 0.0, 0.0, 0.0
    cov[i, i] = sensor.error.sd**2
    return Belief(belief.time, mean, cov, belief.repairs)
