"""The edge's end of the wire: facts out as messages, overrides in, and the wait for the twin. No process knowledge here.

Rule 1. Whatever the twin does, the edge goes on: an answer is waited for, but never for ever.
Rule 2. What is not answered is said again; the twin takes a fact once.
Rule 3. An override is only handed on: whether it acts is the edge's own decision, and every one is answered.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime

from service.messages import (
    ROOT,
    Ack,
    BatchStart,
    Message,
    Override,
    Rejected,
    control_message,
    decode_as,
    encode,
    event_message,
    instant,
    measurement_message,
    parse_time,
)
from service.mqtt import Address, Link, Posting, Received
from twin.evidence import ControlApplied, Event, Fact, Measurement

REPEAT = 10.0
"""After so many seconds without an estimate the last messages are said again."""


REMEMBERED = 500
"""So many of the messages that wait for an estimate are kept for that."""


@dataclass(frozen=True, slots=True)
class Asked:
    """An override as it came in; None: it could not be read, and why."""

    override: Override | None
    cmd_id: str
    problem: str


Answer = tuple[bool, float | None, str]
"""Accepted, applied rate in the canonical unit, reason."""


@dataclass(slots=True)
class Wire:
    """One batch of one unit, seen from the edge."""

    site: str
    unit: str
    batch: str
    start: datetime  # inoculation
    epoch: int  # of this run of the edge
    link: Link
    seq: int = 0
    newest: datetime | None = None  # time stamp of the newest fact sent
    estimated: datetime | None = None  # `at` of the newest estimate of this batch
    rejections: list[str] = field(default_factory=list)
    forecasts: list[bytes] = field(default_factory=list)
    plans: list[bytes] = field(default_factory=list)
    overrides: int = 0
    accepted: int = 0
    alone: bool = False  # the twin did not answer in time: nobody is waited for until it speaks again
    check: Callable[[], None] = lambda: None  # called while waiting; raises when there is nothing to wait for
    _open: list[tuple[Posting, datetime]] = field(default_factory=list)  # said, not yet answered

    @property
    def root(self) -> str:
        """Topic root of the unit."""
        return f"{ROOT}/{self.site}/{self.unit}"

    def begin(self, message: BatchStart) -> None:
        """Announce the batch; `seq` and `epoch` are set here."""
        self._send(message.model_copy(update={"seq": self._count(), "epoch": self.epoch}), self.start)

    def tell(self, fact: Fact, day: float) -> None:
        """Send a fact; `day` is when it is told [d since inoculation]."""
        stamp = {"batch": self.batch, "start": self.start, "seq": self._count(), "epoch": self.epoch}
        match fact:
            case Measurement():
                self._send(measurement_message(fact, **stamp), instant(fact.sampled_at, self.start))  # type: ignore[arg-type]
            case ControlApplied():
                self._send(control_message(fact, **stamp), instant(day, self.start))  # type: ignore[arg-type]
            case Event():
                self._send(event_message(fact, **stamp), instant(day, self.start))  # type: ignore[arg-type]

    def answer(self, cmd_id: str, answer: Answer, day: float) -> None:
        """Acknowledge an override with what is applied."""
        accepted, rate, reason = answer
        said = Ack(
            cmd_id=cmd_id, accepted=accepted, applied_rate=rate, reason=reason, at=instant(day, self.start),
            seq=self._count(), epoch=self.epoch,
        )  # fmt: skip
        self.accepted += accepted
        self.link.publish(Posting(f"{self.root}/{said.suffix}", encode(said)))

    def settle(self, patience: float, decide: Callable[[Asked], None]) -> bool:
        """Hand over overrides until an estimate rests on the newest fact; False when `patience` seconds have passed."""
        begun = said = time.monotonic()
        while not self._answered():
            if self.alone:
                self.listen(0.0, decide)
                if self.alone:
                    return False
            self.listen(0.25, decide)
            now = time.monotonic()
            if now - begun > patience:
                self.alone = True
            elif now - said > REPEAT:
                said = now
                for posting, _ in self._open:
                    self.link.publish(posting)
        self.alone = False
        self._open.clear()
        return True

    def listen(self, timeout: float, decide: Callable[[Asked], None]) -> None:
        """Take what the twin said meanwhile; wait up to `timeout` seconds for a first message."""
        self.check()
        for m in self.link.drain(timeout):
            suffix = m.topic.removeprefix(f"{self.root}/")
            if suffix.startswith("override/"):
                self.overrides += 1
                decide(_asked(m, suffix))
            elif suffix == "estimate":
                self._estimate(m.payload)
            elif suffix == "forecast":
                self.forecasts.append(m.payload)
            elif suffix == "plan":
                self.plans.append(m.payload)
            elif suffix == "rejected" and not m.retained:
                self._rejected(m.payload)
            self.link.acknowledge(m)

    def _answered(self) -> bool:
        reached = self.estimated is not None and self.newest is not None and self.estimated >= self.newest
        return self.newest is None or reached

    def _estimate(self, payload: bytes) -> None:
        try:
            said = json.loads(payload)
            at = parse_time(said["at"]) if said["batch"] == self.batch else None
        except (ValueError, KeyError, TypeError):
            return
        if at is None:
            return
        self.estimated = at if self.estimated is None else max(at, self.estimated)
        self.alone = False

    def _rejected(self, payload: bytes) -> None:
        """A refusal of what is still open here: an answer too. Of another sender on the unit, or said before: not ours."""
        try:
            said = json.loads(payload)
            topic, text = str(said["topic"]), f"{said['reason']}: {said['detail']}"
        except (ValueError, KeyError, TypeError):
            return
        own = next((k for k, (posting, _) in enumerate(self._open) if posting.topic == topic), None)
        begun = all(posting.topic != f"{self.root}/event/batch_start" for posting, _ in self._open)
        if own is None or (said["reason"] == "unknown_batch" and not begun):
            return  # in the second case the twin came up amid our first words: all of them are said again
        del self._open[own]
        self.newest = max((at for _, at in self._open), default=None)
        self.rejections.append(f"{topic.removeprefix(self.root + '/')}: {text}")
        self.alone = False

    def _send(self, message: Message, at: datetime) -> None:
        self.newest = at if self.newest is None else max(at, self.newest)
        posting = Posting(f"{self.root}/{message.suffix}", encode(message))
        self._open.append((posting, at))
        del self._open[:-REMEMBERED]
        self.link.publish(posting)

    def _count(self) -> int:
        self.seq += 1
        return self.seq


def _asked(m: Received, suffix: str) -> Asked:
    cmd_id = ""
    try:
        override = decode_as(Override, suffix, m.payload)
        cmd_id = override.cmd_id
    except Rejected as error:
        return Asked(None, _cmd_id(m.payload), f"{error.reason}: {error.detail}")
    if m.retained:
        return Asked(None, cmd_id, "retained: a command that may be of any age is not taken")
    return Asked(override, cmd_id, "")


def _cmd_id(payload: bytes) -> str:
    """Id of a command that could not be read otherwise, for its answer; empty when there is none to answer to."""
    from service.messages import is_id

    try:
        cmd_id = json.loads(payload)["cmd_id"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return ""
    return cmd_id if isinstance(cmd_id, str) and is_id(cmd_id) else ""


def open_wire(address: Address, site: str, unit: str, batch: str, start: datetime, say: Callable[[str], None]) -> Wire:
    """Connect and listen. Raises BrokerError."""
    root = f"{ROOT}/{site}/{unit}"
    topics = [f"{root}/{t}" for t in ("override/+", "estimate", "forecast", "plan", "rejected", "status")]
    link = Link(address, f"celltwin-edge-{site}-{unit}", topics, note=say, own_retained=True)
    wire = Wire(site, unit, batch, start, int(time.time()), link)
    link.connect()
    return wire
