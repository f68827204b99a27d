"""The imperative shell of the twin: what arrives is journalled, then understood, then answered.

One pass over what is waiting, in order of arrival:

    received -> journal (one transaction) -> acknowledge -> desk.step, message by message
             -> journal what it says -> publish -> desk.estimate, once a unit, when the group is through

Rule 1. Not logged = not sent: `publish` is only reached past the journal; a journal that cannot be written ends the run.
Rule 2. All state is a function of the journal: a restart folds it (`service.replay`) and carries on.
Rule 3. A message that cannot be used is answered by `rejected` and the service goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from service.config import ServiceConfig
from service.desk import Desk, Output, Running, estimate, refuse, step, watch
from service.journal import Entry, Journal
from service.messages import (
    MAX_BYTES,
    ROOT,
    Override,
    Rejected,
    StatusMessage,
    decode_as,
    encode,
    instant,
    is_id,
)
from service.mqtt import Posting, Received
from service.replay import place, resume, settings_of, started_entry

FAMILIES = ("measurement", "event", "actuator", "ack", "query")
"""Topic families that the twin takes."""

GROUP = 500
"""Most messages that are taken as one group: an estimate follows each group."""

LAST_SEQ = 2**53 - 1
"""`seq` of an offline status: it comes after everything that its sender said."""


def subscriptions(config: ServiceConfig) -> tuple[str, ...]:
    """Topic filters of the units that this service covers."""
    units = ("+",) if config.units == "*" else config.units
    return tuple(f"{ROOT}/{config.site}/{unit}/{family}/#" for unit in units for family in FAMILIES)


def is_ours(config: ServiceConfig, topic: str) -> bool:
    """Whether the topic lies below a unit of this service."""
    unit, suffix = place(topic)
    return topic.startswith(f"{ROOT}/{config.site}/") and is_id(unit) and bool(suffix) and config.serves(unit)


def status(config: ServiceConfig, unit: str, epoch: int, since: datetime, version: str, *, online: bool) -> Posting:
    """The retained status of a unit; as `offline` it is the last will."""
    said = StatusMessage(
        state="online" if online else "offline", mode=config.mode, version=version, since=since,
        seq=0 if online else LAST_SEQ, epoch=epoch,
    )  # fmt: skip
    return Posting(f"{ROOT}/{config.site}/{unit}/status", encode(said), retain=True)


@dataclass(slots=True)
class Runner:
    """The desks of a service, their journal, and the way out. Single-threaded; `posted` may be read from elsewhere."""

    config: ServiceConfig
    journal: Journal
    epoch: int
    version: str
    now: Callable[[], datetime]
    publish: Callable[[Posting], object]
    desks: dict[str, Desk] = field(default_factory=dict)
    posted: dict[str, Posting] = field(default_factory=dict)  # newest retained by topic: what a greeting repeats
    refused: int = 0
    _silent: set[str] = field(default_factory=set)  # units whose silence was announced
    _unsaid: tuple[tuple[str, Output], ...] = ()  # concluded before the stop, but neither journalled nor sent

    def rebuild(self) -> tuple[str, ...]:
        """Bring the desks to where the journal ends; nothing is published. Answers what this version sees otherwise.

        Raises ConfigError or JournalError.
        """
        resumed = resume(self.journal, self.config, self.epoch)
        self.desks = {unit: desk for unit, desk in resumed.desks.items() if self.config.serves(unit)}
        self._unsaid = tuple((unit, output) for unit, output in resumed.unsaid if unit in self.desks)
        for row in self.journal.rows():
            if row.kind in ("sent", "estimate") and is_ours(self.config, row.topic) and _retained(place(row.topic)[1]):
                self.posted[row.topic] = Posting(row.topic, row.payload, retain=True)
        return tuple(f"journal row {m.row}: {m.kind} {m.detail}" for m in resumed.mismatches)

    def resume(self) -> None:
        """After `rebuild`, with `publish` live: say what a stop kept back, then what may have been lost on its way out.

        What was concluded and not journalled is journalled and sent as it would have been. Overrides that still hold go
        out again, as they are in the journal: the edge takes a command once. Then a fresh estimate of every batch, so
        that an edge that waits for one goes on.
        """
        at = self.now()
        for unit, output in self._unsaid:
            self._say(self.desks[unit], (output,), at)
        self._unsaid = ()
        self.journal.append(started_entry(self.config, self.epoch, self.version, at))
        for desk in list(self.desks.values()):
            if desk.running is not None:
                for override in self._standing(desk, desk.running):
                    self._post(
                        desk, Output(override.suffix, encode(override), "sent", True, False, override.valid_until)
                    )
                self._estimate(desk.unit)

    def take(self, group: Sequence[Received], acknowledge: Callable[[Received], None] = lambda m: None) -> None:
        """Everything that was waiting, in order. Raises JournalError: nothing was sent that is not in the journal."""
        at = self.now()
        ours = [m for m in group if is_ours(self.config, m.topic)]  # a broker that sends others gets no answer to them
        facts = [m for m in ours if not m.retained]
        self.journal.append_many([Entry(at, "received", m.topic, _bounded(m.payload)) for m in facts])
        for m in group:
            acknowledge(m)
        touched: dict[str, None] = {}
        for m in ours:
            unit, suffix = place(m.topic)
            if m.retained:
                self._refuse_retained(unit, m, at)
            else:
                desk, outputs = step(self._desk(unit), suffix, _bounded(m.payload), at)
                self._say(desk, outputs, at)
                if not suffix.startswith("query/") and all(o.kind != "rejected" for o in outputs):
                    touched[unit] = (
                        None  # a question or a refusal changes no estimate and is no sign of life of the edge
                    )
        for unit in touched:
            self._heard(unit, at)
            self._estimate(unit)

    def watch(self) -> None:
        """From time to time: the alarms that silence raises. They hang on our clock alone, so no desk remembers them."""
        at = self.now()
        for unit, desk in self.desks.items():
            if unit not in self._silent and (said := watch(desk, at)[1]):
                self._silent.add(unit)
                self._remark(desk, said, at)

    def _heard(self, unit: str, at: datetime) -> None:
        if unit in self._silent:
            self._silent.discard(unit)
            self._remark(self.desks[unit], (Output("alarm/edge_silent", b"", None, publish=True, retain=True),), at)

    def _remark(self, desk: Desk, said: Sequence[Output], at: datetime) -> None:
        self.journal.append_many([Entry(at, "remark", f"{desk.root}/{o.suffix}", o.payload) for o in said])
        for o in said:
            self._post(desk, o)

    def _desk(self, unit: str) -> Desk:
        if unit not in self.desks:
            self.desks[unit] = Desk(self.config.site, unit, settings_of(self.config), self.epoch)
        return self.desks[unit]

    def _estimate(self, unit: str) -> None:
        self._say(*estimate(self.desks[unit]), self.now())

    def _say(self, desk: Desk, outputs: Sequence[Output], at: datetime) -> None:
        """Journal, then publish: in this order, always."""
        rows = [Entry(at, o.kind, f"{desk.root}/{o.suffix}", o.payload) for o in outputs if o.kind is not None]
        self.journal.append_many(rows)
        self.desks[desk.unit] = desk
        for o in outputs:
            self.refused += o.kind == "rejected"
            self._post(desk, o)

    def _post(self, desk: Desk, o: Output) -> None:
        left = None
        if o.expires_at is not None:  # an override; what has expired, or is no longer ours to ask, is not sent
            left = (o.expires_at - self._clock(desk)).total_seconds()
            if left <= 0.0 or self.config.mode != "closed":
                return
        if o.publish:
            posting = Posting(
                f"{desk.root}/{o.suffix}", o.payload, o.retain, None if left is None else max(1, int(left))
            )
            if o.retain:
                self.posted[posting.topic] = posting
            self.publish(posting)

    def _refuse_retained(self, unit: str, m: Received, at: datetime) -> None:
        """A retained message may be of any age: it is no fact, and no input of the desk."""
        verdict = Rejected(
            "retained", "what goes to the twin is never retained: publish it again without, and clear the topic"
        )
        desk, (said,) = refuse(self._desk(unit), m.topic, verdict, at)
        self.journal.append(Entry(at, "dropped", m.topic, _bounded(m.payload)))
        self.desks[unit] = desk
        self.refused += 1
        self._post(desk, said)

    def _standing(self, desk: Desk, running: Running) -> Iterator[Override]:
        """Overrides of the newest decision that still hold on the batch's clock, as they were sent."""
        if running.session.ended:
            return
        newest: dict[str, Override] = {}
        prefix = f"{desk.root}/override/"
        for row in self.journal.rows():
            if row.kind == "sent" and row.topic.startswith(prefix):
                said = decode_as(Override, row.topic.removeprefix(f"{desk.root}/"), row.payload)
                newest[said.actuator] = said
        last = max((o.valid_from for o in newest.values()), default=None)
        for override in newest.values():
            if (override.batch, override.valid_from) == (running.message.batch, last):
                yield override

    def _clock(self, desk: Desk) -> datetime:
        """Now, on the clock that the batch runs on."""
        if self.config.clock == "event" and desk.running is not None:
            return instant(desk.running.session.clock, desk.running.start)
        return self.now()


def _retained(suffix: str) -> bool:
    return suffix in ("estimate", "forecast", "plan") or suffix.startswith("alarm/")


def _bounded(payload: bytes) -> bytes:
    """At most one byte more than is ever looked at: enough to be refused as too large, too little to fill a disk."""
    return payload[: MAX_BYTES + 1]
