"""Messages <-> facts, and wire time <-> days since inoculation: the one place where either is converted."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from types import MappingProxyType

from service.messages.base import Rejected
from service.messages.incoming import (
    BatchEnd,
    BatchStart,
    Calibration,
    EventMessage,
    MeasurementMessage,
    MediumChange,
    OperatorAction,
    ReadBack,
    StageChange,
    canonical,
)
from twin.evidence import ControlApplied, Event, Measurement
from twin.units import CANONICAL, scale_of

DAY = timedelta(days=1)

Links = Mapping[str, str]
"""id of a correction -> id of the measurement that it says it corrects."""

NO_LINKS: Links = MappingProxyType({})


def days(at: datetime, start: datetime) -> float:
    """Days from `start` (inoculation) to `at`; negative before it."""
    return (at - start) / DAY


def instant(day: float, start: datetime) -> datetime:
    """The wire time of a day since `start`, to the microsecond.

    `instant(days(t)) == t` exactly, and `days(instant(d))` is within 6e-12 d of d, over a century.
    Raises ValueError for a non-finite or absurd day.
    """
    if not abs(day) < 50_000.0:
        raise ValueError(f"{day!r} is no day of a batch")
    return start + timedelta(days=day)


def linked(links: Links, message: MeasurementMessage) -> Links:
    """`links` and what `message` says it corrects.

    Raises `Rejected` (conflict) when it has said otherwise before, or would, by way of others, correct itself.
    """
    named = message.supersedes
    if named is None or named == message.id or links.get(message.id) == named:
        return links
    if message.id in links:
        raise Rejected("conflict", f"measurement {message.id!r} corrects {links[message.id]!r}, not {named!r}")
    if root_of(links, named) == message.id:
        raise Rejected("conflict", f"measurement {message.id!r} would correct itself, by way of {named!r}")
    return MappingProxyType({**links, message.id: named})


def root_of(links: Links, name: str) -> str:
    """The measurement that `name` is a version of: a correction of a correction is one of the first."""
    while name in links:
        name = links[name]
    return name


def measurement_fact(
    message: MeasurementMessage, start: datetime, received_at: float, links: Links = NO_LINKS
) -> Measurement:
    """A reading in its canonical unit, as a version of what it corrects. `received_at` [d since `start`]: when we learnt it.

    One that its sender marks as bad is a retraction: of the versions before it, or of itself where there are none.
    One marked as confirmed is taken in whatever the filter makes of it.
    """
    value = canonical(message.channel, message.value, message.unit, None)
    return Measurement(
        id=root_of(links, message.supersedes or message.id),
        channel=message.channel,
        value=value,
        sampled_at=days(message.sampled_at, start),
        received_at=received_at,
        sd=None if message.sd is None else message.sd * scale_of(message.channel, message.unit),
        version=message.version,
        retracted=message.quality == "bad",
        confirmed=message.quality == "confirmed",
    )


def measurement_message(
    fact: Measurement, *, batch: str, start: datetime, seq: int, epoch: int, sample: str | None = None
) -> MeasurementMessage:
    """What an edge sends for a reading; `received_at` does not travel: who receives it knows when."""
    return MeasurementMessage(
        id=fact.id, batch=batch, channel=fact.channel, value=fact.value, unit=CANONICAL[fact.channel],
        sampled_at=instant(fact.sampled_at, start), sd=fact.sd, sample=sample, version=fact.version,
        quality="bad" if fact.retracted else "confirmed" if fact.confirmed else "good", seq=seq, epoch=epoch,
    )  # fmt: skip


def control_fact(message: ReadBack, start: datetime, volume: float) -> ControlApplied:
    """A read-back in canonical units; `volume` [L] is the batch's, for rates in mL/h."""
    return ControlApplied(
        id=f"{message.actuator}-{message.epoch}-{message.seq}",
        at=days(message.at, start),
        actuator=message.actuator,
        rate=canonical(message.actuator, message.rate, message.unit, volume),
        cmd_id=message.cmd_id,
    )


def control_message(fact: ControlApplied, *, batch: str, start: datetime, seq: int, epoch: int) -> ReadBack:
    """What an edge sends when a pump's rate changes."""
    return ReadBack.model_validate(
        {
            "actuator": fact.actuator,
            "batch": batch,
            "rate": fact.rate,
            "unit": CANONICAL[fact.actuator],
            "at": instant(fact.at, start),
            "cmd_id": fact.cmd_id,
            "seq": seq,
            "epoch": epoch,
        }
    )


def event_fact(message: EventMessage, start: datetime) -> Event:
    """An event as a fact; what is particular to its kind becomes the detail."""
    shared = {"id", "batch", "at", "seq", "epoch"}
    detail = {k: v for k, v in message.model_dump(exclude=shared).items() if v is not None and v != ""}
    return Event(id=message.id, kind=message.kind, at=days(message.at, start), detail=detail)


_EVENTS: Mapping[str, type[EventMessage]] = {
    c.kind: c for c in (BatchStart, BatchEnd, StageChange, Calibration, MediumChange, OperatorAction)
}


def event_message(fact: Event, *, batch: str, start: datetime, seq: int, epoch: int) -> EventMessage:
    """What an edge or an operator sends for an event. Raises ValueError when its detail lacks what the kind requires."""
    content = {"id": fact.id, "batch": batch, "at": instant(fact.at, start), "seq": seq, "epoch": epoch}
    return _EVENTS[fact.kind].model_validate({**fact.detail, **content})
