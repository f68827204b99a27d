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
from dataclasses import dataclass, field, replace
from datetime import datetime

from service.config import ServiceConfig
from service.desk import Desk, Output, Running, Told, estimate, refuse, step, watch
from service.journal import Entry, Journal
from service.messages import (
    MAX_BYTES,
    ROOT,
    Alarm,
    Override,
    Rejected,
    StatusMessage,
    addressed,
    decode_as,
    encode,
    instant,
    is_id,
)
from service.mqtt import Posting, Received
from service.replay import Begun, Mismatch, place, resume, settings_of, started_entry, wake
from twin.config import ConfigError

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
    warn: Callable[[str], None] = lambda line: None  # takes a line for a person
    desks: dict[str, Desk] = field(default_factory=dict)  # by unit: opened by the unit's first batch, never by less
    resting: dict[str, Begun] = field(default_factory=dict)  # units whose newest batch was over when this run began
    posted: dict[str, Posting] = field(default_factory=dict)  # newest retained by topic: what a greeting repeats
    refused: int = 0
    _resumed_at: int = 0  # row of the journal at which this run began
    _strays: int = 0  # messages said on units that have no desk
    _unsaid: tuple[tuple[str, Output], ...] = ()  # concluded before the stop, but neither journalled nor sent

    @property
    def units(self) -> tuple[str, ...]:
        """Units that have had a batch."""
        return tuple(sorted({*self.desks, *self.resting}))

    def rebuild(self) -> None:
        """Bring the desks to where the journal ends; nothing is published. Warns of what this version sees otherwise.

        A batch that is over stays in the journal until its unit is heard of again. Raises ConfigError or JournalError.
        """
        resumed = resume(self.journal, self.config, self.epoch)
        self.desks = {unit: desk for unit, desk in resumed.desks.items() if self.config.serves(unit)}
        self.resting = {unit: begun for unit, begun in resumed.resting.items() if self.config.serves(unit)}
        self._resumed_at = self.journal.head.n
        self._unsaid = tuple((unit, output) for unit, output in resumed.unsaid if unit in self.desks)
        for row in self.journal.rows():
            if row.kind in ("sent", "estimate") and is_ours(self.config, row.topic) and _retained(place(row.topic)[1]):
                self.posted[row.topic] = Posting(row.topic, row.payload, retain=True)
        self._warn(resumed.mismatches)

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
        facts = [(m, _understood(m)) for m in ours if not m.retained]
        self.journal.append_many([Entry(at, "received", m.topic, payload) for m, payload in facts])
        for m in group:
            acknowledge(m)
        touched: dict[str, None] = {}
        for m, payload in facts:
            unit, suffix = place(m.topic)
            desk, outputs = self._step(unit, suffix, payload, at)
            self._say(desk, outputs, at, m.correlation)
            if not suffix.startswith("query/") and all(o.kind != "rejected" for o in outputs):
                touched[unit] = None  # a question or a refusal changes no estimate
        for m in ours:
            if m.retained:
                self._refuse_retained(m, at)
        for unit in touched:
            self._estimate(unit)

    def watch(self) -> None:
        """From time to time: the alarms that silence raises, under the wall clock."""
        at = self.now()
        for desk in list(self.desks.values()):
            self._say(*watch(desk, at), at)

    def _step(self, unit: str, suffix: str, payload: bytes, at: datetime) -> Told:
        """One message of a unit, whether or not it has a desk already. A batch opens one, nothing else does."""
        if unit in self.desks:
            return step(self.desks[unit], suffix, payload, at)
        if unit in self.resting:
            return self._rouse(unit, suffix, payload, at)
        stray = self._stray(unit)
        desk, outputs = step(stray, suffix, payload, at)
        if desk.running is not None and self.config.units == "*" and len(self.units) >= self.config.units_max:
            full = f"{self.config.units_max} units have had batches here; raise units_max, or name the units to serve"
            return refuse(stray, f"{stray.root}/{suffix}", Rejected("too_many_units", full), at)
        return desk, outputs

    def _rouse(self, unit: str, suffix: str, payload: bytes, at: datetime) -> Told:
        """A message of a unit whose newest batch was over when this run began: the next batch, or a late word on that one."""
        begun = self.resting[unit]
        if suffix == "event/batch_start":
            told = step(self._successor(unit, begun), suffix, payload, at)
            if told[0].running is not None:
                del self.resting[unit]
                return told
        try:
            desk, mismatches = wake(self.journal, begun, self.config, self.epoch, self._resumed_at)
        except ConfigError as error:
            verdict = Rejected("internal", f"batch {begun.batch!r} cannot be opened again: {error}")
            stray = self._stray(unit)
            return refuse(stray, f"{stray.root}/{suffix}", verdict, at)
        del self.resting[unit]
        self._warn(mismatches)
        return step(desk, suffix, payload, at)

    def _stray(self, unit: str) -> Desk:
        """A desk to answer from, for a unit that has none."""
        return Desk(self.config.site, unit, settings_of(self.config), self.epoch, seq=self._strays)

    def _successor(self, unit: str, begun: Begun) -> Desk:
        """The desk as the next batch finds it: the one before is over, and of it only name and alarms matter."""
        prefix = f"{ROOT}/{self.config.site}/{unit}/"
        up = [p for t, p in self.posted.items() if t.startswith(f"{prefix}alarm/") and p.payload]
        found = [decode_as(Alarm, p.topic.removeprefix(prefix), p.payload) for p in up]
        return replace(
            self._stray(unit), finished=(*begun.finished, begun.batch), alarms={alarm.code: alarm for alarm in found}
        )

    def _warn(self, mismatches: Sequence[Mismatch]) -> None:
        for m in mismatches:
            self.warn(f"warning: this version would have said otherwise: journal row {m.row}: {m.kind} {m.detail}")

    def _estimate(self, unit: str) -> None:
        self._say(*estimate(self.desks[unit]), self.now())

    def _say(self, desk: Desk, outputs: Sequence[Output], at: datetime, correlation: bytes = b"") -> None:
        """Journal, then publish: in this order, always. `correlation`: of the question that this answers, if it is one."""
        rows = [Entry(at, o.kind, f"{desk.root}/{o.suffix}", o.payload) for o in outputs if o.kind is not None]
        self.journal.append_many(rows)
        self._keep(desk)
        for o in outputs:
            self.refused += o.kind == "rejected"
            self._post(desk, o, correlation if o.suffix.startswith("reply/") else b"")

    def _keep(self, desk: Desk) -> None:
        if desk.running is not None:
            self.desks[desk.unit] = desk
        else:
            self._strays = desk.seq

    def _post(self, desk: Desk, o: Output, correlation: bytes = b"") -> None:
        left = None
        if o.expires_at is not None:  # an override; what has expired, or is no longer ours to ask, is not sent
            left = (o.expires_at - self._clock(desk)).total_seconds()
            if left <= 0.0 or self.config.mode != "closed":
                return
        if o.publish:
            expiry = None if left is None else max(1, int(left))
            posting = Posting(f"{desk.root}/{o.suffix}", o.payload, o.retain, expiry, correlation)
            if o.retain:
                self.posted[posting.topic] = posting
            self.publish(posting)

    def _refuse_retained(self, m: Received, at: datetime) -> None:
        """A retained message may be of any age: it is no fact, and no input of the desk."""
        unit, _ = place(m.topic)
        verdict = Rejected(
            "retained", "what goes to the twin is never retained: publish it again without, and clear the topic"
        )
        desk, (said,) = refuse(self.desks.get(unit) or self._stray(unit), m.topic, verdict, at)
        self.journal.append(Entry(at, "dropped", m.topic, _bounded(m.payload)))
        self._keep(desk)
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


def _understood(m: Received) -> bytes:
    """The payload as it is journalled and read."""
    payload = _bounded(m.payload)
    asks = m.response_topic and place(m.topic)[1].startswith("query/")
    return addressed(payload, m.response_topic, m.correlation) if asks else payload


def _bounded(payload: bytes) -> bytes:
    """At most one byte more than is ever looked at: enough to be refused as too large, too little to fill a disk."""
    return payload[: MAX_BYTES + 1]
