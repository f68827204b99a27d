"""What an edge, a laboratory, an operator or a dashboard sends to the twin."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from service.messages.base import (
    ActuatorName,
    Count,
    Finite,
    Id,
    Invalid,
    Listed,
    Message,
    NonNegative,
    Positive,
    ReplyTo,
    Text,
    Time,
)
from twin.sensors import CHANNELS, MONITORED, impossible
from twin.units import CANONICAL, to_canonical
from twin.whatif.edits import Edit, Edits

CHANNEL_NAMES = (*CHANNELS, *MONITORED)
Quality = Literal["good", "uncertain", "bad", "confirmed"]

_STAMP = {"seq": 17, "epoch": 1}
_AT = {"at": "2026-11-21T06:00:00Z", **_STAMP}


def canonical(name: str, value: float, unit: str, volume: float | None) -> float:
    """`value` of a channel or actuator in its canonical unit; `volume` [L] turns mL/h into VVD.

    Raises ValueError with a reason code for an unknown name or a unit that is absent or of the wrong dimension.
    """
    try:
        return float(to_canonical(name, value, unit, volume_l=volume))
    except (ValueError, OverflowError) as error:
        raise Invalid("bad_unit", str(error)) from None


def _check_channel(name: str) -> None:
    if name not in CHANNEL_NAMES:
        raise Invalid("unknown_channel", f"channel {name!r} is not one of {', '.join(CHANNEL_NAMES)}")


class MeasurementMessage(Message):
    """One reading of one channel, stamped when the sample left the vessel."""

    address = "measurement/{channel}"
    direction = "to_twin"
    title = "A reading"
    example_topic = "measurement/glucose"
    example: ClassVar[Mapping[str, Any]] = {
        "id": "analyser-0041", "batch": "B001", "channel": "glucose", "value": 3.21, "unit": "g/L",
        "sampled_at": "2026-11-21T06:00:00Z", "sample": "S0041", **_STAMP,
    }  # fmt: skip

    id: Id
    batch: Id
    channel: Id
    value: Finite
    unit: Text
    sampled_at: Time
    sd: Positive | None = None  # standard deviation in `unit`; absent: the sensor's own
    sample: Id | None = None
    version: int = Field(default=1, ge=1, le=10_000)  # a higher version of the same id supersedes
    supersedes: Id | None = None  # the id that this one corrects
    quality: Quality = "good"
    # bad: this version says that the value is void; it is kept and informs nothing
    # confirmed: a person stands by the value; it is taken in whatever gates and unit checks say

    @model_validator(mode="after")
    def _physical(self) -> MeasurementMessage:
        _check_channel(self.channel)
        value = canonical(self.channel, self.value, self.unit, None)
        if why := impossible(self.channel, value):
            raise Invalid("out_of_range", f"{why} {CANONICAL[self.channel]} (sent as {self.value!r} {self.unit})")
        if self.supersedes is not None and self.version < 2:
            raise Invalid("bad_value", "a message that supersedes another carries a version of 2 or more")
        return self


class _Event(Message):
    """What all events share."""

    direction = "to_twin"
    kind: ClassVar[str]

    id: Id
    batch: Id
    at: Time


class BatchStart(_Event):
    """A batch begins: inoculation of the bioreactor. Its `at` is day 0."""

    address = "event/batch_start"
    title = "Batch start"
    kind = "batch_start"
    example_topic = "event/batch_start"
    example: ClassVar[Mapping[str, Any]] = {
        "id": "B001-start", "batch": "B001", "donor": "D07", "preset": "car_nk", "volume_l": 1.0,
        "medium": "standard_perfusion", "recipe": "cspr_100", "targets": "car_nk_release", **_AT,
    }  # fmt: skip

    donor: Id | None  # null: unknown, the population prior
    preset: Id
    volume_l: Positive
    medium: Id
    recipe: Id
    targets: Id


class BatchEnd(_Event):
    """A batch ends: harvested, stopped or lost."""

    address = "event/batch_end"
    title = "Batch end"
    kind = "batch_end"
    example_topic = "event/batch_end"
    example: ClassVar[Mapping[str, Any]] = {"id": "B001-end", "batch": "B001", "outcome": "harvested", **_AT}

    outcome: Literal["harvested", "completed", "aborted"] = "completed"
    detail: Text = ""


class StageChange(_Event):
    """The process enters another stage."""

    address = "event/stage"
    title = "Stage"
    kind = "stage"
    example_topic = "event/stage"
    example: ClassVar[Mapping[str, Any]] = {"id": "st-3", "batch": "B001", "stage": "bioreactor", **_AT}

    stage: Id
    detail: Text = ""


class Calibration(_Event):
    """A probe was calibrated: its drift starts anew."""

    address = "event/calibration"
    title = "Calibration"
    kind = "calibration"
    example_topic = "event/calibration"
    example: ClassVar[Mapping[str, Any]] = {"id": "cal-1", "batch": "B001", "channel": "ph", **_AT}

    channel: Id
    detail: Text = ""

    @model_validator(mode="after")
    def _known(self) -> Calibration:
        _check_channel(self.channel)
        return self


class MediumChange(_Event):
    """Another medium or a new lot is in use."""

    address = "event/medium"
    title = "Medium"
    kind = "medium"
    example_topic = "event/medium"
    example: ClassVar[Mapping[str, Any]] = {
        "id": "med-2",
        "batch": "B001",
        "medium": "standard_perfusion",
        "lot": "L9",
        **_AT,
    }

    medium: Id
    lot: Id | None = None
    detail: Text = ""


class OperatorAction(_Event):
    """A person did something at the reactor. A fact, not a fault."""

    address = "event/operator_action"
    title = "Operator action"
    kind = "operator_action"
    example_topic = "event/operator_action"
    example: ClassVar[Mapping[str, Any]] = {
        "id": "op-5", "batch": "B001", "action": "sample", "operator": "ab", "detail": "20 mL withdrawn", **_AT,
    }  # fmt: skip

    action: Id
    operator: Id | None = None
    detail: Text = ""


class ReadBack(Message):
    """What a pump does from `at` on: not what it was asked."""

    address = "actuator/{actuator}"
    direction = "to_twin"
    title = "Actuator read-back"
    example_topic = "actuator/perfusion"
    example: ClassVar[Mapping[str, Any]] = {"batch": "B001", "rate": 0.5, "unit": "1/d", "cmd_id": None, **_AT}
    from_topic = "actuator"

    actuator: ActuatorName = Field(exclude=True)  # from the topic
    batch: Id
    rate: NonNegative
    unit: Text
    at: Time
    cmd_id: Id | None  # the override it answers; null: the recipe or the operator

    @model_validator(mode="after")
    def _physical(self) -> ReadBack:
        # a nominal litre only tells whether the unit is a rate of this actuator; the batch's own volume converts
        canonical(self.actuator, self.rate, self.unit, 1.0)
        return self


class Ack(Message):
    """The edge's answer to an override, with the rate it applies."""

    address = "ack/{cmd_id}"
    direction = "to_twin"
    title = "Acknowledgement of an override"
    example_topic = "ack/c0ffee01"
    example: ClassVar[Mapping[str, Any]] = {
        "cmd_id": "c0ffee01", "accepted": True, "applied_rate": 0.62, "reason": "applied", **_AT,
    }  # fmt: skip

    cmd_id: Id
    accepted: bool
    applied_rate: NonNegative | None  # in the canonical unit of the actuator; null when refused
    reason: Text
    at: Time


class _Query(Message):
    """A question; the answer goes to `reply_to` with the same `correlation`."""

    direction = "to_twin"
    verb: ClassVar[str]

    seq: Count = 0  # type: ignore[assignment]  # anyone may ask, also who counts nothing
    epoch: Count = 0  # type: ignore[assignment]
    reply_to: ReplyTo
    correlation: Id


_ASK: dict[str, Any] = {"reply_to": "celltwin/v1/siteA/unit1/reply/panel", "correlation": "q1"}


class StateQuery(_Query):
    """Ask what is believed: now, or of a past time, with all that is known now or only what was known by then.

    `at` absent: the newest time. `known_by` absent: everything that is known. So the belief *now* about a past time is
    `at` alone, the belief *then* both with the same time.
    """

    address = "query/state"
    title = "Ask for the state"
    verb = "state"
    example_topic = "query/state"
    example: ClassVar[Mapping[str, Any]] = {
        **_ASK, "at": "2026-11-20T06:00:00Z", "known_by": "2026-11-20T06:00:00Z",
    }  # fmt: skip

    at: Time | None = None
    known_by: Time | None = None


class ForecastQuery(_Query):
    """Ask for the newest forecast."""

    address = "query/forecast"
    title = "Ask for the forecast"
    verb = "forecast"
    example_topic = "query/forecast"
    example: ClassVar[Mapping[str, Any]] = dict(_ASK)


class WhatIfQuery(_Query):
    """Ask what changed inputs would do: `edits` such as "feed*1.1 for 6h" or "harvest on 12", or one `edit`.

    Or, without either: `actuator` times `factor` for `hours`, then the plan again.
    """

    address = "query/whatif"
    title = "Ask what if"
    verb = "whatif"
    example_topic = "query/whatif"
    example: ClassVar[Mapping[str, Any]] = {**_ASK, "edits": ["feed*1.1 for 6h", "harvest on 12"]}

    edits: Listed[Text] | None = None
    edit: Text | None = None
    actuator: Literal["perfusion", "feed", "bleed", "cytokine_dose"] | None = None
    factor: float | None = Field(default=None, ge=0, le=10, allow_inf_nan=False)
    hours: float | None = Field(default=None, gt=0, le=24 * 28, allow_inf_nan=False)

    @property
    def asked(self) -> Edits:
        """The edits, whichever way they are given. Raises ValueError naming what is not understood."""
        if self.actuator is not None and self.factor is not None and self.hours is not None:
            return Edits((Edit(self.actuator, "*", self.factor, span=self.hours / 24.0),))
        return Edits.parse(self.edits if self.edits is not None else self.edit or "")

    @model_validator(mode="after")
    def _one_way(self) -> WhatIfQuery:
        scaled = [v is not None for v in (self.actuator, self.factor, self.hours)]
        if (self.edits is not None) + (self.edit is not None) + any(scaled) != 1 or any(scaled) != all(scaled):
            raise Invalid("bad_value", "expected one of edits, edit, or actuator with factor and hours")
        try:
            _ = self.asked
        except ValueError as error:
            raise Invalid("bad_value", str(error)) from None
        return self


class ApproveQuery(_Query):
    """Approve the newest plan, with a reason."""

    address = "query/approve"
    title = "Approve the plan"
    verb = "approve"
    example_topic = "query/approve"
    example: ClassVar[Mapping[str, Any]] = {**_ASK, "basis": "9f2c", "operator": "ab", "reason": "count agrees"}

    basis: Id  # of the decision that is approved
    operator: Id
    reason: Text


EventMessage = BatchStart | BatchEnd | StageChange | Calibration | MediumChange | OperatorAction
QueryMessage = StateQuery | ForecastQuery | WhatIfQuery | ApproveQuery
Incoming = MeasurementMessage | EventMessage | ReadBack | Ack | QueryMessage

INCOMING: tuple[type[Message], ...] = (
    MeasurementMessage, BatchStart, BatchEnd, StageChange, Calibration, MediumChange, OperatorAction,
    ReadBack, Ack, StateQuery, ForecastQuery, WhatIfQuery, ApproveQuery,
)  # fmt: skip
