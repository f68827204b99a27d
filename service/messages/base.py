"""What every message shares: the refusal, the field types, the base class. No I/O, no clock."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, WithJsonSchema

ROOT = "celltwin/v1"
"""Every topic starts with `celltwin/v1/{site}/{unit}/`."""

MAX_BYTES = 64 * 1024
"""Largest payload that is looked at, and the largest we send [bytes]."""

REASONS: Mapping[str, str] = MappingProxyType(
    {
        "too_large": "the payload is larger than 64 KiB",
        "not_utf8": "the payload is not UTF-8",
        "not_json": "the payload is not JSON",
        "not_object": "the payload is not a JSON object",
        "duplicate_key": "a key occurs twice in one object",
        "not_finite": "NaN, Infinity or a number beyond double precision",
        "nested_too_deep": "objects or arrays are nested deeper than 8",
        "unknown_topic": "the topic is none of this interface",
        "unknown_channel": "the channel is unknown",
        "unknown_actuator": "the actuator is unknown",
        "unknown_kind": "the event kind is unknown",
        "unknown_verb": "the query verb is unknown",
        "unknown_field": "a field is not part of the message",
        "missing_field": "a required field is absent",
        "bad_type": "a field has the wrong JSON type",
        "bad_value": "a field has an inadmissible value",
        "bad_id": "an identifier is not 1 to 64 of A-Z a-z 0-9 _ -",
        "bad_time": "a time is not ISO 8601 with a zone, years 1970 to 2199",
        "bad_unit": "the unit is absent, not understood or of the wrong dimension",
        "out_of_range": "the value cannot be a reading or rate of this kind",
        "topic_mismatch": "topic and payload disagree",
        "unknown_batch": "no such batch has been started on this unit",
        "too_many_units": "the service holds as many units as its configuration allows",
        "batch_exists": "a batch of this name has already ended on this unit",
        "unknown_entry": "preset, medium, recipe or targets name no entry of the configuration",
        "before_start": "the time lies before the batch started",
        "not_ours": "the topic belongs to a site or unit that this service does not serve",
        "retained": "a retained message where none may be retained: it may be old",
        "from_the_future": "the time lies ahead of the clock, or further ahead of the batch than recordings pause",
        "too_late": "the result comes longer after its sample than is replayed",
        "conflict": "the same identifier and version has been said with other content",
        "bad_sd": "the standard deviation is no positive number",
        "internal": "the message was understood but could not be processed; it is kept in the journal",
    }
)
"""Stable reason codes of a refusal and what they say. Codes of `twin.evidence.Refused` are passed on as they are."""


class Rejected(ValueError):
    """A message that is refused: `reason` is a stable code, `detail` one line for a person."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = one_line(detail)


class Invalid(ValueError):
    """A field validator's verdict that carries its reason code through pydantic."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


def one_line(text: str, limit: int = 300) -> str:
    """`text` on one line, printable, at most `limit` characters, free of lone surrogates."""
    clean = "".join(c if c.isprintable() else " " for c in text[: 4 * limit])
    clean = clean.encode("utf-8", "replace").decode("utf-8")
    return clean if len(clean) <= limit else clean[: limit - 3] + "..."


_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d{1,6})?(?:Z|[+-]\d\d:\d\d)", re.ASCII)
_REPLY = re.compile(r"celltwin/v1/[A-Za-z0-9_-]{1,64}/[A-Za-z0-9_-]{1,64}/reply/[A-Za-z0-9_-]{1,64}")


def is_id(text: str) -> bool:
    """Whether `text` may name a site, unit, batch, sample, command or client."""
    return _ID.fullmatch(text) is not None


def _check_id(value: str) -> str:
    if not is_id(value):
        raise Invalid("bad_id", f"{value[:80]!r} is not 1 to 64 of A-Z a-z 0-9 _ -")
    return value


def parse_time(value: object) -> datetime:
    """ISO 8601 with a zone (``2026-11-21T06:00:00Z``, at most microseconds) to an aware UTC datetime. Raises ValueError."""
    if isinstance(value, datetime):
        if value.tzinfo is None:
            raise Invalid("bad_time", f"{value.isoformat()} has no zone")
        at = value.astimezone(UTC)
    elif isinstance(value, str):
        if not _TIME.fullmatch(value):
            raise Invalid("bad_time", f"{value[:80]!r} is not ISO 8601 with a zone, like 2026-11-21T06:00:00Z")
        try:
            at = datetime.fromisoformat(value).astimezone(UTC)
        except (ValueError, OverflowError) as error:
            raise Invalid("bad_time", f"{value[:80]!r}: {error}") from None
    else:
        raise Invalid("bad_time", f"a time is text like 2026-11-21T06:00:00Z, not {type(value).__name__}")
    if not 1970 <= at.year < 2200:
        raise Invalid("bad_time", f"year {at.year} is outside 1970 to 2199")
    return at


def time_text(at: datetime) -> str:
    """An aware datetime as the wire writes it: UTC, ``Z``, a fraction only when there is one."""
    return at.astimezone(UTC).isoformat().replace("+00:00", "Z")


def _check_text(value: str) -> str:
    if value != one_line(value, limit=500):
        raise Invalid("bad_value", "text must be one printable line of at most 500 characters")
    return value


def _check_reply(value: str) -> str:
    if not _REPLY.fullmatch(value):
        raise Invalid("bad_value", "reply_to must be celltwin/v1/{site}/{unit}/reply/{client}")
    return value


def _as_tuple(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


Id = Annotated[
    str,
    AfterValidator(_check_id),
    WithJsonSchema({"type": "string", "pattern": "^[A-Za-z0-9_-]{1,64}$"}),
]
Time = Annotated[
    datetime,
    BeforeValidator(parse_time),
    PlainSerializer(time_text, return_type=str),
    WithJsonSchema(
        {
            "type": "string",
            "format": "date-time",
            "pattern": r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,6})?(Z|[+-]\d\d:\d\d)$",
        }
    ),
]
Text = Annotated[str, AfterValidator(_check_text), WithJsonSchema({"type": "string", "maxLength": 500})]
ReplyTo = Annotated[
    str,
    AfterValidator(_check_reply),
    WithJsonSchema({"type": "string", "pattern": f"^{_REPLY.pattern}$", "maxLength": 210}),
]
Count = Annotated[int, Field(ge=0, le=2**53 - 1)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
ActuatorName = Literal["perfusion", "feed", "bleed", "cytokine_dose", "harvest"]
Mode = Literal["shadow", "advisory", "closed"]
Direction = Literal["to_twin", "from_twin", "to_edge"]

T = TypeVar("T")
Listed = Annotated[tuple[T, ...], BeforeValidator(_as_tuple)]
"""A JSON array as a tuple."""


class Part(BaseModel):
    """A strict, frozen piece of a message: unknown keys and wrong JSON types are refused, never coerced."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, populate_by_name=True)


class Message(Part):
    """A message of section 3 of the interface; class attributes say where it travels and how."""

    address: ClassVar[str]  # topic below the unit, with {parameters}
    direction: ClassVar[Direction]
    title: ClassVar[str]
    retain: ClassVar[bool] = False
    expires: ClassVar[bool] = False  # MQTT v5 message expiry as well as `valid_until`
    example: ClassVar[Mapping[str, Any]]  # a payload that decodes
    example_topic: ClassVar[str]  # the topic suffix it decodes on
    from_topic: ClassVar[str | None] = None  # a field that travels in the topic only

    seq: Count  # counts the sender's messages; together with epoch it orders them
    epoch: Count  # fencing epoch of the sender: grows at each of its starts

    @property
    def suffix(self) -> str:
        """The topic suffix of this message, below `celltwin/v1/{site}/{unit}/`."""
        return self.address.format_map({name: getattr(self, name) for name in type(self).model_fields})
