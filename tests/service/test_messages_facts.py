"""Messages and facts: wire time and days, units, corrections."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.messages import (
    NO_LINKS,
    Calibration,
    EventMessage,
    MeasurementMessage,
    MediumChange,
    OperatorAction,
    ReadBack,
    Rejected,
    control_fact,
    control_message,
    days,
    decode,
    encode,
    event_fact,
    event_message,
    instant,
    linked,
    measurement_fact,
    measurement_message,
    parse_time,
    root_of,
    time_text,
)
from twin.evidence import ControlApplied, Measurement
from twin.sensors import CHANNELS

START = datetime(2026, 11, 1, 8, 30, tzinfo=UTC)


def reading(**changes: Any) -> dict[str, Any]:
    return {**MeasurementMessage.example, **changes}


instants = st.datetimes(datetime(2000, 1, 1), datetime(2100, 1, 1), timezones=st.just(UTC))


@given(instants, instants)
def test_wire_time_survives_days_exactly(start: datetime, at: datetime) -> None:
    assert instant(days(at, start), start) == at


@given(instants, st.floats(-40_000, 40_000))
def test_days_are_stable_after_one_passage(start: datetime, day: float) -> None:
    once = days(instant(day, start), start)
    assert abs(once - day) < 6e-12 + 1e-15 * abs(day)
    assert days(instant(once, start), start) == once


@given(instants)
def test_time_text_round_trip(at: datetime) -> None:
    assert parse_time(time_text(at)) == at


def test_other_zones_mean_the_same_instant() -> None:
    at = parse_time("2026-11-21T08:00:00.5+02:00")
    assert at == datetime(2026, 11, 21, 6, 0, 0, 500_000, tzinfo=UTC)
    assert at.tzinfo is UTC
    assert time_text(datetime(2026, 11, 21, 8, tzinfo=timezone(timedelta(hours=2)))) == "2026-11-21T06:00:00Z"


def test_quarter_days_are_exact() -> None:
    assert [days(START + timedelta(hours=6 * k), START) for k in range(60)] == [k / 4 for k in range(60)]


@pytest.mark.parametrize("day", [float("nan"), float("inf"), -float("inf"), 1e9])
def test_no_wire_time_for_an_absurd_day(day: float) -> None:
    with pytest.raises(ValueError, match="no day of a batch"):
        instant(day, START)


@given(st.sampled_from(sorted(CHANNELS)), st.floats(0, 1), st.integers(0, 2_400_000), st.floats(1e-3, 1.0))
def test_a_reading_survives_the_wire_as_the_same_fact(channel: str, where: float, seconds: int, sd: float) -> None:
    low, high = CHANNELS[channel].low, CHANNELS[channel].high
    fact = Measurement("id-1", channel, low + where * (high - low), seconds / 86400, 40.0, sd, 3)
    sent = decode(f"measurement/{channel}", encode(measurement_message(fact, batch="B", start=START, seq=1, epoch=1)))
    assert isinstance(sent, MeasurementMessage)
    again = measurement_fact(sent, START, 40.0)
    assert again == fact


def test_units_are_converted_once_with_their_spread() -> None:
    message = decode("measurement/glucose", json.dumps(reading(value=1.80156, unit="g/L", sd=0.180156)).encode())
    assert isinstance(message, MeasurementMessage)
    fact = measurement_fact(message, START, 21.0)
    assert (fact.value, fact.sd) == (pytest.approx(10.0), pytest.approx(1.0))


def test_a_correction_takes_the_name_of_what_it_corrects() -> None:
    message = decode(
        "measurement/glucose", json.dumps(reading(id="fix-1", supersedes="analyser-0041", version=2)).encode()
    )
    assert isinstance(message, MeasurementMessage)
    fact = measurement_fact(message, START, 21.0)
    assert (fact.id, fact.version) == ("analyser-0041", 2)


@pytest.mark.parametrize(("quality", "retracted"), [("good", False), ("uncertain", False), ("bad", True)])
def test_a_value_that_its_sender_calls_bad_is_a_retraction(quality: str, retracted: bool) -> None:
    message = decode("measurement/glucose", json.dumps(reading(quality=quality, version=2)).encode())
    assert isinstance(message, MeasurementMessage)
    fact = measurement_fact(message, START, 21.0)
    assert fact.retracted is retracted
    again = measurement_message(fact, batch="B", start=START, seq=9, epoch=2)
    assert measurement_fact(again, START, 21.0) == fact


def test_a_chain_of_corrections_leads_to_the_first() -> None:
    def correction(name: str, of: str | None) -> MeasurementMessage:
        content = reading(id=name, supersedes=of, version=1 if of is None else 2)
        return MeasurementMessage.model_validate_json(json.dumps(content))

    links = NO_LINKS
    for name, of in (("D", "C"), ("B", "A"), ("C", "B"), ("C", "B"), ("A", None), ("C", None), ("A", "A")):
        links = linked(links, correction(name, of))
    assert {name: root_of(links, name) for name in "ABCDE"} == {"A": "A", "B": "A", "C": "A", "D": "A", "E": "E"}
    for name, of in (("D", "B"), ("A", "D")):  # said otherwise before; in a circle
        with pytest.raises(Rejected) as refused:
            linked(links, correction(name, of))
        assert refused.value.reason == "conflict"


def test_a_read_back_survives_the_wire_as_the_same_fact() -> None:
    fact = ControlApplied("perfusion-2-9", 3.25, "perfusion", 0.75, "c1")
    sent = decode("actuator/perfusion", encode(control_message(fact, batch="B", start=START, seq=9, epoch=2)))
    assert isinstance(sent, ReadBack)
    assert control_fact(sent, START, 1.0) == fact


def test_pump_rates_in_volume_per_time_use_the_volume() -> None:
    sent = decode("actuator/perfusion", json.dumps({**ReadBack.example, "rate": 41.6667, "unit": "mL/h"}).encode())
    assert isinstance(sent, ReadBack)
    assert control_fact(sent, START, 2.0).rate == pytest.approx(0.5, rel=1e-5)


@pytest.mark.parametrize("cls", [Calibration, MediumChange, OperatorAction], ids=lambda c: c.__name__)
def test_an_event_survives_the_wire(cls: type[EventMessage]) -> None:
    message = decode(cls.example_topic, json.dumps(cls.example).encode())
    assert isinstance(message, cls)
    fact = event_fact(message, START)
    assert fact.kind == cls.kind
    assert event_message(fact, batch=message.batch, start=START, seq=message.seq, epoch=message.epoch) == message


@pytest.mark.parametrize(
    ("quality", "retracted", "confirmed"),
    [("good", False, False), ("uncertain", False, False), ("bad", True, False), ("confirmed", False, True)],
)
def test_what_a_sender_thinks_of_a_value_reaches_the_fact_and_comes_back(
    quality: str, retracted: bool, confirmed: bool
) -> None:
    message = MeasurementMessage.model_validate({**MeasurementMessage.example, "quality": quality})
    fact = measurement_fact(message, message.sampled_at, 0.0)
    assert (fact.retracted, fact.confirmed) == (retracted, confirmed)
    again = measurement_message(fact, batch="B001", start=message.sampled_at, seq=1, epoch=1)
    assert again.quality == ("good" if quality == "uncertain" else quality)
