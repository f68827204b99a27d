"""Bytes <-> messages. Strict on the way in, canonical on the way out.

`decode` answers a message or raises `Rejected`; nothing else ever leaves it, whatever the bytes.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any, TypeVar, get_args

from pydantic import ValidationError

from service.messages.base import MAX_BYTES, REASONS, ROOT, ActuatorName, Message, Rejected, is_id, one_line
from service.messages.incoming import INCOMING
from service.messages.outgoing import OUTGOING

MAX_DEPTH = 8
CLASSES: tuple[type[Message], ...] = (*INCOMING, *OUTGOING)

_FIXED: Mapping[str, type[Message]] = {c.address: c for c in CLASSES if "{" not in c.address}
_FAMILY: Mapping[str, type[Message]] = {c.address.split("/")[0]: c for c in CLASSES if "{" in c.address}
_UNKNOWN = {"event": "unknown_kind", "query": "unknown_verb"}
_ACTUATORS = get_args(ActuatorName)
_TYPES = ("_type", "model_attributes", "dict_attributes", "tuple_", "list_", "is_instance")

M = TypeVar("M", bound=Message)


def class_of(suffix: str) -> tuple[type[Message], str | None]:
    """The message class that travels on a topic suffix, and the value of the topic's parameter if it has one."""
    family, _, rest = suffix.partition("/")
    if suffix in _FIXED:
        return _FIXED[suffix], None
    if family in _UNKNOWN:
        known = ", ".join(a.split("/")[1] for a in _FIXED if a.startswith(family + "/"))
        raise Rejected(_UNKNOWN[family], f"{family} {rest[:80]!r} is not one of {known}")
    if family not in _FAMILY or not rest:
        raise Rejected("unknown_topic", f"{suffix[:120]!r} is no topic below {ROOT}/{{site}}/{{unit}}/")
    if not is_id(rest):
        raise Rejected("bad_id", f"{rest[:80]!r} in the topic is not 1 to 64 of A-Z a-z 0-9 _ -")
    if _parameter(_FAMILY[family]) == "actuator" and rest not in _ACTUATORS:
        raise Rejected("unknown_actuator", f"actuator {rest!r} is not one of {', '.join(_ACTUATORS)}")
    return _FAMILY[family], rest


def decode(topic_suffix: str, payload: bytes) -> Message:
    """One message from the wire. `topic_suffix` is what follows `celltwin/v1/{site}/{unit}/`.

    Raises `Rejected` with a stable reason code for everything that is not exactly a message of the interface.
    """
    cls, parameter = class_of(topic_suffix)
    content = strict_json(payload)
    if parameter is not None:
        name = _parameter(cls)
        if cls.from_topic == name:
            if name in content:
                raise Rejected("unknown_field", f"field {name}: travels in the topic, not in the payload")
            content[name] = parameter
        elif name in content and content[name] != parameter:
            raise Rejected("topic_mismatch", f"topic says {name} {parameter!r}, payload says {content[name]!r}"[:300])
    return _validate(cls, content)


def decode_as(cls: type[M], topic_suffix: str, payload: bytes) -> M:
    """`decode` for a reader that wants one kind of message only. Raises `Rejected`."""
    message = decode(topic_suffix, payload)
    if not isinstance(message, cls):
        raise Rejected("unknown_topic", f"{topic_suffix[:80]!r} carries {type(message).__name__}, not {cls.__name__}")
    return message


def encode(message: Message) -> bytes:
    """Canonical JSON: sorted keys, no spaces, UTF-8, times in UTC. Raises ValueError beyond 64 KiB."""
    payload = canonical_json(message.model_dump(by_alias=True))
    if len(payload) > MAX_BYTES:
        raise ValueError(f"{type(message).__name__} of {len(payload)} bytes exceeds {MAX_BYTES}")
    return payload


def addressed(payload: bytes, response_topic: str, correlation: bytes) -> bytes:
    """A question that was asked the MQTT v5 way, as it is understood and kept: its way back stands in the payload.

    What the payload says itself holds. A `correlation` that is no identifier of the interface is named by its digest.
    """
    text = correlation.decode("ascii", "replace")
    named = text if is_id(text) else hashlib.sha256(correlation).hexdigest()[:32]
    try:
        content = strict_json(payload)
        return canonical_json({"reply_to": response_topic, "correlation": named, **content})
    except ValueError:  # refused like any other when it is decoded
        return payload


def canonical_json(content: object) -> bytes:
    """The one JSON text of a value: what is hashed, journalled and sent. Raises ValueError for a non-finite number."""
    return json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def strict_json(payload: bytes) -> dict[str, Any]:
    """A JSON object, refusing what `json` would let pass. Raises `Rejected`."""
    if len(payload) > MAX_BYTES:
        raise Rejected("too_large", f"{len(payload)} bytes; the limit is {MAX_BYTES}")
    try:
        text = payload.decode("utf-8")
    except UnicodeDecodeError as error:
        raise Rejected("not_utf8", f"byte {error.start}: {error.reason}") from None
    if _too_deep(text):
        raise Rejected("nested_too_deep", REASONS["nested_too_deep"])
    try:
        content = json.loads(
            text, object_pairs_hook=_unique, parse_constant=_constant, parse_float=_number, parse_int=_integer
        )
    except json.JSONDecodeError as error:
        raise Rejected("not_json", f"line {error.lineno} column {error.colno}: {error.msg}") from None
    if not isinstance(content, dict):
        raise Rejected("not_object", f"expected an object, got {type(content).__name__}")
    return content


def _parameter(cls: type[Message]) -> str:
    return cls.address.split("{")[1].rstrip("}")


def _validate(cls: type[Message], content: dict[str, Any]) -> Message:
    try:
        return cls.model_validate(content, by_alias=True, by_name=False)
    except ValidationError as error:
        first = min(error.errors(include_url=False), key=lambda e: e["type"] != "extra_forbidden")
    field = one_line(".".join(str(part) for part in first["loc"]), 120)
    cause = (first.get("ctx") or {}).get("error")
    kind = first["type"]
    if (reason := getattr(cause, "reason", None)) is not None:
        raise Rejected(str(reason), f"field {field}: {cause}" if field else str(cause))
    if kind == "extra_forbidden":
        raise Rejected("unknown_field", f"field {field}: not part of {cls.__name__}; known: {', '.join(_fields(cls))}")
    if field == "unit":
        raise Rejected("bad_unit", f"field unit: required as text, {first['msg']}")
    if kind == "missing":
        raise Rejected("missing_field", f"field {field}: required")
    if kind == "literal_error" and field == "actuator":
        raise Rejected("unknown_actuator", f"field actuator: {first['msg']}")
    raise Rejected("bad_type" if kind.endswith(_TYPES) else "bad_value", f"field {field}: {first['msg']}")


def _fields(cls: type[Message]) -> list[str]:
    return sorted(f.alias or name for name, f in cls.model_fields.items() if not f.exclude)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) != len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))
        raise Rejected("duplicate_key", f"key {twice[:80]!r} occurs twice")
    return content


def _constant(text: str) -> float:
    raise Rejected("not_finite", f"{text} is not a number")


def _number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise Rejected("not_finite", f"{text[:40]} is beyond double precision")
    return value


def _integer(text: str) -> int:
    if len(text) > 20:
        raise Rejected("not_finite", f"the integer {text[:20]}... is longer than 20 digits")
    return int(text)


def _too_deep(text: str) -> bool:
    """Whether brackets outside strings nest deeper than MAX_DEPTH; linear, without recursion."""
    if text.count("[") + text.count("{") <= MAX_DEPTH:
        return False
    depth, inside, escaped = 0, False, False
    for c in text:
        if inside:
            if escaped:
                escaped = False
            elif c == "\\":
                escaped = True
            elif c == '"':
                inside = False
        elif c == '"':
            inside = True
        elif c in "[{":
            depth += 1
            if depth > MAX_DEPTH:
                return True
        elif c in "]}":
            depth -= 1
    return False
