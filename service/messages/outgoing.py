"""What the twin publishes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from service.messages.base import (
    ActuatorName,
    Count,
    Finite,
    Fraction,
    Id,
    Invalid,
    Listed,
    Message,
    Mode,
    NonNegative,
    Part,
    Text,
    Time,
)
from service.messages.incoming import canonical

Severity = Literal["info", "warning", "critical"]

_STAMP = {"seq": 204, "epoch": 3}


class Override(Message):
    """An expiring deviation from the edge's own recipe; at `valid_until` the edge reverts by itself."""

    address = "override/{actuator}"
    direction = "to_edge"
    title = "Override of the local recipe"
    expires = True
    example_topic = "override/perfusion"
    example: ClassVar[Mapping[str, Any]] = {
        "batch": "B001", "cmd_id": "c0ffee01", "actuator": "perfusion", "rate": 0.62, "unit": "1/d",
        "valid_from": "2026-11-21T06:00:00Z", "valid_until": "2026-11-21T18:00:00Z", "basis_hash": "9f2c41aa",
        "recipe_version": 1, **_STAMP,
    }  # fmt: skip

    batch: Id
    cmd_id: Id
    actuator: ActuatorName
    rate: NonNegative  # harvest: 1 begins the harvest
    unit: Text
    valid_from: Time
    valid_until: Time
    basis_hash: Id  # of the evidence and belief it rests on
    recipe_version: int = Field(ge=1)

    @model_validator(mode="after")
    def _consistent(self) -> Override:
        canonical(self.actuator, self.rate, self.unit, 1.0)
        if self.valid_until <= self.valid_from:
            raise Invalid("bad_value", "valid_until must lie after valid_from")
        return self


class Quantity(Part):
    """One quantity with its uncertainty: mean, standard deviation and the 90 % interval, in `unit`."""

    mean: Finite
    sd: NonNegative
    q05: Finite
    q95: Finite
    unit: Text


class Consistency(Part):
    """Normalised innovation squared of a channel over its last samples: 1 on average when the filter is honest."""

    mean: NonNegative
    n: int = Field(ge=1)
    accepted: int = Field(ge=0)


class Verdict(Part):
    """What became of the newest reading of a channel."""

    at: Time  # when it was drawn
    verdict: Literal["accepted", "widened", "rejected", "unit_slip", "quarantined"]
    ratio: NonNegative | None  # its innovation over the gate: not believed above 1; null: not a number
    detail: Text


class Whiteness(Part):
    """Innovations of one channel within the window; those of an honest filter are white and of the stated size."""

    n: Count  # readings taken in
    rejected: Count
    nis: NonNegative | None  # their mean normalised innovation squared: 1 on average
    low: NonNegative  # 99 % bounds of that mean for an honest filter; null: none
    high: NonNegative | None
    bias: Finite  # mean innovation [its standard deviations]
    lag1: Finite  # correlation of neighbours
    white: bool  # that correlation is within its 99 % bounds
    ratio: NonNegative | None  # largest test ratio, refused readings included; null: not a number


class Revised(Part):
    """Facts that came late and moved what was believed; a jump is the largest shift of a state in its own sd."""

    n: Count  # since inoculation
    last: NonNegative | None  # jump of the newest one; null: none yet, or not a number
    largest: NonNegative | None
    cause: Id | None  # the fact behind the newest one
    at: Time | None  # when that fact belongs


class HealthPart(Part):
    """Whether the estimate is to be trusted, by the readings of the last `window_days`."""

    window_days: NonNegative
    nis: NonNegative | None  # over all channels; null: no reading was taken in
    honest: bool  # that mean is within its 99 % bound: the filter is not overconfident
    channels: dict[Id, Whiteness]  # with fewer than five readings in the window a channel is left out
    newest: dict[Id, Verdict]
    repairs: Count  # of the covariance, since inoculation
    shadow_gap: (
        NonNegative | None
    )  # largest distance of the shadow filter's state [sd]; null: no shadow, or a past time
    revisions: Revised


class Estimate(Message):
    """What the twin believes now, resting on everything up to `at`.

    Flags: `ended`, `belief_not_finite`, `belief_out_of_range`, `overconfident`, `shadow_apart`, and with a channel after a
    colon `lost`, `unit_slip`, `biased`, and `quarantined` with why after another: `stuck`, `contradicted`, `drift`.
    """

    address = "estimate"
    direction = "from_twin"
    title = "State estimate"
    retain = True
    example_topic = "estimate"
    example: ClassVar[Mapping[str, Any]] = {
        "batch": "B001", "at": "2026-11-21T06:00:00Z", "basis": "9f2c41aa",
        "state": {"glucose": {"mean": 17.8, "sd": 0.4, "q05": 17.1, "q95": 18.5, "unit": "mM"}},
        "parameters": {"mu_max": {"mean": 0.79, "sd": 0.05, "q05": 0.71, "q95": 0.88, "unit": "1/d"}},
        "flags": ["lost:capacitance"], "nis": {"glucose": {"mean": 0.9, "n": 12, "accepted": 12}},
        "health": {
            "window_days": 1.0, "nis": 1.1, "honest": True,
            "channels": {"raman_glucose": {
                "n": 24, "rejected": 0, "nis": 1.1, "low": 0.41, "high": 1.9, "bias": 0.1, "lag1": 0.05, "white": True,
                "ratio": 0.6}},
            "newest": {"glucose": {"at": "2026-11-21T06:00:00Z", "verdict": "accepted", "ratio": 0.2, "detail": ""}},
            "repairs": 0, "shadow_gap": 0.3,
            "revisions": {"n": 1, "last": 0.4, "largest": 0.4, "cause": "S0040", "at": "2026-11-20T06:00:00Z"},
        }, **_STAMP,
    }  # fmt: skip

    batch: Id
    at: Time
    basis: Id
    state: dict[Id, Quantity]
    parameters: dict[Id, Quantity]
    flags: Listed[Text]
    nis: dict[Id, Consistency]
    health: HealthPart | None = None  # absent in journals of versions before it


class Band(Part):
    """Median and 90 % band of a quantity over future instants."""

    t: Listed[Time]
    q05: Listed[Finite]
    q50: Listed[Finite]
    q95: Listed[Finite]

    @model_validator(mode="after")
    def _aligned(self) -> Band:
        if not len(self.t) == len(self.q05) == len(self.q50) == len(self.q95):
            raise Invalid("bad_value", "t, q05, q50 and q95 of a band must be of one length")
        return self


class HarvestWindow(Part):
    """When the dose is expected to be reached; null: in fewer futures than that quantile asks for."""

    at: Time | None
    q05: Time | None
    q95: Time | None


class ForecastMessage(Message):
    """Where the batch is heading under the present plan, from an ensemble of futures."""

    address = "forecast"
    direction = "from_twin"
    title = "Forecast"
    retain = True
    example_topic = "forecast"
    example: ClassVar[Mapping[str, Any]] = {
        "batch": "B001", "from": "2026-11-21T06:00:00Z",
        "bands": {"viable_density": {"t": ["2026-11-21T12:00:00Z"], "q05": [5.1], "q50": [5.6], "q95": [6.2]}},
        "p_pass": {"viability": 0.97}, "p_release": 0.91,
        "harvest": {"at": "2026-11-30T06:00:00Z", "q05": "2026-11-29T06:00:00Z", "q95": None},
        "last_useful_day": 12.5, **_STAMP,
    }  # fmt: skip

    batch: Id
    from_: Time = Field(alias="from")
    bands: dict[Id, Band]
    p_pass: dict[Id, Fraction]
    p_release: Fraction
    harvest: HarvestWindow
    last_useful_day: Finite | None  # [d since inoculation]


class Series(Part):
    """Values of one quantity, one an instant of the plan."""

    unit: Text
    values: Listed[Finite]


class PlanMessage(Message):
    """The whole planned schedule, what it should do, how the solver fared, and what the guard made of it."""

    address = "plan"
    direction = "from_twin"
    title = "Plan and decision"
    retain = True
    example_topic = "plan"
    example: ClassVar[Mapping[str, Any]] = {
        "batch": "B001", "at": "2026-11-21T06:00:00Z", "policy": "mpc", "status": "solved", "detail": "Solve_Succeeded",
        "cost": -3.1, "t": ["2026-11-21T06:00:00Z", "2026-11-21T12:00:00Z"],
        "schedule": {"perfusion": {"unit": "1/d", "values": [0.5]}},
        "predicted": {"viable_density": {"unit": "1e6 cells/mL", "values": [5.0, 5.6]}},
        "harvest_at": None, "harvest": False, "override": True, "valid_until": "2026-11-21T18:00:00Z",
        "basis": "9f2c41aa", "reasons": ["sent"], **_STAMP,
    }  # fmt: skip

    batch: Id
    at: Time
    policy: Id
    status: Literal["solved", "shifted", "failed", "not_run"]
    detail: Text
    cost: Finite | None
    t: Listed[Time]  # edges of the steps: one more than the values of the schedule
    schedule: dict[Id, Series]
    predicted: dict[Id, Series]
    harvest_at: Time | None
    harvest: bool  # harvest now
    override: bool  # whether the guard let an override through
    valid_until: Time
    basis: Id
    reasons: Listed[Text]


class Alarm(Message):
    """Something a person should know; cleared by an empty retained message on the same topic.

    One alarm a channel and cause: `stuck`, `contradicted`, `drift`, `biased`, `unit_slip`, `lost`, each with the channel after
    a hyphen; `overconfident`, `shadow_apart`, `belief_not_finite`, `belief_out_of_range` of the estimate. `edge_silent` stands
    for all probes of the edge, `alarm_flood` for whatever else a storm would raise. A unit slip is no refusal: the value is
    kept, withheld from the estimate, and the alarm proposes what it should read.
    """

    address = "alarm/{code}"
    direction = "from_twin"
    title = "Alarm"
    retain = True
    example_topic = "alarm/lost-capacitance"
    example: ClassVar[Mapping[str, Any]] = {
        "code": "lost-capacitance", "severity": "warning", "since": "2026-11-21T06:00:00Z", "batch": "B001",
        "channel": "capacitance", "message": "no reading since day 4.25", "action": "check the device", **_STAMP,
    }  # fmt: skip

    code: Id
    severity: Severity
    since: Time
    batch: Id | None
    channel: Id | None
    message: Text
    action: Text


class StatusMessage(Message):
    """Whether the twin is there and how far it may go; `offline` is its last will."""

    address = "status"
    direction = "from_twin"
    title = "Status of the twin"
    retain = True
    example_topic = "status"
    example: ClassVar[Mapping[str, Any]] = {
        "state": "online", "mode": "shadow", "version": "0.1.0", "since": "2026-11-21T06:00:00Z", **_STAMP,
    }  # fmt: skip

    state: Literal["online", "offline"]
    mode: Mode
    version: Text
    since: Time


class Changed(Part):
    """A probability without and with an edit; `se` is the standard error of `delta` over paired futures."""

    before: Fraction
    after: Fraction
    delta: Finite
    se: NonNegative


class Quantiles(Part):
    """Median and 90 % band of one number over futures."""

    q05: Finite
    q50: Finite
    q95: Finite


class Shifted(Part):
    """One number at the harvest without and with an edit, and its difference future by future."""

    unit: Text
    before: Quantiles
    after: Quantiles
    delta: Quantiles


class WhatIfPart(Part):
    """What an edit of the schedule would change, in paired futures: the same chances with and without it."""

    edits: Text
    futures: int = Field(ge=1)
    delta: dict[Id, Band]  # paired differences over time
    harvested: dict[Id, Shifted]  # by quantity, with the day of harvest and the medium still to be perfused
    p_pass: dict[Id, Changed]
    p_release: Changed
    capped: Listed[Id]  # actuators that were asked for more than their limit, and do that


class ReplyMessage(Message):
    """The answer to a query."""

    address = "reply/{client}"
    direction = "from_twin"
    title = "Answer to a query"
    example_topic = "reply/panel"
    example: ClassVar[Mapping[str, Any]] = {"correlation": "q1", "ok": False, "reason": "no batch is running", **_STAMP}
    from_topic = "client"

    client: Id = Field(exclude=True)  # last segment of `reply_to`
    correlation: Id
    ok: bool
    reason: Text
    estimate: Estimate | None = None
    forecast: ForecastMessage | None = None  # of a what-if: with the edit
    whatif: WhatIfPart | None = None


class Rejection(Message):
    """A refused message: which, why (a stable code), and what was expected."""

    address = "rejected"
    direction = "from_twin"
    title = "A refused message"
    example_topic = "rejected"
    example: ClassVar[Mapping[str, Any]] = {
        "topic": "celltwin/v1/siteA/unit1/measurement/glucose", "reason": "bad_unit",
        "detail": "glucose wants mM or g/L, got 'mg'", "at": "2026-11-21T06:00:00Z", **_STAMP,
    }  # fmt: skip

    topic: Text  # the refused one; where this travels is `suffix`
    reason: Id
    detail: Text
    at: Time


Outgoing = (
    Override | Estimate | ForecastMessage | PlanMessage | Alarm | StatusMessage | ReplyMessage | Rejection
)  # fmt: skip

OUTGOING: tuple[type[Message], ...] = (
    Override, Estimate, ForecastMessage, PlanMessage, Alarm, StatusMessage, ReplyMessage, Rejection,
)  # fmt: skip
