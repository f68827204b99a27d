"""Evidence: everything that happened to a batch. Plain records, ordered by when it happened, not by when we heard."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal, NamedTuple, TypeAlias

ACTUATORS = ("perfusion", "feed", "bleed", "cytokine_dose")
"""Actuators with a rate that moves the state; `harvest` ends the batch and is an actuator too (`Actuator`)."""

Actuator = Literal["perfusion", "feed", "bleed", "cytokine_dose", "harvest"]

EMPTY: Mapping[str, str | float] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Measurement:
    """One reading, in the canonical unit of its channel (`twin.units.CANONICAL`)."""

    id: str  # unique within the batch; the same id again is the same fact
    channel: str
    value: float
    sampled_at: float  # when the sample left the vessel [d since inoculation]
    received_at: float  # when we learnt the value [d since inoculation]
    sd: float | None = None  # standard deviation in the channel's unit; None: the sensor's default
    version: int = 1  # a higher version of the same id supersedes
    retracted: bool = False  # this version says that the value is void: it is kept and informs nothing
    confirmed: bool = False  # a human stands by the value: it is taken in whatever the gates say


@dataclass(frozen=True, slots=True)
class ControlApplied:
    """What a pump did from `at` on (a read-back), not what it was asked."""

    id: str
    at: float  # [d since inoculation]
    actuator: str
    rate: float  # VVD; IU/mL/d for cytokine_dose; 1 at harvest
    cmd_id: str | None = None  # the override it answers; None: the local recipe or the operator


@dataclass(frozen=True, slots=True)
class Event:
    """A discrete happening: batch_start, batch_end, stage, calibration, medium, operator_action."""

    id: str
    kind: str
    at: float  # [d since inoculation]
    detail: Mapping[str, str | float] = field(default_factory=lambda: EMPTY)


class Reading(NamedTuple):
    """The newest known value of a channel, as an operator sees it."""

    value: float  # canonical unit
    sampled_at: float  # [d]
    received_at: float  # [d]


Fact: TypeAlias = Measurement | ControlApplied | Event


class Refused(ValueError):
    """A fact that cannot enter the evidence; `reason` is a stable code, the message says what was expected."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
