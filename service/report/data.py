"""What a batch report shows, as plain values: arrays by name, days since inoculation, canonical units.

Rule 1. Nothing here knows where the values came from (a journal, a simulation, a backtest): whoever has them fills this in.
Rule 2. Absent is absent: an empty mapping or None leaves a part of the page out, it is never filled with zeros.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float

from twin.process import Target

ESTIMATED = "Values at harvest are the twin's estimates; release rests on the laboratory's results."
"""The remark of a report whose outcome nobody measured."""

Verdict = Literal["passed", "failed", "running", "ended"]
"""passed, failed: every, or not every, criterion met at harvest. ended: over, with criteria not known. running: not over."""


class Band(NamedTuple):
    """A quantity over time with its 90 % interval."""

    t: Float[np.ndarray, " n"]  # [d]
    low: Float[np.ndarray, " n"]
    mid: Float[np.ndarray, " n"]
    high: Float[np.ndarray, " n"]


class Curve(NamedTuple):
    """A quantity over time: the truth of a simulation, a probability, a rate that holds until the next instant."""

    t: Float[np.ndarray, " n"]  # [d]
    value: Float[np.ndarray, " n"]


class Samples(NamedTuple):
    """Readings of one channel, at the time they were drawn."""

    t: Float[np.ndarray, " n"]  # [d]
    value: Float[np.ndarray, " n"]
    used: np.ndarray  # bool: the filter took it in, and nobody took it back
    late: np.ndarray | None = None  # bool: it came when the twin had decided without it
    corrected: np.ndarray | None = None  # bool: a later version of what was first said


class Judged(NamedTuple):
    """What became of one channel's readings, as it was last said of each."""

    t: Float[np.ndarray, " n"]  # when they were drawn [d]
    verdict: tuple[str, ...]  # accepted, widened, rejected, unit_slip, quarantined
    ratio: Float[np.ndarray, " n"]  # innovation over gate


class Consistency(NamedTuple):
    """One channel's mean normalised innovation squared over a sliding window, and its 99 % bounds for an honest filter."""

    t: Float[np.ndarray, " n"]  # end of the window [d]
    nis: Float[np.ndarray, " n"]
    low: Float[np.ndarray, " n"]
    high: Float[np.ndarray, " n"]


class Limit(NamedTuple):
    """A line that a quantity should stay above or below."""

    sense: Literal["at_least", "at_most"]
    value: float
    label: str

    def met(self, value: float) -> bool:
        """Whether `value` keeps the limit; NaN does not."""
        return value >= self.value if self.sense == "at_least" else value <= self.value


class Criterion(NamedTuple):
    """One release criterion at harvest."""

    cqa: str
    value: float | None  # None: not known
    limit: Limit
    unit: str

    @property
    def met(self) -> bool | None:
        """Whether the criterion is met; None where the value is not known."""
        return None if self.value is None else self.limit.met(self.value)


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a batch ended, under one policy."""

    policy: str
    day: float | None  # of harvest or end [d]
    criteria: tuple[Criterion, ...]
    medium: float | None  # perfused [vessel volumes]
    harvested: bool = True  # False: it ended otherwise

    @property
    def verdict(self) -> Verdict:
        met = [c.met for c in self.criteria]
        if any(m is False for m in met):
            return "failed"
        return "passed" if met and all(met) else "ended"


@dataclass(frozen=True, slots=True)
class Decided:
    """One decision as a person reads it."""

    at: float  # [d]
    sent: bool  # an override left the twin
    harvest: bool
    status: str  # of the plan: solved, shifted, failed, not_run
    rates: Mapping[str, float]  # first move of the plan, by actuator
    reasons: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Alert:
    """An alarm that was raised during the batch."""

    at: float  # [d]
    code: str
    severity: str
    message: str


@dataclass(frozen=True, slots=True)
class ReportData:
    """Everything a report can show of one batch."""

    batch: str
    origin: Literal["simulated", "measured", "recorded"]
    until: float  # end of the record [d since inoculation]
    policy: str = ""
    facts: Mapping[str, str] = field(default_factory=dict)  # donor, preset, recipe ... as shown in the header
    started: datetime | None = None
    units: Mapping[str, str] = field(default_factory=dict)
    estimates: Mapping[str, Band] = field(default_factory=dict)  # believed at t with what was known at t
    truth: Mapping[str, Curve] = field(default_factory=dict)  # simulations only
    samples: Mapping[str, Samples] = field(default_factory=dict)
    inputs: Mapping[str, Curve] = field(default_factory=dict)  # read-backs: a rate holds until the next
    recipe_inputs: Mapping[str, Curve] = field(default_factory=dict)  # what the recipe alone would have done
    limits: Mapping[str, tuple[Limit, ...]] = field(
        default_factory=dict
    )  # operating limits and CQA targets, by quantity
    parameters: Mapping[str, Band] = field(default_factory=dict)  # donor parameters as they were learnt
    p_pass: Mapping[str, Curve] = field(default_factory=dict)  # by CQA
    p_release: Curve | None = None
    forecast_from: float | None = None  # when the forecast shown below was made [d]
    forecast: Mapping[str, Band] = field(default_factory=dict)
    decisions: tuple[Decided, ...] = ()
    alerts: tuple[Alert, ...] = ()
    judged: Mapping[str, Judged] = field(default_factory=dict)  # by channel
    consistency: Mapping[str, Consistency] = field(default_factory=dict)  # by channel
    revisions: Curve | None = None  # jump of the belief [sd] by a late or corrected fact, at the time it was taken in
    ended: bool = False
    outcome: Outcome | None = None
    others: tuple[Outcome, ...] = ()  # the same donor under other policies, for comparison
    provenance: Mapping[str, str] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()  # what the reader must know before trusting a figure

    @property
    def verdict(self) -> Verdict:
        """The one word at the top of the page."""
        if self.outcome is not None and self.outcome.verdict != "ended":
            return self.outcome.verdict
        return "ended" if self.ended else "running"


def outcome_of(
    policy: str,
    day: float | None,
    values: Mapping[str, float | None],
    targets: Sequence[Target],
    medium: float | None,
    *,
    harvested: bool = True,
) -> Outcome:
    """The outcome of a batch from its CQA `values` at `day` [d], held against `targets`; `medium` in vessel volumes."""
    criteria = tuple(Criterion(t.cqa, values.get(t.cqa), Limit(t.sense, t.value, "release"), t.unit) for t in targets)
    return Outcome(policy, day, criteria, medium, harvested)


def as_simulated(
    data: ReportData, truth: Mapping[str, np.ndarray], outcome: Outcome | None = None, others: Sequence[Outcome] = ()
) -> ReportData:
    """`data` with what only a simulation knows.

    `truth` by quantity with its column "time" [d]; the true outcome, to which the twin's own view gives way; and the same
    donor's outcome under other policies.
    """
    t = np.asarray(truth["time"], dtype=float)
    curves = {name: Curve(t, np.asarray(v, dtype=float)) for name, v in truth.items() if name != "time"}
    said = "This batch is simulated: the plant differs in structure from the model that estimates it; the outcome is the plant's."
    kept = data.remarks if outcome is None else tuple(r for r in data.remarks if r != ESTIMATED)
    return replace(
        data,
        origin="simulated",
        truth=curves,
        outcome=outcome or data.outcome,
        others=tuple(others),
        remarks=(said, *kept),
    )
