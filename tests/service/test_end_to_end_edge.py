"""The edge's end of the wire against a real broker: what it takes from the twin, and what it does without one."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest

from service.broker import development_broker, find_mosquitto
from service.cli.edge_batch import Pace, recorded_facts, run_virtual, wire_id
from service.cli.edge_wire import Asked, Wire, open_wire
from service.messages import BatchStart, Estimate, Override, is_id
from service.mqtt import Link, Posting, Received, parse_address
from simulators.reactor import VirtualBioreactor
from twin.config import load_config, make_process
from twin.evidence import ControlApplied, Measurement
from twin.records import RecordedBatch

START = datetime(2026, 11, 1, tzinfo=UTC)
ROOT = "celltwin/v1/s/r"


@pytest.fixture(params=["mosquitto", "amqtt"])
def twin(request: pytest.FixtureRequest) -> Iterator[Link]:
    """A twin's hand on the wire: it hears the edge and says what the test makes it say."""
    if request.param == "mosquitto" and find_mosquitto() is None:
        pytest.skip("mosquitto is not installed")
    with development_broker(request.param) as url:
        link = Link(parse_address(url), "twin", (f"{ROOT}/#",))
        link.connect()
        yield link
        link.close()


@pytest.fixture
def wire(twin: Link) -> Iterator[Wire]:
    opened = open_wire(twin.address, "s", "r", "B1", START, lambda line: None)
    yield opened
    opened.link.close()


def override(**changes: Any) -> bytes:
    return json.dumps({**Override.example, "batch": "B1", **changes}).encode()


def estimate(day_hours: int, **changes: Any) -> Posting:
    content = {**Estimate.example, "batch": "B1", "at": f"2026-11-01T{day_hours:02d}:00:00Z", **changes}
    return Posting(f"{ROOT}/estimate", json.dumps(content).encode(), retain=True)


def listen(wire: Wire, n: int) -> list[Asked]:
    asked: list[Asked] = []
    deadline = time.monotonic() + 10
    while len(asked) < n and time.monotonic() < deadline:
        wire.listen(0.1, asked.append)
    return asked


def heard(twin: Link, family: str, n: int) -> list[Received]:
    got: list[Received] = []
    deadline = time.monotonic() + 10
    while len(got) < n and time.monotonic() < deadline:
        fresh = twin.drain(0.1)
        for m in fresh:
            twin.acknowledge(m)
        got += [m for m in fresh if m.topic.startswith(f"{ROOT}/{family}")]
    return got


def reading(k: int) -> Measurement:
    return Measurement(f"g{k}", "glucose", 20.0, k / 24, k / 24)


def test_overrides_are_handed_on_and_what_is_wrong_with_them_is_said(twin: Link, wire: Wire) -> None:
    topic = f"{ROOT}/override/perfusion"
    twin.publish(Posting(topic, override(cmd_id="good")))
    twin.publish(Posting(topic, override(cmd_id="nan").replace(b"0.62", b"NaN")))
    twin.publish(Posting(topic, override(cmd_id="unit", unit="kg")))
    twin.publish(Posting(topic, override(cmd_id="actuator", actuator="feed")))
    twin.publish(Posting(topic, b"[" * 100_000))
    asked = listen(wire, 5)
    assert [a.cmd_id for a in asked[:1]] == ["good"]
    assert asked[0].override is not None
    assert [a.override for a in asked[1:]] == [None] * 4
    assert [a.problem.split(":")[0] for a in asked[2:]] == ["bad_unit", "topic_mismatch", "too_large"]
    assert "not_finite" in asked[1].problem
    assert wire.overrides == 5


def test_a_retained_command_is_never_taken(twin: Link) -> None:
    twin.publish(Posting(f"{ROOT}/override/perfusion", override(), retain=True))
    assert twin.flush(5.0)
    late = open_wire(twin.address, "s", "r", "B1", START, lambda line: None)
    asked = listen(late, 1)
    late.link.close()
    assert asked
    assert all(a.override is None and a.problem.startswith("retained") for a in asked)


def test_the_edge_waits_for_the_estimate_of_its_newest_fact(twin: Link, wire: Wire) -> None:
    wire.tell(reading(3), 3 / 24)
    twin.publish(estimate(2))
    twin.publish(estimate(9, batch="another"))
    assert not wire.settle(0.6, lambda asked: None)
    assert wire.alone
    wire.tell(reading(4), 4 / 24)
    assert not wire.settle(1e9, lambda asked: None)  # nobody is waited for twice
    twin.publish(estimate(4))
    deadline = time.monotonic() + 10
    while wire.alone and time.monotonic() < deadline:
        wire.listen(0.1, lambda asked: None)
    assert wire.settle(5.0, lambda asked: None)
    assert not wire.alone


def test_a_wait_that_has_become_pointless_ends_at_once(twin: Link, wire: Wire) -> None:
    """GIVEN an edge that waits for a twin, WHEN the check that it makes meanwhile raises, THEN the wait is over."""
    looks: list[int] = []

    def check() -> None:
        looks.append(len(looks))
        if len(looks) > 2:
            raise ChildProcessError("the twin service stopped")

    wire.check = check
    wire.tell(reading(3), 3 / 24)
    with pytest.raises(ChildProcessError):
        wire.settle(1e9, lambda asked: None)


def test_what_is_not_answered_is_said_again(twin: Link, wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.cli.edge_wire.REPEAT", 0.2)
    wire.tell(reading(1), 1 / 24)
    wire.settle(1.0, lambda asked: None)
    payloads = [m.payload for m in heard(twin, "measurement", 3)]
    assert len(payloads) >= 3
    assert len(set(payloads)) == 1


def test_a_refused_newest_fact_does_not_stop_the_edge(twin: Link, wire: Wire) -> None:
    wire.tell(reading(5), 5 / 24)
    refusal = {
        "topic": f"{ROOT}/measurement/glucose",
        "reason": "out_of_range",
        "detail": "d",
        "at": "2026-11-01T00:00:00Z",
    }
    twin.publish(Posting(f"{ROOT}/rejected", json.dumps({**refusal, "seq": 1, "epoch": 1}).encode()))
    twin.publish(estimate(4))
    assert wire.settle(5.0, lambda asked: None)
    assert wire.rejections == ["measurement/glucose: out_of_range: d"]


def test_without_a_twin_the_edge_runs_its_recipe_to_harvest(twin: Link, wire: Wire) -> None:
    """The very batch that the rig runs by itself, and every fact of it on the wire, in order and once."""
    process = load_config("car_nk")
    short = process.recipe.__class__(
        **{f: getattr(process.recipe, f) for f in process.recipe.__slots__} | {"harvest_latest": 1.0}
    )
    process = make_process("car_nk").__class__(
        **{f: getattr(process, f) for f in process.__slots__ if f != "recipe"}, recipe=short
    )
    announce = BatchStart.model_validate({**BatchStart.example, "batch": "B1", "at": START})
    outcome = run_virtual(wire, VirtualBioreactor(process, seed=4), announce, Pace(0.0), 0.2)
    alone = VirtualBioreactor(process, seed=4)
    facts = alone.tick(until=2.0)
    assert outcome == alone.outcome()
    assert wire.link.flush(10.0)
    sent = heard(twin, "", len(facts))
    assert sent[0].topic == f"{ROOT}/event/batch_start"
    assert sent[-1].topic == f"{ROOT}/event/batch_end"
    measured = [f.id for f in facts if isinstance(f, Measurement)]
    assert [json.loads(m.payload)["id"] for m in sent if "/measurement/" in m.topic] == measured
    assert sum("/actuator/" in m.topic for m in sent) == sum(isinstance(f, ControlApplied) for f in facts)
    seq = [json.loads(m.payload)["seq"] for m in sent]
    assert seq == sorted(set(seq))


def test_a_record_is_played_in_the_order_in_which_it_became_known() -> None:
    late = Measurement("late@0.5", "glucose", 20.0, 0.5, 1.5)
    usual = Measurement("usual", "glucose", 19.0, 1.0, 1.0)
    early = Measurement("early", "glucose", 25.0, -0.1, 0.0)
    feed = ControlApplied("feed", 1.0, "feed", 0.02)
    record = RecordedBatch("b", "d", "g", None, None, (early, late, usual), (feed,))
    assert [f.id for f in recorded_facts(record)] == ["feed", "usual", wire_id("late@0.5")]


@pytest.mark.parametrize("text", ["diameter@0.0", "", "a/b", "x" * 200, "Ärzte 7", "ok-1"])
def test_ids_of_records_become_ids_of_the_wire(text: str) -> None:
    assert is_id(wire_id(text))
    assert (wire_id(text) == text) == is_id(text)


def test_different_ids_stay_different() -> None:
    assert len({wire_id(t) for t in ("a@1.0", "a@1_0", "a_1_0", "a 1 0")}) == 4
