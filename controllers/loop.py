"""Decide, and the one loop that all three drivers run: the MQTT service, the closed-loop simulator and the journal replay.

Everything here is a deterministic function of the sequence of facts: no clock, no I/O, no randomness. A fact's own time
drives the session's clock; a decision falls due every `period` days and is taken before the fact that reveals it is due.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, field, replace

import numpy as np

from controllers.guard import (
    Command,
    Fault,
    Grounds,
    GuardSettings,
    Readback,
    Verdict,
    belief_fault,
    harvest_fault,
    judge,
)
from controllers.plan import Decision, Plan, Policy, Situation
from controllers.recipes import recipe_control
from controllers.rollout import resimulate
from twin.batch import Batch, believe_at, control_at, latest, medium_at, perfused, tell
from twin.bioreactor import Control, State
from twin.estimation.belief import Belief, split
from twin.estimation.health import health
from twin.evidence import ACTUATORS, ControlApplied, Event, Fact, Measurement

PERIOD = 0.25
"""Time between decisions [d]."""

GRACE = 1.0 / 24.0
"""How long an override outlives the next decision's time [d]: the edge steps hourly."""

AT_ONCE = 16
"""Most decisions that one fact sets off: of more that have fallen due (4 d without a word) only the newest are taken."""


def basis_of(batch: Batch, belief: Belief) -> str:
    """SHA-256 (hex) over the bytes of the belief and the ids of the evidence it rests on."""
    digest = hashlib.sha256()
    digest.update(np.float64(belief.time).tobytes() + np.ascontiguousarray(belief.mean).tobytes())
    digest.update(np.ascontiguousarray(belief.cov).tobytes())
    for m in batch.evidence:
        digest.update(f"\n{m.id} {m.version}".encode())
    for a in batch.applied:
        digest.update(f"\n{a.id}".encode())
    return digest.hexdigest()


def situate(batch: Batch, now: float, belief: Belief) -> Situation:
    """All that a policy may look at, at `now` [d]."""
    readings = latest(batch, now)
    theta = batch.process.theta._replace(medium=medium_at(batch, now))
    return Situation(
        now=now,
        belief=belief,
        layout=batch.layout,
        readings=readings,
        applied=control_at(batch, now),
        recipe=recipe_control(batch.process.recipe, now, readings),
        process=replace(batch.process, theta=theta),
        medium_used=perfused(batch, now),
    )


def decide(
    batch: Batch,
    now: float,
    policy: Policy,
    previous: Plan | None,
    last: Decision | None = None,
    settings: GuardSettings | None = None,
) -> Decision:
    """Plan from the present belief, then let the guard have the last word.

    `previous` is the plan accepted last, `last` the decision in force: its control is what read-backs must answer to.
    A policy that raises or answers garbage yields a failed plan with the reason, never an exception.
    """
    settings = settings or GuardSettings()
    with np.errstate(all="ignore"):
        belief = believe_at(batch, now)
        situation = situate(batch, now, belief)
        grounds = _grounds(batch, situation, last)
        doubt = belief_fault(grounds, settings)
        plan = failed_plan(now, _name(policy), str(doubt)) if doubt else _propose(policy, situation, previous)
        verdict = judge(grounds, plan, previous, lambda p: resimulate(situation, p), settings)
    return _decision(situation, verdict, harvest_fault(grounds, settings), basis_of(batch, belief))


def _propose(policy: Policy, situation: Situation, previous: Plan | None) -> Plan:
    name = _name(policy)
    try:
        plan = policy(situation, previous)
    except Exception as error:  # noqa: BLE001 - a user's policy may raise anything; failure is a value here
        return failed_plan(situation.now, name, f"the policy raised {type(error).__name__}: {error}")
    try:
        return _plain(plan)
    except Exception as error:  # noqa: BLE001 - likewise for whatever it returned
        return failed_plan(situation.now, name, f"the policy returned no usable plan ({type(error).__name__}: {error})")


def _name(policy: Policy) -> str:
    return str(getattr(policy, "name", None) or getattr(policy, "__name__", "policy"))


def _plain(plan: Plan) -> Plan:
    """The plan with every number a float; raises on anything that is not a plan."""
    if not isinstance(plan, Plan):
        raise TypeError(f"a Plan is expected, not {type(plan).__name__}")
    return replace(
        plan,
        issued_at=float(plan.issued_at),
        step=float(plan.step),
        controls=tuple(Control(*(float(v) for v in c)) for c in plan.controls),
        states=tuple(State(*(float(v) for v in s)) for s in plan.states),
        cost=float(plan.cost),
        harvest_at=None if plan.harvest_at is None else float(plan.harvest_at),
        detail=str(plan.detail),
        policy=str(plan.policy),
    )


def failed_plan(now: float, policy: str, detail: str) -> Plan:
    """No plan, and why."""
    return Plan(now, PERIOD, (), (), "failed", math.inf, None, policy, detail)


def _grounds(batch: Batch, situation: Situation, last: Decision | None) -> Grounds:
    belief, process, cell = situation.belief, situation.process, situation.process.theta.cell
    readbacks: dict[str, Readback] = {}
    before: dict[str, float] = {}
    for a in batch.applied:
        if a.actuator in ACTUATORS and a.at <= situation.now + 1e-9:
            readbacks[a.actuator] = Readback(float(a.rate), float(a.at), a.cmd_id is not None)
            if last is None or a.at <= last.at + 1e-9:
                before[a.actuator] = float(a.rate)
    commands: dict[str, Command] = {}
    if last is not None and last.control is not None:
        then = recipe_control(process.recipe, last.at, latest(batch, last.at))
        for name in ACTUATORS:
            either = (getattr(u, name) for u in (last.control, situation.recipe, then))
            corridor = (*either, before.get(name, 0.0))
            commands[name] = Command(min(corridor), max(corridor), last.at, last.valid_until)
    state = health(batch, situation.now)
    return Grounds(
        now=situation.now,
        names=situation.layout.names,
        mean=[float(v) for v in belief.mean],
        cov=belief.cov.tolist(),
        medians={name: float(getattr(cell, name)) for name in situation.layout.parameters},
        readings=situation.readings,
        stale_after={name: s.stale_after for name, s in process.sensors.items()},
        readbacks=readbacks,
        commands=commands,
        applied=[float(v) for v in situation.applied],
        limits=process.limits,
        volume=float(split(belief.mean, situation.layout, cell)[0].volume),
        dose=process.recipe.harvest_cells,
        latest=process.recipe.harvest_latest,
        mu_max=float(cell.mu_max),
        doubted={c: w.why for c, w in batch.watches.items() if w.quarantined or w.why == "unit_slip"},
        nis=state.nis if state.channels else 0.0,
    )


def _decision(situation: Situation, verdict: Verdict, early: Fault | None, basis: str) -> Decision:
    now, plan = situation.now, verdict.plan
    control, harvest, due = None, False, False
    if verdict.accepted:
        high = situation.process.limits
        top = (high.perfusion_max, high.feed_max, high.bleed_max, high.cytokine_dose_max)
        control = Control(*(min(max(v, 0.0), t) for v, t in zip(plan.controls[0], top, strict=True)))
        due = plan.harvest_at is not None and plan.harvest_at <= now + 1e-9
        harvest = due and early is None
    said = [str(f) for f in verdict.faults]
    if control is not None and due and early is not None:
        said = [f"no harvest: {early}", *said]
    if control is None:
        said = ["no override: the edge keeps to its recipe", *said]
    elif plan.status == "shifted":
        said = [f"override: previous {plan.policy} plan, shifted", *said]
    else:
        said = [f"harvest now: {plan.policy} plan" if harvest else f"override: {plan.policy} plan", *said, plan.detail]
    return Decision(now, control, harvest, now + PERIOD + GRACE, plan, basis, tuple(r for r in said if r))


@dataclass(frozen=True, slots=True)
class Session:
    """One batch under control, as a value: what a driver carries from fact to fact."""

    batch: Batch
    clock: float = 0.0  # time of the newest fact [d]
    next_decision: float = PERIOD  # [d]
    plan: Plan | None = None  # accepted last: the warm start, and what a fall-back shifts
    last: Decision | None = None
    ended: bool = False  # harvested, or the batch was ended
    guard: GuardSettings = field(default_factory=GuardSettings)


def receive(session: Session, fact: Fact, policy: Policy) -> tuple[Session, tuple[Decision, ...]]:
    """Take one fact: first every decision that was due by its time, in order, then the fact itself.

    The clock moves to ``max(clock, T)`` with T the fact's `received_at` (measurements) or `at`. Decisions stop once the
    batch has ended, and two days after the recipe's latest harvest; at most `AT_ONCE` are taken, the newest. Raises `twin.evidence.Refused` for a fact that cannot
    enter the evidence; the session is then as it was.
    """
    batch = tell(session.batch, fact)
    told = fact.received_at if isinstance(fact, Measurement) else fact.at
    clock = max(session.clock, told)
    until = min(clock, session.batch.process.recipe.harvest_latest + 2.0)
    decisions: list[Decision] = []
    plan, last, due = session.plan, session.last, session.next_decision
    late = math.floor((until - due) / PERIOD + 1e-6) + 1 - AT_ONCE
    due += PERIOD * max(0, late)
    while not session.ended and due <= until + 1e-9:
        last = decide(session.batch, due, policy, plan, last, session.guard)
        plan = last.plan if last.plan.status in ("solved", "shifted") else None
        decisions.append(last)
        due += PERIOD  # a power of two: no drift
    ended = session.ended or _ends(fact)
    after = replace(session, batch=batch, clock=clock, next_decision=due, plan=plan, last=last, ended=ended)
    return after, tuple(decisions)


def _ends(fact: Fact) -> bool:
    if isinstance(fact, ControlApplied):
        return fact.actuator == "harvest" and fact.rate > 0.0
    return isinstance(fact, Event) and fact.kind == "batch_end"


__all__ = ["PERIOD", "Session", "basis_of", "decide", "failed_plan", "receive", "situate"]
