"""A batch played to a desk and its journal without broker or clock: what the tests of desk and replay share."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np

from service.config import ServiceConfig
from service.desk import Desk, Output, estimate, step
from service.journal import Entry, Journal
from service.messages import BatchEnd, BatchStart, time_text
from service.replay import settings_of, started_entry
from twin.bioreactor import Control
from twin.config import load_config
from twin.integrate import advance

START = datetime(2026, 11, 1, tzinfo=UTC)
WALL = datetime(2026, 11, 21, 12, tzinfo=UTC)
Sent = tuple[str, dict[str, Any]]


def configuration(folder: Path, **changes: Any) -> ServiceConfig:
    usual = {
        "site": "s", "broker": {"url": "mqtt://127.0.0.1:1883"}, "development": True, "data": str(folder), "mode": "closed",
        "clock": "event", "policy": "cspr", "futures": 20,
    }  # fmt: skip
    return ServiceConfig.model_validate({**usual, **changes})


def batch_start(**changes: Any) -> Sent:
    return "event/batch_start", {**BatchStart.example, "at": time_text(START), **changes}


def batch_end(day: float, **changes: Any) -> Sent:
    at = time_text(START + timedelta(days=day))
    return "event/batch_end", {**BatchEnd.example, "at": at, **changes}


def reading(channel: str, value: float, unit: str, day: float, **changes: Any) -> Sent:
    at = time_text(START + timedelta(days=day))
    return f"measurement/{channel}", {
        "id": f"{channel}-{round(day * 86400)}", "batch": "B001", "channel": channel, "value": value, "unit": unit, "sampled_at": at,
        "seq": round(day * 86400), "epoch": 1, **changes,
    }  # fmt: skip


def read_back(actuator: str, rate: float, day: float, **changes: Any) -> Sent:
    unit = {"cytokine_dose": "IU/mL/d", "harvest": "dimensionless"}.get(actuator, "1/d")
    at = time_text(START + timedelta(days=day))
    return f"actuator/{actuator}", {
        "batch": "B001", "rate": rate, "unit": unit, "at": at, "cmd_id": None, "seq": round(day * 86400), "epoch": 1, **changes,
    }  # fmt: skip


def course(days: float, every: float = 1 / 12) -> Iterator[Sent]:
    """A batch as an edge would tell it: read-backs, probes every `every` days, laboratory values once a day."""
    process, rng = load_config("car_nk"), np.random.default_rng(5)
    x, u = process.initial, Control(0.5, 0.0, 0.0, 300.0)
    yield batch_start()
    for k in range(round(days / every) + 1):
        day = k * every

        def noisy(value: Any) -> float:
            return float(value) * (1.0 + 0.03 * float(rng.standard_normal()))

        for i, name in enumerate(u._fields if k % 3 == 0 else ()):
            yield read_back(name, getattr(u, name), day + i / 86400)
        for i, (channel, value, unit) in enumerate(
            [
                ("capacitance", 0.5 * x.viable, "pF/cm"),
                ("raman_glucose", x.glucose, "mM"),
                ("raman_lactate", x.lactate, "mM"),
            ]
        ):
            yield reading(channel, noisy(value), unit, day + (10 + i) / 86400)
        if k % round(1 / every) == 0:
            yield reading("viable_density", noisy(x.viable), "1e6 cells/mL", day + 20 / 86400)
            yield reading("viability", 100 * x.viability, "percent", day + 21 / 86400)
            yield reading("glucose", noisy(x.glucose) * 0.180156, "g/L", day + 22 / 86400)
        x = advance(x, u, process.theta, every)


@dataclass
class Driver:
    """Journals as the service does: input first, then what the desk said, then the estimate."""

    config: ServiceConfig
    journal: Journal
    desk: Desk = field(init=False)
    outputs: list[Output] = field(default_factory=list)
    ticks: int = 0

    def __post_init__(self) -> None:
        self.desk = Desk(self.config.site, "u", settings_of(self.config), 1)
        self.journal.append(started_entry(self.config, 1, "test", self.now()))

    def now(self) -> datetime:
        self.ticks += 1
        return WALL + timedelta(milliseconds=self.ticks)

    def send(self, sent: Sent, *, look: bool = True) -> tuple[Output, ...]:
        suffix, content = sent
        payload, at = json.dumps(content).encode(), self.now()
        self.journal.append(Entry(at, "received", f"{self.desk.root}/{suffix}", payload))
        self.desk, said = step(self.desk, suffix, payload, at)
        self.say(said)
        return (*said, *(self.look() if look else ()))

    def look(self) -> tuple[Output, ...]:
        self.desk, said = estimate(self.desk)
        self.say(said)
        return said

    def say(self, said: tuple[Output, ...]) -> None:
        self.outputs.extend(said)
        at = self.now()
        self.journal.append_many([Entry(at, o.kind, f"{self.desk.root}/{o.suffix}", o.payload) for o in said if o.kind])


def contents(outputs: tuple[Output, ...] | list[Output], suffix: str) -> list[dict[str, Any]]:
    """Payloads on topics that begin with `suffix`; an empty one (a cleared alarm) as {}."""
    return [json.loads(o.payload or b"{}") for o in outputs if o.publish and o.suffix.startswith(suffix)]


def fresh(folder: Path, **changes: Any) -> Desk:
    """The desk of unit `u`, without a batch."""
    return Desk("s", "u", settings_of(configuration(folder, **changes)), 1)


def tell(desk: Desk, *messages: Sent, at: datetime = WALL) -> tuple[Desk, list[Output]]:
    """The desk after some messages, and all that it said."""
    outputs: list[Output] = []
    for suffix, content in messages:
        desk, said = step(desk, suffix, json.dumps(content).encode(), at)
        outputs.extend(said)
    return desk, outputs


def reason(outputs: list[Output]) -> str:
    """Why a message was refused; nothing else was said."""
    assert [o.suffix for o in outputs] == ["rejected"]
    return str(json.loads(outputs[0].payload)["reason"])


def play(folder: Path, days: float = 0.8, **changes: Any) -> Driver:
    driver = Driver(configuration(folder, **changes), Journal.open(folder))
    for k, sent in enumerate(course(days)):
        driver.send(sent, look=k % 4 == 0)
        if k == 20:
            driver.send(("measurement/glucose", {"value": "much"}))
    return driver


def copied(driver: Driver, folder: Path, change: dict[int, bytes] | None = None, stop: int | None = None) -> Journal:
    """The journal again, with some payloads replaced and a chain that fits them: a forger who can hash."""
    journal = Journal.open(folder)
    rows = driver.journal.rows(stop=stop)
    journal.append_many([Entry(r.at, r.kind, r.topic, (change or {}).get(r.n, r.payload)) for r in rows])
    return journal


def same(a: Desk, b: Desk) -> bool:
    """The same knowledge: batch, clock, plan, alarms; epoch and count may differ."""
    assert a.running is not None
    assert b.running is not None
    x, y = a.running.session, b.running.session
    assert x.batch.belief == y.batch.belief
    assert (x.batch.evidence, x.batch.applied, x.batch.events) == (y.batch.evidence, y.batch.applied, y.batch.events)
    assert (x.clock, x.next_decision, x.plan, x.last, x.ended) == (y.clock, y.next_decision, y.plan, y.last, y.ended)
    assert a.running.start == b.running.start
    assert {c: m.since for c, m in a.alarms.items()} == {c: m.since for c, m in b.alarms.items()}
    return True
