"""Connections of further units, and lines that do not drown the others: no broker, an explicit clock."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise

import pytest

from service.mqtt import BrokerError, Posting
from service.notes import Sparing
from service.presence import Beacons


@dataclass
class Broker:
    """Accepts connections of some units, now."""

    accepts: set[str] = field(default_factory=set)
    tried: list[tuple[float, str]] = field(default_factory=list)
    said: list[str] = field(default_factory=list)
    closed: list[str] = field(default_factory=list)
    now: float = 0.0

    def beacons(self) -> Beacons:
        return Beacons(lambda unit: Connection(self, unit), self.said.append, lambda: self.now)  # type: ignore[arg-type,return-value]


@dataclass
class Connection:
    broker: Broker
    unit: str

    def connect(self) -> None:
        self.broker.tried.append((self.broker.now, self.unit))
        if self.unit not in self.broker.accepts:
            raise BrokerError("broker mqtt://b: refused: Server busy")

    def close(self, farewell: list[Posting]) -> None:
        self.broker.closed += [p.topic for p in farewell]


def test_a_broker_that_is_away_is_asked_less_and_less_often_and_named_once_a_minute() -> None:
    broker = Broker()
    beacons = broker.beacons()
    for second in range(600):
        broker.now = float(second)
        beacons.look(["a", "b"])
    attempts = [at for at, unit in broker.tried if unit == "a"]
    assert attempts == [at for at, unit in broker.tried if unit == "b"]
    assert attempts[:7] == [0, 1, 3, 7, 15, 31, 63]
    assert {late - early for early, late in pairwise(attempts[7:])} == {60}
    assert len(broker.said) <= 10
    assert "no last will yet for a, b: broker mqtt://b: refused" in broker.said[0]


def test_a_new_unit_does_not_wait_for_the_failed_ones() -> None:
    broker = Broker(accepts={"a", "new"})
    beacons = broker.beacons()
    for second, units in enumerate((["a", "b"], ["a", "b"], ["a", "b"], ["a", "b", "new"])):
        broker.now = second / 10
        beacons.look(units)
    assert broker.tried == [(0.0, "a"), (0.0, "b"), (0.3, "new")]
    broker.accepts.add("b")
    broker.now = 2.0
    beacons.look(["a", "b", "new"])
    beacons.look(["a", "b", "new"])
    assert broker.tried[3:] == [(2.0, "b")]
    beacons.close(lambda unit: Posting(unit, b""))
    assert sorted(broker.closed) == ["a", "b", "new"]


@pytest.mark.parametrize("step", [1.0, 10.0, 59.0])
def test_one_kind_of_line_is_said_once_a_minute_with_the_count_of_the_rest(step: float) -> None:
    said: list[str] = []
    clock = {"now": 0.0}
    spare = Sparing(said.append, every=60.0, clock=lambda: clock["now"])
    while clock["now"] < 60.0:
        spare("denied", "no")
        clock["now"] += step
    spare("denied", "no")
    spare("other", "yes")
    kept = len([k for k in range(1, 60) if k * step < 60.0])
    assert said == ["no", f"no (and {kept} more like it)", "yes"]
