"""What an edge plays over the wire: a virtual bioreactor that listens, or a recorded batch that does not."""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import groupby

from service.cli.edge_wire import Answer, Asked, Wire
from service.messages import BatchStart, days, is_id
from service.messages import Override as WireOverride
from simulators.edge import Override
from simulators.reactor import Outcome, VirtualBioreactor
from twin.evidence import ControlApplied, Event, Fact, Measurement
from twin.records import RecordedBatch
from twin.units import CANONICAL, to_canonical

SAME = 1e-4
"""Facts told within so many days of each other (9 s) go out as one group."""


class Pace:
    """Batch time against the wall clock."""

    def __init__(self, hours_per_second: float) -> None:
        """0: as fast as the twin answers."""
        self._speed, self._begun = hours_per_second, time.monotonic()

    def left(self, day: float) -> float:
        """Seconds until the wall clock reaches batch time `day`."""
        return self._begun + 24.0 * day / self._speed - time.monotonic() if self._speed > 0.0 else 0.0


def run_virtual(
    wire: Wire, rig: VirtualBioreactor, announce: BatchStart, pace: Pace, patience: float,
    progress: Callable[[float], None] = lambda day: None,
) -> Outcome:  # fmt: skip
    """Tick by tick to harvest: tell, wait for the twin's estimate, take its overrides, step. Answers the outcome."""

    def decide(asked: Asked) -> None:
        if asked.override is None or asked.override.batch != wire.batch:
            problem = asked.problem or f"unknown_batch: {wire.batch} is running"
            if asked.cmd_id:
                wire.answer(asked.cmd_id, (False, None, problem), rig.clock)
            return
        ack = rig.command(_override(asked.override, wire, float(rig.process.initial.volume)))
        wire.answer(ack.cmd_id, (ack.accepted, ack.applied_rate, ack.reason), ack.at)

    wire.begin(announce)
    while not rig.finished:
        facts = rig.tick()
        for fact in facts:
            if not (isinstance(fact, Event) and fact.kind == "batch_start"):
                wire.tell(fact, _told(fact))
        wire.settle(patience, decide)
        progress(rig.clock)
        while not rig.finished and (left := pace.left(rig.next_tick)) > 0.0:
            wire.listen(min(left, 1.0), decide)
    return rig.outcome()


def run_recorded(
    wire: Wire, record: RecordedBatch, announce: BatchStart, pace: Pace, patience: float,
    progress: Callable[[float], None] = lambda day: None,
) -> float:  # fmt: skip
    """The samples and actions of a record in event time, through the same topics. Answers its last day.

    Overrides are answered and never taken: what is recorded cannot be changed.
    """
    now = 0.0

    def decide(asked: Asked) -> None:
        if asked.cmd_id:
            answer: Answer = (False, None, asked.problem or "recorded: this batch is a record and cannot be changed")
            wire.answer(asked.cmd_id, answer, now)

    wire.begin(announce)
    for _, group in groupby(recorded_facts(record), key=lambda f: round(_told(f) / SAME)):
        facts = list(group)
        while (left := pace.left(_told(facts[0]))) > 0.0:
            wire.listen(min(left, 1.0), decide)
        for fact in facts:
            now = max(now, _told(fact))
            wire.tell(fact, _told(fact))
        wire.settle(patience, decide)
        progress(now)
    wire.tell(Event("batch-end", "batch_end", now, {"outcome": "completed", "detail": "end of the record"}), now)
    wire.settle(patience, decide)
    return now


def recorded_facts(record: RecordedBatch) -> Iterator[Fact]:
    """What a record holds, in the order in which it became known; ids fit for the wire. Samples before day 0 are left out."""
    facts: list[Fact] = [replace(m, id=wire_id(m.id)) for m in record.measurements if m.sampled_at >= 0.0]
    facts += [replace(a, id=wire_id(a.id), cmd_id=None) for a in record.actions if a.at >= 0.0]
    yield from sorted(facts, key=lambda f: (_told(f), isinstance(f, Measurement), f.id))


def wire_id(text: str) -> str:
    """`text` where it is an identifier of the interface, else a readable one that differs for different texts."""
    if is_id(text):
        return text
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    return f"{re.sub(r'[^A-Za-z0-9_-]', '_', text)[:50]}-{digest}"


def _told(fact: Fact) -> float:
    return fact.received_at if isinstance(fact, Measurement) else fact.at


def _override(o: WireOverride, wire: Wire, volume: float) -> Override:
    rate = o.rate if o.actuator == "harvest" else to_canonical(o.actuator, o.rate, o.unit, volume_l=volume)
    return Override(
        o.cmd_id, o.epoch, o.seq, o.actuator, float(rate), days(o.valid_from, wire.start), days(o.valid_until, wire.start),
        o.recipe_version, o.basis_hash,
    )  # fmt: skip


__all__ = ["CANONICAL", "ControlApplied", "Pace", "recorded_facts", "run_recorded", "run_virtual", "wire_id"]
