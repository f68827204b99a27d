"""What the desk of a unit holds and says: values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from types import MappingProxyType
from typing import Literal, NamedTuple

from controllers.loop import Session
from controllers.plan import Policy
from service.desk.opening import Opened, Opening
from service.journal import Kind
from service.messages import (
    NO_LINKS,
    ROOT,
    Alarm,
    BatchStart,
    ForecastMessage,
    Links,
    Message,
    Mode,
    Override,
    Severity,
    canonical_json,
    encode,
    time_text,
)
from twin.estimation.diagnosis import Diagnosis

NO_SIGNS: Mapping[str, tuple[int, int]] = MappingProxyType({})
NO_ALARMS: Mapping[str, Alarm] = MappingProxyType({})


class Output(NamedTuple):
    """One thing that the desk says. `kind` None: not journalled; `publish` False: journalled only."""

    suffix: str  # topic below the unit's root
    payload: bytes
    kind: Kind | None
    publish: bool
    retain: bool = False
    expires_at: datetime | None = None  # for the transport's own expiry


@dataclass(frozen=True, slots=True)
class Settings:
    """What a desk is told once."""

    mode: Mode
    clock: Literal["wall", "event"]
    futures: int  # size of the forecast ensemble
    open: Opening


@dataclass(frozen=True, slots=True, eq=False)
class Running:
    """The batch on the desk: it stays after its end, for late laboratory values."""

    session: Session
    opened: Opened
    policy: Policy
    start: datetime  # inoculation
    message: BatchStart
    heard: datetime  # newest receive time of a sign of life of the edge
    forecast: ForecastMessage | None = None
    diagnosis: Diagnosis | None = None  # of pumps, bags and biology, at the newest decision
    links: Links = field(default_factory=lambda: NO_LINKS)  # of corrections
    signs: Mapping[str, tuple[int, int]] = field(
        default_factory=lambda: NO_SIGNS
    )  # newest (epoch, seq) by edge's topic


class Memory(NamedTuple):
    """What is remembered of alarms beside those that are up."""

    onsets: tuple[datetime, ...] = ()  # of the last ten minutes
    held: frozenset[str] = frozenset()  # codes that a storm keeps back
    wanted: Mapping[str, datetime] = MappingProxyType({})  # when an alarm about the whole estimate last had a cause


@dataclass(frozen=True, slots=True, eq=False)
class Desk:
    """All that the twin holds of one unit."""

    site: str
    unit: str
    settings: Settings
    epoch: int
    seq: int = 0
    running: Running | None = None
    finished: tuple[str, ...] = ()  # names of batches that have been on this desk before
    alarms: Mapping[str, Alarm] = field(default_factory=lambda: NO_ALARMS)
    memory: Memory = Memory()

    @property
    def root(self) -> str:
        """Topic root of the unit, without the last slash."""
        return f"{ROOT}/{self.site}/{self.unit}"


Told = tuple[Desk, tuple[Output, ...]]


class AlarmText(NamedTuple):
    """What an alarm is to say."""

    severity: Severity
    channel: str | None
    message: str
    action: str
    since: datetime | None = None  # None: since it was first said


def output(message: Message, kind: Kind | None) -> Output:
    expires = message.valid_until if isinstance(message, Override) else None
    return Output(message.suffix, encode(message), kind, publish=True, retain=message.retain, expires_at=expires)


def note(what: str, batch: str, at: datetime, digest: str = "") -> Output:
    content = {"note": what, "batch": batch, "at": time_text(at)} | ({"digest": digest} if digest else {})
    return Output("note", canonical_json(content), "note", publish=False)
