"""Whole batches: a recipe is the edge alone, a policy acts through overrides, everything is reproducible."""

from __future__ import annotations

from dataclasses import replace

import pytest

from controllers import make_policy
from controllers.loop import Session, receive
from controllers.plan import Decision, Plan, Situation
from simulators import load_scenario, run_closed_loop
from simulators.closed_loop import overrides
from twin.batch import start
from twin.config import ConfigError, load_config, load_recipe
from twin.donors.prior import preset_prior
from twin.estimation.belief import split
from twin.evidence import ControlApplied
from twin.integrate import advance

PROCESS = load_config("car_nk")
SHORT = replace(PROCESS, recipe=replace(PROCESS.recipe, harvest_latest=3.0, harvest_cells=1.3))


class Doubled:
    """Half as much dosing as the recipe, twice its perfusion, harvest on day 2.5."""

    name = "doubled"

    def __call__(self, s: Situation, previous: Plan | None) -> Plan:
        u = s.recipe._replace(perfusion=min(0.3, s.applied.perfusion + 0.1), cytokine_dose=200.0)
        x, cell, _ = split(s.belief.mean, s.layout, s.process.theta.cell)
        states = [x, advance(x, u, s.process.theta._replace(cell=cell), 0.25)]
        return Plan(s.now, 0.25, (u,), tuple(states), "solved", 0.0, max(2.5, s.now), self.name)


def test_a_recipe_is_the_edge_alone() -> None:
    result = run_closed_loop(PROCESS, "cspr_100", donor=5, seed=5)
    assert result.session is None
    assert result.decisions == ()
    assert result.acks == ()
    assert result.passed == result.outcome.passed
    assert 3.0 < result.outcome.medium_vv < 12.0


def test_a_recipe_by_name_by_record_and_as_policy_is_one() -> None:
    results = [
        run_closed_loop(PROCESS, p, donor=2, seed=2).outcome
        for p in ("constant_2", replace(load_recipe("constant_2")), make_policy("constant_2", PROCESS))  # type: ignore[arg-type]
    ]
    assert results[0] == results[1] == results[2]


def test_recipes_differ_on_one_donor() -> None:
    medium = {p: run_closed_loop(PROCESS, p, donor=5, seed=5).outcome.medium_vv for p in ("cspr_50", "constant_2")}
    assert medium["cspr_50"] < 0.5 * medium["constant_2"]


@pytest.fixture(scope="module")
def short() -> object:
    return run_closed_loop(SHORT, Doubled(), donor=5, seed=5)


def test_a_policys_decisions_reach_the_pumps(short: object) -> None:
    r = short
    taken = [d for d in r.decisions if d.control is not None]  # type: ignore[attr-defined]
    assert taken
    commanded = [f for f in r.facts if isinstance(f, ControlApplied) and f.cmd_id is not None]  # type: ignore[attr-defined]
    assert {f.actuator for f in commanded} >= {"perfusion", "cytokine_dose", "harvest"}
    assert min(f.rate for f in commanded if f.actuator == "cytokine_dose") == 200.0
    assert r.outcome.reason == "override"  # type: ignore[attr-defined]
    assert r.outcome.day == pytest.approx(2.5)  # type: ignore[attr-defined]
    assert r.refused == ()  # type: ignore[attr-defined]


def test_the_same_seed_gives_the_same_bytes(short: object) -> None:
    again = run_closed_loop(SHORT, Doubled(), donor=5, seed=5)
    assert repr(again.facts) == repr(short.facts)  # type: ignore[attr-defined]
    assert repr(again.decisions) == repr(short.decisions)  # type: ignore[attr-defined]
    assert again.session is not None
    assert again.session.batch.belief == short.session.batch.belief  # type: ignore[attr-defined]
    for name, column in again.truth.items():
        assert column.tobytes() == short.truth[name].tobytes()  # type: ignore[attr-defined]


def test_replaying_the_facts_takes_every_decision_again(short: object) -> None:
    r = short
    session, replayed = Session(start(r.session.batch.id, SHORT, preset_prior(SHORT))), []  # type: ignore[attr-defined]
    for fact in r.facts:  # type: ignore[attr-defined]
        session, taken = receive(session, fact, Doubled())
        replayed += taken
    assert repr(tuple(replayed)) == repr(r.decisions)  # type: ignore[attr-defined]


def test_decisions_fall_every_six_hours(short: object) -> None:
    at = [d.at for d in short.decisions]  # type: ignore[attr-defined]
    assert at == [0.25 * (k + 1) for k in range(len(at))]
    assert len(at) == 10


def test_on_an_advisory_rig_the_recipe_runs_whatever_the_twin_says() -> None:
    nominal = load_scenario("nominal")
    advisory = replace(nominal, budget=type(nominal.budget)())
    alone = run_closed_loop(SHORT, SHORT.recipe, donor=5, seed=5, scenario=advisory)
    advised = run_closed_loop(SHORT, Doubled(), donor=5, seed=5, scenario=advisory)
    assert advised.acks
    assert not any(a.accepted for a in advised.acks)
    assert advised.outcome == alone.outcome


def test_a_policy_that_fails_leaves_the_recipe_in_charge() -> None:
    def broken(s: Situation, previous: Plan | None) -> Plan:
        raise RuntimeError("no licence")

    alone = run_closed_loop(SHORT, SHORT.recipe, donor=1, seed=1)
    left = run_closed_loop(SHORT, broken, donor=1, seed=1)
    assert all(d.control is None for d in left.decisions)
    assert left.outcome == alone.outcome


def test_a_decision_without_control_asks_for_nothing() -> None:
    plan = Plan(1.0, 0.25, (), (), "failed", 0.0, None, "x")
    assert overrides(Decision(1.0, None, False, 1.3, plan, "00", ("no",)), 1, 1, PROCESS.limits) == ()


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ConfigError):
        run_closed_loop(PROCESS, "guesswork")
    with pytest.raises(ConfigError, match="unknown scenario"):
        run_closed_loop(PROCESS, "cspr_100", scenario="paradise")


@pytest.mark.slow
def test_the_predictive_controller_runs_a_whole_mismatched_batch() -> None:
    result = run_closed_loop(PROCESS, "mpc", donor=3, seed=3)
    assert result.refused == ()
    assert sum(d.control is not None for d in result.decisions) > 0.7 * len(result.decisions)
    assert all(a.accepted for a in result.acks)
    assert result.outcome.medium_vv < 10.0
    assert result.outcome.cqas["viable_cells"] > 15.0
