"""The wire: what is taken, what is refused and why, and that nothing is lost between bytes and facts."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime
from typing import Any

import pytest

from service.messages import (
    CLASSES,
    REASONS,
    Alarm,
    BatchStart,
    Calibration,
    MeasurementMessage,
    Message,
    OperatorAction,
    Override,
    ReadBack,
    Rejected,
    StateQuery,
    WhatIfQuery,
    addressed,
    codec,
    decode,
    decode_as,
    encode,
    is_id,
    measurement_fact,
    measurement_message,
)
from twin.evidence import Measurement
from twin.sensors import CHANNELS, MONITORED

START = datetime(2026, 11, 1, 8, 30, tzinfo=UTC)


def refusal(suffix: str, payload: bytes | dict[str, Any]) -> str:
    raw = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
    with pytest.raises(Rejected) as refused:
        decode(suffix, raw)
    assert refused.value.reason in REASONS
    assert refused.value.detail
    assert "\n" not in refused.value.detail
    return refused.value.reason


def reading(**changes: Any) -> dict[str, Any]:
    return {**MeasurementMessage.example, **changes}


@pytest.mark.parametrize("cls", CLASSES, ids=lambda c: c.__name__)
def test_every_message_survives_the_wire(cls: type[Message]) -> None:
    message = decode(cls.example_topic, json.dumps(cls.example).encode())
    again = decode(cls.example_topic, encode(message))
    assert type(message) is cls
    assert again == message
    assert again.suffix == cls.example_topic
    assert encode(again) == encode(message)


@pytest.mark.parametrize("cls", CLASSES, ids=lambda c: c.__name__)
def test_canonical_json_has_sorted_keys_and_no_spaces(cls: type[Message]) -> None:
    payload = encode(decode(cls.example_topic, json.dumps(cls.example).encode()))
    content = json.loads(payload)
    assert list(content) == sorted(content)
    assert payload == json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


@pytest.mark.parametrize("cls", CLASSES, ids=lambda c: c.__name__)
def test_every_field_is_typed_strictly(cls: type[Message]) -> None:
    """No field takes an object of a foreign kind, and none that has no default may be absent."""
    for key in cls.example:
        assert refusal(cls.example_topic, {**cls.example, key: {"no": ["field", "is", {"like": "this"}]}}) in {
            "bad_type", "bad_value", "bad_time", "bad_unit", "unknown_actuator", "topic_mismatch", "unknown_field",
        }  # fmt: skip
        rest = {k: v for k, v in cls.example.items() if k != key}
        field = next(f for name, f in cls.model_fields.items() if key in (name, f.alias))
        if field.is_required():
            assert refusal(cls.example_topic, rest) in {"missing_field", "bad_unit"}
        elif cls is WhatIfQuery and key == "edits":  # one of three ways to ask, and none is left
            assert refusal(cls.example_topic, rest) == "bad_value"
        else:
            decode(cls.example_topic, json.dumps(rest).encode())


@pytest.mark.parametrize("cls", CLASSES, ids=lambda c: c.__name__)
def test_an_unknown_key_is_refused(cls: type[Message]) -> None:
    assert refusal(cls.example_topic, {**cls.example, "extra": 1}) == "unknown_field"


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (b"", "not_json"),
        (b"{", "not_json"),
        (b"\xff\xfe", "not_utf8"),
        (b"[]", "not_object"),
        (b"3", "not_object"),
        (b'{"value": NaN}', "not_finite"),
        (b'{"value": Infinity}', "not_finite"),
        (b'{"value": -Infinity}', "not_finite"),
        (b'{"value": 1e999}', "not_finite"),
        (b'{"value": ' + b"9" * 5000 + b"}", "not_finite"),
        (b'{"value": 1, "value": 2}', "duplicate_key"),
        (b'{"a": {"b": 1, "b": 2}}', "duplicate_key"),
        (b"[" * 60_000, "nested_too_deep"),
        (b'{"a":' * 9 + b"1" + b"}" * 9, "nested_too_deep"),
        (b" " * (64 * 1024 + 1), "too_large"),
    ],
)
def test_json_is_read_strictly(payload: bytes, reason: str) -> None:
    assert refusal("measurement/glucose", payload) == reason


def test_brackets_inside_text_are_not_nesting() -> None:
    action = {**OperatorAction.example, "detail": "[" * 100 + '\\"{' * 20}
    assert decode("event/operator_action", json.dumps(action).encode()) is not None


def test_size_is_looked_at_before_anything_else() -> None:
    assert refusal("measurement/glucose", b"\xff" * 70_000) == "too_large"


@pytest.mark.parametrize(
    ("suffix", "reason"),
    [
        ("", "unknown_topic"),
        ("measurement", "unknown_topic"),
        ("measurement/", "unknown_topic"),
        ("nonsense/x", "unknown_topic"),
        ("estimate/x", "unknown_topic"),
        ("measurement/glucose/extra", "bad_id"),
        ("measurement/../x", "bad_id"),
        ("measurement/+", "bad_id"),
        ("actuator/valve", "unknown_actuator"),
        ("override/valve", "unknown_actuator"),
        ("event/party", "unknown_kind"),
        ("query/everything", "unknown_verb"),
        ("ack/a b", "bad_id"),
    ],
)
def test_topics_are_read_strictly(suffix: str, reason: str) -> None:
    assert refusal(suffix, b"{}") == reason


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"unit": "mg"}, "bad_unit"),
        ({"unit": "mL/h"}, "bad_unit"),
        ({"unit": ""}, "bad_unit"),
        ({"unit": None}, "bad_unit"),
        ({"unit": 5}, "bad_unit"),
        ({"value": "3.2"}, "bad_type"),
        ({"value": True}, "bad_type"),
        ({"value": None}, "bad_type"),
        ({"value": -1.0}, "out_of_range"),
        ({"value": 1e6}, "out_of_range"),
        ({"id": "a b"}, "bad_id"),
        ({"id": ""}, "bad_id"),
        ({"id": "x" * 65}, "bad_id"),
        ({"id": "x\n"}, "bad_id"),
        ({"batch": "../B"}, "bad_id"),
        ({"channel": "lactate"}, "topic_mismatch"),
        ({"sampled_at": "2026-11-21T06:00:00"}, "bad_time"),
        ({"sampled_at": "2026-11-21"}, "bad_time"),
        ({"sampled_at": "2026-02-30T06:00:00Z"}, "bad_time"),
        ({"sampled_at": "0001-01-01T00:00:00+14:00"}, "bad_time"),
        ({"sampled_at": "2500-01-01T00:00:00Z"}, "bad_time"),
        ({"sampled_at": 1_700_000_000}, "bad_time"),
        ({"sd": 0.0}, "bad_value"),
        ({"sd": -1}, "bad_value"),
        ({"version": 0}, "bad_value"),
        ({"version": 1.5}, "bad_type"),
        ({"supersedes": "analyser-0040"}, "bad_value"),
        ({"quality": "fine"}, "bad_value"),
        ({"seq": -1}, "bad_value"),
        ({"seq": 2**53}, "bad_value"),
        ({"epoch": 1.0}, "bad_type"),
    ],
)
def test_a_reading_is_refused_for_what_is_wrong_with_it(changes: dict[str, Any], reason: str) -> None:
    assert refusal("measurement/glucose", reading(**changes)) == reason


def test_an_absent_unit_is_a_unit_error() -> None:
    rest = {k: v for k, v in MeasurementMessage.example.items() if k != "unit"}
    assert refusal("measurement/glucose", rest) == "bad_unit"


def test_unknown_channels_are_refused_and_all_known_ones_taken() -> None:
    assert refusal("measurement/mood", reading(channel="mood")) == "unknown_channel"
    assert refusal("measurement/perfusion", reading(channel="perfusion")) == "unknown_channel"
    assert refusal("event/calibration", {**Calibration.example, "channel": "mood"}) == "unknown_channel"
    for name in (*CHANNELS, *MONITORED):
        low, high = MONITORED.get(name) or (CHANNELS[name].low, CHANNELS[name].high)
        fact = Measurement("m", name, (low + high) / 2, 1.0, 1.0)
        sent = measurement_message(fact, batch="B", start=START, seq=0, epoch=0)
        assert decode(f"measurement/{name}", encode(sent)) == sent


def test_a_percentage_beyond_hundred_is_refused() -> None:
    assert refusal("measurement/viability", reading(channel="viability", value=101, unit="percent")) == "out_of_range"
    message = decode(
        "measurement/viability", json.dumps(reading(channel="viability", value=93, unit="percent")).encode()
    )
    assert isinstance(message, MeasurementMessage)
    assert measurement_fact(message, START, 0.0).value == pytest.approx(0.93)


def test_a_refusal_names_the_field() -> None:
    with pytest.raises(Rejected, match="sampled_at"):
        decode("measurement/glucose", json.dumps(reading(sampled_at="noon")).encode())


def test_text_is_one_printable_line() -> None:
    for text in ("two\nlines", "bell\a", "\ud800", "x" * 501):
        assert refusal("event/operator_action", {**OperatorAction.example, "detail": text}) == "bad_value"


@pytest.mark.parametrize(
    "target",
    ["celltwin/v1/a/b/override/perfusion", "celltwin/v1/a/b/reply/#", "reply/x", "celltwin/v1/a/b/reply/x/y", "$SYS/x"],
)
def test_answers_go_nowhere_but_to_a_reply_topic(target: str) -> None:
    assert refusal("query/state", {**StateQuery.example, "reply_to": target}) == "bad_value"


def test_a_pump_rate_is_a_rate_and_not_negative() -> None:
    assert refusal("actuator/perfusion", {**ReadBack.example, "unit": "mL"}) == "bad_unit"
    assert refusal("actuator/perfusion", {**ReadBack.example, "rate": -0.1}) == "bad_value"


def test_an_override_must_end_after_it_begins() -> None:
    assert (
        refusal("override/perfusion", {**Override.example, "valid_until": Override.example["valid_from"]})
        == "bad_value"
    )


def test_topic_and_payload_must_agree() -> None:
    assert refusal("ack/other", {"cmd_id": "c1", "accepted": True}) == "topic_mismatch"
    assert refusal("alarm/other", dict(Alarm.example)) == "topic_mismatch"
    assert refusal("actuator/feed", {**ReadBack.example, "actuator": "feed"}) == "unknown_field"


def test_decode_as_wants_its_kind() -> None:
    payload = json.dumps(BatchStart.example).encode()
    assert decode_as(BatchStart, "event/batch_start", payload).preset == "car_nk"
    with pytest.raises(Rejected):
        decode_as(Override, "event/batch_start", payload)


def test_messages_are_frozen() -> None:
    message = decode("event/batch_start", json.dumps(BatchStart.example).encode())
    with pytest.raises(ValueError, match="frozen"):
        message.seq = 5


def test_encode_refuses_what_nobody_would_take() -> None:
    long = decode("alarm/x", json.dumps({**Alarm.example, "code": "x"}).encode()).model_copy(
        update={"message": "y" * 70_000}
    )
    with pytest.raises(ValueError, match="exceeds"):
        encode(long)


def test_a_question_asked_the_v5_way_names_its_way_back_in_the_payload() -> None:
    topic = "celltwin/v1/siteA/unit1/reply/panel"
    said = json.loads(addressed(b"{}", topic, b"q-7"))
    assert said == {"reply_to": topic, "correlation": "q-7"}
    own = {"reply_to": "celltwin/v1/siteA/unit1/reply/other", "correlation": "mine", "hours": 6}
    assert json.loads(addressed(json.dumps(own).encode(), topic, b"q-7")) == own
    for raw in (b"", b"\x00\xff", b"x" * 100):  # no identifier: a stable one is made of it
        named = json.loads(addressed(b"{}", topic, raw))["correlation"]
        assert is_id(named)
        assert json.loads(addressed(b"{}", topic, raw))["correlation"] == named
    assert len({addressed(b"{}", topic, raw) for raw in (b"", b"\x00", b"a b")}) == 3
    for broken in (b"{", b"[]", b"\xff", b'{"a": NaN}', b'{"a": "\\ud800"}'):
        assert addressed(broken, topic, b"q") == broken


def test_many_keys_are_looked_through_once() -> None:
    """Sixty thousand names and one of them twice, at the end: refused in well under a second."""
    began = time.perf_counter()
    with pytest.raises(Rejected) as error:
        codec._unique([(f"k{k}", 0) for k in range(60_000)] + [("k59999", 1)])  # pyright: ignore[reportPrivateUsage]
    assert time.perf_counter() - began < 1.0
    assert error.value.reason == "duplicate_key"
    assert "k59999" in error.value.detail
