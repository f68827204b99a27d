"""The safety kernel on plans: gates, harvest, re-simulation, and the verdict."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controllers.guard import (
    Grounds,
    harvest_fault,
    judge,
    plan_fault,
    resimulation_fault,
    shift,
)
from tests.controllers.grounds import BAD, S, U, X, code, faithful, grounds, plan
from twin.bioreactor import Control, State
from twin.evidence import Reading
from twin.process import Limits

# --- plans ---------------------------------------------------------------------------------------------------------


def test_a_sound_plan_passes() -> None:
    assert plan_fault(grounds(), plan()) is None
    assert plan_fault(grounds(), plan(harvest_at=None)) is None


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"status": "failed"}, "unsolved"),
        ({"status": "not_run", "detail": ""}, "unsolved"),
        ({"controls": ()}, "plan_shape"),
        ({"states": (X,)}, "plan_shape"),
        ({"controls": (U,) * 1001, "states": (X,) * 1002}, "plan_shape"),
        ({"issued_at": 3.0}, "plan_time"),
        ({"issued_at": math.nan}, "plan_time"),
        ({"step": 0.0}, "plan_time"),
        ({"step": math.inf}, "plan_time"),
        ({"cost": math.nan}, "plan_cost"),
        ({"cost": math.inf}, "plan_cost"),
        ({"harvest_at": 3.0}, "plan_harvest"),
        ({"harvest_at": math.nan}, "plan_harvest"),
        ({"controls": (U, U._replace(perfusion=1.2), U)}, "plan_step"),
        ({"controls": (U._replace(perfusion=1.1), U, U)}, "plan_step"),
    ],
)
def test_a_plan_that_is_not_one_is_refused(changes: dict[str, object], expected: str) -> None:
    assert code(plan_fault(grounds(), plan(**changes))) == expected


@given(
    st.integers(0, 2), st.sampled_from(Control._fields), st.one_of(BAD, st.floats(601, 1e300), st.floats(-1e300, -1e-3))
)
def test_a_rate_outside_its_limits_is_refused(k: int, actuator: str, rate: float) -> None:
    controls = [U, U, U]
    controls[k] = U._replace(**{actuator: rate})
    assert code(plan_fault(grounds(), plan(controls=tuple(controls)))) == "plan_range"


@given(
    st.integers(0, 3), st.sampled_from(State._fields), st.one_of(BAD, st.floats(2e5, 1e300), st.floats(-1e300, -1e-3))
)
def test_an_impossible_state_is_refused(k: int, name: str, value: float) -> None:
    states = [X, X, X, X]
    states[k] = X._replace(**{name: value})
    assert code(plan_fault(grounds(), plan(states=tuple(states)))) == "plan_state"


# --- harvest -------------------------------------------------------------------------------------------------------


def counted(cells: float, age: float = 0.1, **changes: object) -> Grounds:
    return grounds(readings={"viable_density": Reading(cells, 4.0 - age, 4.0)}, **changes)


@pytest.mark.parametrize(
    ("cells", "age", "expected"),
    [
        (20.0, 0.0, None),
        (15.5, 0.0, None),  # 1.3 times as many are allowed at once
        (15.0, 0.0, "harvest_unsupported"),
        (10.1, 1.0, None),  # grown at mu_max, at most twice as many
        (9.9, 1.9, "harvest_unsupported"),
        (7.0, 0.5, "harvest_unsupported"),
        (25.0, 2.1, "harvest_uncounted"),
        (25.0, -0.1, "harvest_uncounted"),
    ],
)
def test_an_early_harvest_needs_a_fresh_count_that_supports_the_dose(
    cells: float, age: float, expected: str | None
) -> None:
    assert code(harvest_fault(counted(cells, age), S)) == expected


@given(BAD)
def test_nothing_not_finite_supports_a_harvest(value: float) -> None:
    assert code(harvest_fault(counted(value), S)) == "harvest_unsupported"
    for name in ("volume", "dose"):
        assert code(harvest_fault(counted(25.0, **{name: value}), S)) == "harvest_unsupported"
    assert code(harvest_fault(counted(25.0, age=value), S)) == "harvest_uncounted"
    assert code(harvest_fault(counted(1.0, latest=value), S)) in ("harvest_unsupported", None)
    assert code(harvest_fault(counted(9.0, mu_max=value), S)) == "harvest_unsupported"


def test_a_total_count_and_its_viability_support_a_harvest_too() -> None:
    both = {"total_density": Reading(25.0, 3.9, 4.0), "viability": Reading(0.9, 3.9, 4.0)}
    ages = {"total_density": 2.0, "viability": 2.0}
    assert harvest_fault(grounds(readings=both, stale_after=ages), S) is None
    low = {**both, "viability": Reading(0.5, 3.9, 4.0)}
    assert code(harvest_fault(grounds(readings=low, stale_after=ages), S)) == "harvest_unsupported"
    assert code(harvest_fault(grounds(readings={}), S)) == "harvest_uncounted"
    assert code(harvest_fault(counted(25.0, stale_after={}), S)) == "harvest_uncounted"


def test_a_count_that_is_held_back_supports_no_harvest() -> None:
    g = counted(200.0, doubted={"viable_density": "unit_slip"})
    assert str(harvest_fault(g, S)) == "harvest_doubted: the newest viable_density is held back (unit_slip)"
    both = {"total_density": Reading(25.0, 3.9, 4.0), "viability": Reading(0.9, 3.9, 4.0)}
    ages = {"total_density": 2.0, "viability": 2.0}
    assert (
        code(harvest_fault(grounds(readings=both, stale_after=ages, doubted={"viability": "stuck"}), S))
        == "harvest_doubted"
    )


@pytest.mark.parametrize(("now", "expected"), [(13.7, "harvest_uncounted"), (13.75, None), (14.0, None), (14.5, None)])
def test_from_one_period_before_the_latest_day_no_count_is_asked_for(now: float, expected: str | None) -> None:
    assert code(harvest_fault(grounds(now=now, readings={}), S)) == expected


# --- re-simulation -------------------------------------------------------------------------------------------------


def test_a_confirmed_plan_passes_and_a_contradicted_one_does_not() -> None:
    lim = Limits()
    assert resimulation_fault(plan(), (X, X, X, X), lim, S) is None
    assert code(resimulation_fault(plan(), (X, X), lim, S)) == "resimulation"
    other = X._replace(car_positive=6.0)
    assert code(resimulation_fault(plan(), (X, X, other, X), lim, S)) == "resimulation"
    assert resimulation_fault(plan(status="shifted"), (X, X, other, X), lim, S) is None


@given(st.integers(0, 3), st.sampled_from(State._fields), st.one_of(BAD, st.floats(-1e300, -1e-9)), st.booleans())
def test_a_simulation_that_breaks_down_refuses_the_plan(k: int, name: str, value: float, shifted: bool) -> None:
    again = [X, X, X, X]
    again[k] = X._replace(**{name: value})
    p = plan(status="shifted" if shifted else "solved")
    assert code(resimulation_fault(p, again, Limits(), S)) == "resimulation"


@pytest.mark.parametrize(("name", "value"), [("lactate", 30.5), ("ammonia", 6.5), ("glucose", 0.9), ("volume", 1.2)])
def test_a_hard_limit_on_the_way_refuses_the_plan(name: str, value: float) -> None:
    beyond = X._replace(**{name: value})
    states = (X, X, beyond, X)
    fault = resimulation_fault(plan(states=states), states, Limits(volume_max=1.05), S)
    assert code(fault) == "limit"
    assert name in str(fault)


def test_a_state_that_starts_beyond_a_limit_may_stay_but_not_worsen() -> None:
    high = X._replace(lactate=35.0)
    better, worse = X._replace(lactate=33.0), X._replace(lactate=36.5)
    for end, expected in ((better, None), (worse, "limit")):
        states = (high, high, high, end)
        assert code(resimulation_fault(plan(states=states), states, Limits(), S)) == expected


# --- the verdict ---------------------------------------------------------------------------------------------------

OLD = replace(plan(), issued_at=3.75)


def test_a_sound_plan_is_accepted() -> None:
    verdict = judge(grounds(), plan(), None, faithful, S)
    assert verdict == (plan(), True, ())


def test_doubtful_grounds_refuse_even_a_sound_plan_and_its_predecessor() -> None:
    for changes, expected in (
        ({"mean": [math.nan] * 4}, "belief_range"),
        ({"readings": {}}, "stale_viable_density"),
        ({"readbacks": {}}, "readback_perfusion"),
    ):
        verdict = judge(grounds(**changes), plan(), OLD, faithful, S)
        assert (verdict.accepted, verdict.faults[0].code) == (False, expected)
        assert verdict.plan == plan()  # the plan itself is sound: it may warm-start the next


def test_doubtful_grounds_and_an_unsound_plan_give_a_failed_plan() -> None:
    verdict = judge(grounds(readings={}), plan(cost=math.nan), OLD, faithful, S)
    assert (verdict.accepted, verdict.plan.status) == (False, "failed")
    already = judge(grounds(readings={}), plan(status="failed", detail="no"), OLD, faithful, S)
    assert already.plan.detail == "no"


def test_a_failed_solve_falls_back_to_the_last_plan_once_then_lapses() -> None:
    failed = plan(status="failed", controls=(), states=(), detail="infeasible")
    first = judge(grounds(), failed, OLD, faithful, S)
    assert (first.accepted, first.plan.status, first.plan.issued_at) == (True, "shifted", 4.0)
    assert first.plan.controls == OLD.controls[1:]
    second = judge(grounds(now=4.25, readings=_later()), replace(failed, issued_at=4.25), first.plan, faithful, S)
    assert (second.accepted, [f.code for f in second.faults]) == (False, ["unsolved", "lapse"])
    assert second.plan.status == "failed"


def _later() -> dict[str, Reading]:
    return {k: Reading(1.0, 4.2, 4.2) for k in grounds().readings}


def test_without_a_predecessor_a_failed_solve_lapses_at_once() -> None:
    verdict = judge(grounds(), plan(status="failed"), None, faithful, S)
    assert [f.code for f in verdict.faults] == ["unsolved", "lapse"]


def test_a_predecessor_is_held_to_the_same_gates() -> None:
    failed = plan(status="failed")
    souring = lambda p: (*p.states[:-1], X._replace(lactate=31.0))  # noqa: E731
    verdict = judge(grounds(), failed, OLD, souring, S)
    assert [f.code for f in verdict.faults] == ["unsolved", "limit"]
    blind = judge(grounds(readbacks={}), failed, OLD, faithful, S)
    assert [f.code for f in blind.faults] == ["unsolved", "readback_perfusion"]


def test_an_unconfirmed_plan_never_leaves() -> None:
    drifting = lambda p: tuple(x._replace(dead=x.dead * 1.5) for x in p.states)  # noqa: E731
    verdict = judge(grounds(), plan(), None, drifting, S)
    assert (verdict.accepted, verdict.plan.status, verdict.faults[0].code) == (False, "failed", "resimulation")


@pytest.mark.parametrize(
    ("changes", "now"),
    [
        ({"controls": (U,), "states": (X, X)}, 4.25),
        ({"status": "shifted"}, 4.25),
        ({}, 4.0),
        ({}, 4.5),
        ({}, math.nan),
    ],
)
def test_only_a_solved_plan_of_the_last_step_can_be_shifted(changes: dict[str, object], now: float) -> None:
    assert shift(plan(**changes), now) is None
    assert shift(plan(), 4.25) is not None


@given(
    st.lists(st.floats(), min_size=4, max_size=4),
    st.lists(st.floats(), min_size=4, max_size=4),
    st.lists(st.floats(), min_size=13, max_size=13),
    st.floats(),
    st.floats(),
)
def test_whatever_comes_in_only_finite_rates_within_limits_leave(
    mean: list[float], rates: list[float], state: list[float], cost: float, sampled: float
) -> None:
    g = grounds(mean=mean, readings={k: Reading(1.0, sampled, sampled) for k in grounds().readings})
    p = plan(controls=(Control(*rates),) * 3, states=(X, State(*state), X, X), cost=cost)
    verdict = judge(g, p, None, faithful, S)
    if verdict.accepted:
        lim = g.limits
        for rate, top in zip(
            p.controls[0], (lim.perfusion_max, lim.feed_max, lim.bleed_max, lim.cytokine_dose_max), strict=True
        ):
            assert -1e-6 <= rate <= top * (1 + 1e-6) + 1e-6
    else:
        assert verdict.faults
