"""What a policy answers (Plan) and what leaves the twin (Decision). Values only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

from twin.bioreactor import Control, State
from twin.estimation.belief import Belief, Layout
from twin.evidence import Reading
from twin.process import Process

Status = Literal["solved", "shifted", "failed", "not_run"]


@dataclass(frozen=True, slots=True)
class Situation:
    """All that a policy may look at. No clock, no I/O, no globals."""

    now: float  # [d since inoculation]
    belief: Belief  # at `now`
    layout: Layout
    readings: Mapping[str, Reading]
    applied: Control  # what the pumps do now
    recipe: Control  # what the local recipe would do now
    process: Process
    medium_used: float  # perfusion volumes so far [vessel volumes]


@dataclass(frozen=True, slots=True)
class Plan:
    """A schedule of controls over equal steps, and what it is expected to do."""

    issued_at: float  # [d]
    step: float  # [d]
    controls: tuple[Control, ...]
    states: tuple[State, ...]  # predicted, one more than controls
    status: Status
    cost: float
    harvest_at: float | None  # planned harvest [d]; None: beyond the horizon
    policy: str  # who proposed it: "mpc", "cspr", ...
    detail: str = ""  # solver status in its own words


class Policy(Protocol):
    """The seam that every policy fills: a recipe, the MPC, or a user's own."""

    def __call__(self, situation: Situation, previous: Plan | None) -> Plan: ...


@dataclass(frozen=True, slots=True)
class Decision:
    """What the guard let through, until when, on which grounds."""

    at: float  # [d]
    control: Control | None  # None: no override, the edge keeps to its recipe
    harvest: bool  # True: harvest now
    valid_until: float  # [d]
    plan: Plan
    basis: str  # hash of the evidence and belief it rests on
    reasons: tuple[str, ...]  # what a person will read; the first is the verdict
