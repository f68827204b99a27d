"""A restart need not solve again what was solved: plans out of the journal's decisions, handed to the guard anew.

Most of the time that a restart takes would go into optimising past decisions. Their plans stand in the journal to the
last bit, and a policy is a pure function. Everything else (belief, guard, decision, forecast) is recomputed and
compared; that this version would *plan* the same is what `celltwin replay` shows, which recalls nothing.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from controllers.plan import Plan, Policy, Situation
from service.journal import Row
from twin.bioreactor import Control, State

Plans = Mapping[float, Plan]
"""Time of a decision [d] -> the plan that it was taken on."""


@dataclass(frozen=True, slots=True)
class Recalled:
    """A policy that remembers what it planned before, and plans where it does not."""

    policy: Policy
    plans: Plans

    @property
    def name(self) -> str:
        return str(getattr(self.policy, "name", None) or getattr(self.policy, "__name__", "policy"))

    def __call__(self, situation: Situation, previous: Plan | None) -> Plan:
        known = self.plans.get(situation.now)
        return known if known is not None else self.policy(situation, previous)


def plans(rows: Iterable[Row], batch: str) -> Plans:
    """The plans of a batch's decisions that went to the guard as they stand; `rows` of one unit.

    A plan that the guard replaced or failed is not among them: what it was made from is not in the journal.
    """
    found: dict[float, Plan] = {}
    for row in rows:
        if row.kind != "decision":
            continue
        said: dict[str, Any] = json.loads(row.payload)
        if said["batch"] == batch and said["plan"]["status"] == "solved":
            found[float(said["at"])] = _plan(said["plan"])
    return found


def acted_on(rows: Iterable[Row], batch: str, at: float) -> Plan | None:
    """The plan that the newest decision until `at` [d] let through; None where it left the pumps to the recipe."""
    newest: Plan | None = None
    for row in rows:
        if row.kind == "decision":
            said: dict[str, Any] = json.loads(row.payload)
            if said["batch"] == batch and said["at"] <= at:
                newest = None if said["control"] is None else _plan(said["plan"])
    return newest


def _plan(said: Mapping[str, Any]) -> Plan:
    return Plan(
        issued_at=float(said["issued_at"]),
        step=float(said["step"]),
        controls=tuple(Control(*map(float, u)) for u in said["controls"]),
        states=tuple(State(*map(float, x)) for x in said["states"]),
        status=said["status"],
        cost=float(said["cost"]),
        harvest_at=None if said["harvest_at"] is None else float(said["harvest_at"]),
        policy=str(said["policy"]),
        detail=str(said["detail"]),
    )
