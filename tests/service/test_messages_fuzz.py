"""Whatever arrives, `decode` answers a message or refuses it: nothing else leaves it, and no refusal is anonymous."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st

from service.messages import CLASSES, REASONS, Message, Rejected, decode, encode

SUFFIXES = [c.example_topic for c in CLASSES]
EXAMPLES: list[tuple[str, dict[str, Any]]] = [(c.example_topic, dict(c.example)) for c in CLASSES]

scalars = st.one_of(
    st.none(), st.booleans(), st.integers(-(10**30), 10**30), st.floats(), st.text(max_size=80), st.just("2026-11-21T06:00:00Z"),
)  # fmt: skip
values = st.recursive(
    scalars, lambda v: st.one_of(st.lists(v, max_size=4), st.dictionaries(st.text(max_size=8), v, max_size=4))
)


def judged(suffix: str, payload: bytes) -> str | None:
    """Decode; the reason of the refusal, None for a message."""
    refused: Rejected | None = None
    message: Message | None = None
    try:
        message = decode(suffix, payload)
    except Rejected as error:
        refused = error
    if refused is not None:
        assert refused.reason in REASONS
        assert 0 < len(refused.detail) <= 300
        assert refused.detail.isprintable()
        refused.detail.encode()
        return refused.reason
    assert isinstance(message, Message)
    again = decode(suffix, encode(message))
    assert again == message
    return None


@given(st.one_of(st.sampled_from(SUFFIXES), st.text(max_size=100)), st.binary(max_size=300))
@settings(max_examples=300)
def test_any_bytes(suffix: str, payload: bytes) -> None:
    assert judged(suffix, payload) is not None


@given(st.sampled_from(SUFFIXES), values)
@settings(max_examples=300)
@example("measurement/glucose", {"value": float("nan")})
def test_any_json(suffix: str, content: object) -> None:
    judged(suffix, json.dumps(content).encode("utf-8", "surrogatepass"))


@given(st.sampled_from(EXAMPLES), st.data())
@settings(max_examples=700)
def test_any_change_to_a_good_message(good: tuple[str, dict[str, Any]], data: st.DataObject) -> None:
    suffix, content = good
    changed = dict(content)
    for _ in range(data.draw(st.integers(1, 3))):
        key = data.draw(st.sampled_from([*content, "surprise"]))
        if data.draw(st.booleans()):
            changed[key] = data.draw(values)
        else:
            changed.pop(key, None)
    judged(suffix, json.dumps(changed).encode("utf-8", "surrogatepass"))


@given(st.sampled_from(EXAMPLES), st.integers(0, 400), st.integers(0, 255))
@settings(max_examples=600)
def test_any_changed_byte(good: tuple[str, dict[str, Any]], position: int, byte: int) -> None:
    suffix, content = good
    payload = bytearray(json.dumps(content).encode())
    payload[position % len(payload)] = byte
    judged(suffix, bytes(payload))


@given(st.sampled_from(EXAMPLES), st.integers(0, 400))
@settings(max_examples=300)
def test_any_cut(good: tuple[str, dict[str, Any]], length: int) -> None:
    suffix, content = good
    payload = json.dumps(content).encode()
    if length < len(payload):
        assert judged(suffix, payload[:length]) == "not_json"


@given(st.floats())
def test_no_number_that_is_none_gets_in(value: float) -> None:
    content = {**CLASSES[0].example, "value": value}
    reason = judged("measurement/glucose", json.dumps(content).encode())
    assert (reason is None) == (0.0 <= value * 1000 / 180.156 <= 600.0)
