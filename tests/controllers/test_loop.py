"""Decide and the session: deterministic, never an exception, never a control without grounds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import controllers.loop as loop
from controllers import Plan, Policy, Situation, make_policy
from controllers.loop import GRACE, PERIOD, Session, basis_of, decide, receive, situate
from controllers.policies import RecipePolicy
from controllers.rollout import resimulate
from twin.batch import Batch, apply, assimilate, believe_at, start
from twin.bioreactor import Control, State
from twin.config import load_config
from twin.donors.prior import preset_prior
from twin.estimation.belief import Belief
from twin.evidence import ControlApplied, Event, Fact, Measurement, Refused
from twin.transition import advance_many, flat

PROCESS = load_config("car_nk")
CSPR = make_policy("cspr", PROCESS)


@cache
def facts(days: float = 3.0) -> tuple[Fact, ...]:
    """What an edge on its own recipe would report of a nominal donor: read-backs every 6 h, samples twice a day."""
    rng, x = np.random.default_rng(5), np.array(PROCESS.initial, dtype=float)
    theta, told = flat(PROCESS.theta)[:, None], []
    u = Control(0.0, 0.0, 0.0, 300.0)
    for k in range(int(days * 4) + 1):
        t = k * 0.25
        state = State(*x.tolist())
        pumps = ("perfusion", "feed", "cytokine_dose")
        told += [ControlApplied(f"{name}-{k}", t, name, float(getattr(u, name))) for name in pumps]
        if k % 2 == 0:
            for channel in ("viable_density", "glucose", "lactate"):
                value = state.viable if channel == "viable_density" else getattr(state, channel)
                noisy = float(value * np.exp(0.04 * rng.standard_normal()))
                told.append(Measurement(f"{channel}-{k}", channel, noisy, t, t + 0.05))
        u = Control(min(2.0, 0.1 * float(state.viable)), 0.0, 0.0, 300.0)
        x = advance_many()(x[:, None], np.array(u), theta, 0.25)[:, 0]
    return tuple(sorted(told, key=lambda f: f.received_at if isinstance(f, Measurement) else f.at))


@cache
def batch(days: float = 3.0) -> Batch:
    b = start("b1", PROCESS, preset_prior(PROCESS))
    for f in facts(days):
        b = assimilate(b, f) if isinstance(f, Measurement) else apply(b, f)  # type: ignore[arg-type]
    return b


def run(policy: Policy, told: tuple[Fact, ...]) -> Iterator[loop.Decision]:
    session = Session(start("b1", PROCESS, preset_prior(PROCESS)))
    for fact in told:
        session, decisions = receive(session, fact, policy)
        yield from decisions


# --- decide --------------------------------------------------------------------------------------------------------


def test_a_recipe_as_policy_goes_through_the_guard() -> None:
    d = decide(batch(), 3.1, CSPR, None)
    count = [f for f in facts() if isinstance(f, Measurement) and f.channel == "viable_density"][-1].value
    assert d.control is not None
    assert d.control.perfusion == pytest.approx(0.1 * count)
    assert d.control.cytokine_dose == 300.0
    assert d.reasons[0] == "override: cspr_100 plan"
    assert (d.at, d.valid_until, d.harvest) == (3.1, 3.1 + PERIOD + GRACE, False)
    assert len(d.basis) == 64


@cache
def near_the_end() -> Batch:
    """Three days in, on a recipe that ends on day 5: a short horizon."""
    return replace(batch(), process=replace(PROCESS, recipe=replace(PROCESS.recipe, harvest_latest=5.0)))


def test_the_mpc_decides_and_says_why() -> None:
    d = decide(near_the_end(), 3.1, make_policy("mpc", near_the_end().process, give_up=100), None)
    assert d.control is not None
    assert d.plan.status == "solved"
    assert d.control == pytest.approx(d.plan.controls[0], abs=1e-6)
    assert d.plan.harvest_at == pytest.approx(5.1, abs=0.25)
    assert "harvest on day" in d.reasons[1]


def test_where_the_dose_is_out_of_reach_the_mpc_spends_what_the_recipe_would() -> None:
    b = near_the_end()
    d = decide(b, 3.1, make_policy("mpc", b.process), None)
    assert "out of reach" in d.reasons[1] and "sd short" in d.reasons[1]
    own = RecipePolicy(b.process.recipe)(situate(b, 3.1, believe_at(b, 3.1)), None)
    assert d.plan.controls == own.controls and d.plan.policy == "mpc"


def test_the_same_batch_gives_the_same_decision_byte_for_byte() -> None:
    b = near_the_end()
    one, two = (repr(decide(b, 3.1, make_policy("mpc", b.process), None)) for _ in range(2))
    assert one == two


def test_the_basis_names_belief_and_evidence() -> None:
    b = batch()
    at = believe_at(b, 3.1)
    moved = Belief(at.time, at.mean + 1e-15, at.cov)
    corrected = replace(b, evidence=(*b.evidence[:-1], replace(b.evidence[-1], version=2)))
    bases = {basis_of(b, at), basis_of(b, moved), basis_of(corrected, at), basis_of(b, believe_at(b, 3.2))}
    assert len(bases) == 4
    assert basis_of(b, believe_at(b, 3.1)) == basis_of(b, at)


class Raises:
    name = "raises"

    def __call__(self, situation: Situation, previous: Plan | None) -> Plan:
        raise ZeroDivisionError("by design")


class Answers:
    name = "answers"

    def __init__(self, answer: Any) -> None:
        self.answer = answer

    def __call__(self, situation: Situation, previous: Plan | None) -> Plan:
        answer: Any = self.answer(situation) if callable(self.answer) else self.answer
        return answer


def _plan(s: Situation, **changes: Any) -> Plan:
    return replace(CSPR(s, None), **changes)


@pytest.mark.parametrize(
    ("policy", "word"),
    [
        (Raises(), "ZeroDivisionError"),
        (Answers(None), "a Plan is expected"),
        (Answers("a plan"), "a Plan is expected"),
        (Answers(lambda s: _plan(s, controls=("x",))), "no usable plan"),
        (Answers(lambda s: _plan(s, controls=None)), "no usable plan"),
        (Answers(lambda s: _plan(s, cost="dear")), "no usable plan"),
        (Answers(lambda s: _plan(s, states=())), "plan_shape"),
        (Answers(lambda s: _plan(s, controls=(Control(float("nan")),), states=(s.process.initial,) * 2)), "plan_range"),
        (Answers(lambda s: _plan(s, controls=(Control(1e6),), states=(s.process.initial,) * 2)), "plan_range"),
        (Answers(lambda s: _plan(s, states=(s.process.initial,) * len(CSPR(s, None).states))), "resimulation"),
    ],
)
def test_a_policy_that_misbehaves_becomes_a_failed_plan_with_a_reason(policy: Policy, word: str) -> None:
    d = decide(batch(), 3.1, policy, None)
    assert (d.control, d.harvest, d.plan.status) == (None, False, "failed")
    assert d.reasons[0].startswith("no override")
    assert any(word in r for r in d.reasons)


@pytest.mark.parametrize("slip", [float("nan"), float("inf"), -float("inf"), np.log(1e6), -np.log(1e8)])
@pytest.mark.parametrize("coordinate", ["viable", "lactate", "mu_max"])
def test_a_bad_belief_gives_no_control_and_a_reason(
    monkeypatch: pytest.MonkeyPatch, slip: float, coordinate: str
) -> None:
    def spoiled(b: Batch, t: float) -> Belief:
        belief = believe_at(b, t)
        mean = belief.mean.copy()
        mean[b.layout.index(coordinate)] += slip
        return Belief(belief.time, mean, belief.cov)

    monkeypatch.setattr(loop, "believe_at", spoiled)
    d = decide(batch(), 3.1, CSPR, CSPR(loop.situate(batch(), 3.0, believe_at(batch(), 3.0)), None))
    assert (d.control, d.harvest) == (None, False)
    assert d.reasons[1].startswith("belief_")


def test_an_impossible_belief_is_not_even_planned_from(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[float] = []

    def policy(situation: Situation, previous: Plan | None) -> Plan:
        asked.append(situation.now)
        return CSPR(situation, previous)

    assert decide(batch(), 3.1, policy, None).control is not None
    monkeypatch.setattr(loop, "believe_at", lambda b, t: Belief(t, np.full(b.layout.size, 50.0), np.eye(b.layout.size)))
    d = decide(batch(), 3.1, policy, None)
    assert (d.control, d.plan.status, d.plan.policy, asked) == (None, "failed", "policy", [3.1])


def test_stale_counts_and_silent_pumps_give_no_control() -> None:
    stale = decide(batch(), 5.5, CSPR, None)
    assert stale.control is None
    assert stale.reasons[1].startswith("stale_viable_density")
    silent = decide(batch(), 3.6, CSPR, None)
    assert silent.control is None
    assert silent.reasons[1].startswith("readback_perfusion")


def test_a_pump_that_disobeys_gives_no_control() -> None:
    b = batch()
    first = decide(b, 3.05, Answers(lambda s: _lifted(s, 0.5)), None)
    assert first.control is not None
    obeyed, clogged = (apply(b, ControlApplied("answer", 3.06, "perfusion", rate, "cmd-1")) for rate in (0.5, 0.0))
    assert decide(obeyed, 3.1, CSPR, None, first).control is not None
    refused = decide(clogged, 3.1, CSPR, None, first)
    assert refused.control is None
    assert refused.reasons[1].startswith("mismatch_perfusion")


def _lifted(s: Situation, by: float) -> Plan:
    """A plan of one step, `by` VVD above the pumps, with states that the model confirms."""
    base = CSPR(s, None)
    u = base.controls[0]._replace(perfusion=s.applied.perfusion + by)
    draft = replace(base, controls=(u,), states=base.states[:2], harvest_at=None)
    return replace(draft, states=tuple(resimulate(s, draft)))


def test_a_failed_plan_shifts_the_accepted_one_once() -> None:
    accepted = decide(batch(), 2.75, CSPR, None)
    assert accepted.plan.status == "solved"
    first = decide(batch(), 3.0, Raises(), accepted.plan, accepted)
    assert (first.plan.status, first.control) == ("shifted", accepted.plan.controls[1])
    assert "shifted" in first.reasons[0]
    assert any("ZeroDivisionError" in r for r in first.reasons)
    second = decide(batch(), 3.25, Raises(), first.plan, first)
    assert (second.plan.status, second.control) == ("failed", None)


def test_a_recipe_that_never_ends_is_planned_for_a_fortnight() -> None:
    endless = replace(PROCESS, recipe=replace(PROCESS.recipe, harvest_latest=1000.0, harvest_cells=1e9))
    s = replace(loop.situate(batch(), 3.1, believe_at(batch(), 3.1)), process=endless)
    plan = make_policy("cspr", endless)(s, None)
    assert (len(plan.controls), plan.harvest_at) == (56, None)


def test_the_harvest_is_announced() -> None:
    due = replace(PROCESS, recipe=replace(PROCESS.recipe, harvest_latest=3.0))
    b = replace(batch(), process=due)
    d = decide(b, 3.0, make_policy("cspr", due), None)
    assert d.harvest
    assert d.reasons[0].startswith("harvest now")


class HarvestsNow:
    """The recipe's proposal, with the harvest at once."""

    name = "hasty"

    def __call__(self, s: Situation, previous: Plan | None) -> Plan:
        return replace(CSPR(s, previous), harvest_at=s.now)


def test_a_harvest_that_no_count_supports_is_held_back_and_the_control_kept() -> None:
    d = decide(batch(), 3.1, HarvestsNow(), None)
    assert (d.harvest, d.control is not None) == (False, True)
    assert any("harvest_unsupported: " in r for r in d.reasons)
    count = [f for f in facts() if isinstance(f, Measurement) and f.channel == "viable_density"][-1].value
    low = replace(PROCESS, recipe=replace(PROCESS.recipe, harvest_cells=count))
    assert decide(replace(batch(), process=low), 3.1, HarvestsNow(), None).harvest


# --- the session ---------------------------------------------------------------------------------------------------


def test_decisions_fall_due_every_six_hours_and_precede_the_fact_that_reveals_them() -> None:
    decisions = list(run(CSPR, facts()))
    assert [d.at for d in decisions] == [0.25 * k for k in range(1, 1 + len(decisions))]
    assert decisions[-1].at == 3.0
    seen = Session(start("b1", PROCESS, preset_prior(PROCESS)))
    late = Measurement("late", "viable_density", 0.5, 0.1, 1.0)
    after, made = receive(seen, late, CSPR)
    assert [d.at for d in made] == [0.25, 0.5, 0.75, 1.0]
    assert all(d.control is None for d in made)  # nothing was known yet when they fell due
    assert (after.clock, after.next_decision, len(after.batch.evidence)) == (1.0, 1.25, 1)


def test_the_same_facts_give_the_same_decisions() -> None:
    one, two = ([repr(d) for d in run(CSPR, facts())] for _ in range(2))
    assert one == two
    assert any("override" in d for d in one)


def test_a_refused_fact_leaves_the_session_as_it_was() -> None:
    session = Session(batch(), clock=3.0, next_decision=3.25)
    with pytest.raises(Refused):
        receive(session, Measurement("bad", "lactate", float("nan"), 3.3, 3.3), CSPR)
    with pytest.raises(Refused):
        receive(session, ControlApplied("bad", 4.0, "warp", 1.0), CSPR)
    assert (session.clock, session.next_decision) == (3.0, 3.25)


def test_an_old_fact_does_not_turn_the_clock_back() -> None:
    session = Session(batch(), clock=3.0, next_decision=3.25)
    after, made = receive(session, ControlApplied("old", 1.0, "bleed", 0.0), CSPR)
    assert (after.clock, after.next_decision, made) == (3.0, 3.25, ())


@pytest.mark.parametrize("fact", [ControlApplied("h", 3.1, "harvest", 1.0), Event("e", "batch_end", 3.1)])
def test_after_the_end_nothing_is_decided(fact: Fact) -> None:
    ended, made = receive(Session(batch(), clock=3.0, next_decision=3.25), fact, CSPR)
    assert ended.ended
    assert made == ()
    _, more = receive(ended, ControlApplied("x", 4.0, "perfusion", 0.0), CSPR)
    assert more == ()


def test_a_fact_from_a_runaway_clock_does_not_ask_for_endless_decisions() -> None:
    session = Session(batch(), clock=3.0, next_decision=3.25)
    after, made = receive(session, ControlApplied("future", 9000.0, "bleed", 0.0), CSPR)
    assert made[-1].at == PROCESS.recipe.harvest_latest + 2.0
    assert len(made) == loop.AT_ONCE  # the newest of those that fell due
    assert made[0].at == made[-1].at - (loop.AT_ONCE - 1) * PERIOD
    assert (after.clock, after.next_decision) == (9000.0, made[-1].at + PERIOD)
    assert all(d.control is None for d in made)  # and none of them on stale grounds
    _, few = receive(session, ControlApplied("later", 3.0 + loop.AT_ONCE * PERIOD, "bleed", 0.0), CSPR)
    assert [d.at for d in few] == [3.25 + k * PERIOD for k in range(loop.AT_ONCE)]


def test_no_clock_no_randomness_no_input_or_output_in_the_house() -> None:
    forbidden = ("import time", "import random", "import logging", "open(", "print(", "datetime", "default_rng()")
    folder = Path(loop.__file__).parent
    for path in sorted(folder.rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        assert not [word for word in forbidden if word in text], path.name
