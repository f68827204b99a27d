"""What a message means for the batch on the desk: the fact behind it, on the batch's own clock, and whether the edge lives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from types import MappingProxyType

from service.desk.records import Desk, Running
from service.messages import (
    Ack,
    EventMessage,
    MeasurementMessage,
    MediumChange,
    ReadBack,
    Rejected,
    control_fact,
    days,
    event_fact,
    measurement_fact,
    time_text,
)
from twin.batch import Batch, assimilate
from twin.evidence import ControlApplied, Fact

JUMP = 3.5
"""A time stamp further ahead of the batch than this is refused under the event clock [d]: one typo must not end a batch.
Recorded batches pause for up to 3 d."""

SKEW = timedelta(seconds=60)
"""How far ahead of ours another clock may be, under the wall clock."""

BEYOND = 1.5
"""A read-back above so many times the process's limit of its actuator is refused: a slip of unit or decimal point."""

ALLOWED: Mapping[str, float] = {"perfusion": 0.1, "feed": 25.0, "bleed": 0.1, "cytokine_dose": 0.1}
"""Read-backs up to here are taken whatever the limit is [VVD; IU/mL/d]: boluses are short feeds, recorded ones of 10.5 VVD."""


UNMODELLED = frozenset({"temperature"})
"""Channels of probes that inform no state, and so have no entry among the sensors that says so."""


def fact_of(desk: Desk, running: Running, message: MeasurementMessage | ReadBack | EventMessage, at: datetime) -> Fact:
    """The fact behind a message, on the batch's own clock. Raises `Rejected`."""
    told = message.sampled_at if isinstance(message, MeasurementMessage) else message.at
    when, clock = days(told, running.start), running.session.clock
    if when < 0.0:
        raise Rejected("before_start", f"{time_text(told)} lies before the batch started, {time_text(running.start)}")
    if desk.settings.clock == "wall":
        if told > at + SKEW:
            raise Rejected("from_the_future", f"{time_text(told)} is ahead of our clock, {time_text(at)}")
        received = max(days(at, running.start), when)
    else:
        if when > clock + JUMP:
            raise Rejected("from_the_future", f"{time_text(told)} is more than {JUMP:g} days ahead of the batch")
        received = max(clock, when)
    if isinstance(message, MeasurementMessage):
        return measurement_fact(message, running.start, received, running.links)
    if isinstance(message, ReadBack):
        return _possible(control_fact(message, running.start, running.message.volume_l), running)
    fact = event_fact(message, running.start)
    if isinstance(message, MediumChange):
        composition = desk.settings.open.medium(message.medium)
        return replace(fact, detail={"name": message.medium, **composition._asdict()})
    return fact


def _possible(fact: ControlApplied, running: Running) -> ControlApplied:
    """The read-back, unless no pump of this process could do that: it would drive the belief wherever it points."""
    if fact.actuator not in ALLOWED:
        return fact
    limit = float(getattr(running.session.batch.process.limits, f"{fact.actuator}_max"))
    bound = max(BEYOND * limit, ALLOWED[fact.actuator])
    if not 0.0 <= fact.rate <= bound:
        raise Rejected(
            "out_of_range", f"{fact.actuator} reads back {fact.rate:.4g}; at most {bound:g} is possible here"
        )
    return fact


def joined(batch: Batch, name: str, root: str) -> Batch:
    """The batch when `name` turns out to be a correction of `root`: what was known as `name` are versions of `root`.

    So a correction that overtook the one it corrects counts once, as if they had come in order. Raises
    `twin.evidence.Refused` (conflict) for a version that `root` has with other content.
    """
    if name == root:
        return batch
    versions = sorted((m for m in (*batch.superseded, *batch.evidence) if m.id == name), key=lambda m: m.version)
    if not versions:
        return batch
    newest = versions[-1]
    if not newest.retracted:
        batch = assimilate(batch, replace(newest, version=newest.version + 1, retracted=True))
    kept = tuple(m for m in batch.superseded if m.id != name)
    batch = replace(batch, superseded=kept, valid=batch.valid.delete(name))
    for m in versions:
        batch = assimilate(batch, replace(m, id=root))
    return batch


# --- signs of life ---------------------------------------------------------------------------------------------------


def heard(running: Running, message: MeasurementMessage | ReadBack | EventMessage | Ack, at: datetime) -> Running:
    """The batch, with a sign of life of its edge noted at `at` where `message` is one.

    Read-backs, acknowledgements and first readings of probes are the edge's own; laboratory values, corrections and
    events may come from people while the edge is dead. What was said before (SAFETY S4: judged by the sender's
    sequence, not by a clock) is no sign of life: a broker may hold it for weeks.
    """
    source = _edge_source(running, message)
    stamp = (message.epoch, message.seq)
    if source is None or stamp <= running.signs.get(source, (-1, -1)):
        return running
    return replace(running, heard=max(at, running.heard), signs=MappingProxyType({**running.signs, source: stamp}))


def _edge_source(running: Running, message: MeasurementMessage | ReadBack | EventMessage | Ack) -> str | None:
    """Which part of the edge speaks; None: not the edge, or not certainly."""
    match message:
        case Ack():
            return "ack"
        case ReadBack():
            return f"actuator/{message.actuator}"
        case MeasurementMessage(version=1, supersedes=None):
            sensor = running.session.batch.process.sensors.get(message.channel)
            probe = sensor.kind == "probe" if sensor is not None else message.channel in UNMODELLED
            return message.suffix if probe else None
        case _:
            return None
