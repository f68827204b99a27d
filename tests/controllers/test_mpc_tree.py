"""Several futures under one plan: what they share, what they cost, and which they are."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from controllers.mpc import policy
from controllers.mpc.sqp import Iterate, solve_sqp
from controllers.mpc.task import cost_now, rollout
from controllers.mpc.transcription import MOVE_SCALE
from controllers.mpc.tree import Scenario, belief_scenarios, nominal, price, problem_of, solve_scenarios
from tests.controllers.planning import DAY10, solved, task
from twin.process import Target


def test_identical_scenarios_are_the_nominal_problem() -> None:
    t, h = task(), 4
    start = rollout(t, None, h, h)
    one = nominal(t, h)
    alone = solve_scenarios(t, h, one, start)
    assert alone.at is not None
    assert solved(DAY10, h)[0].cost == alone.cost
    for robust in (1, h):
        three = solve_scenarios(t, h, [replace(one[0], weight=w) for w in (1.0, 2.0, 5.0)], start, robust=robust)
        assert three.at is not None
        assert three.cost == pytest.approx(alone.cost, rel=1e-6)
        assert three.at.moves[:, :, 0] == pytest.approx(np.tile(alone.at.moves[:, :, 0], (3, 1)), abs=2e-3)


def test_scenarios_share_their_first_moves_and_differ_after() -> None:
    t, h = task(scenarios=9, robust=2), 8
    start = rollout(t, None, h, h)
    scenarios = belief_scenarios(t, h, 9)
    assert sum(s.weight for s in scenarios) == pytest.approx(1.0)
    assert scenarios[0].x0 == pytest.approx(t.x0)
    found = solve_scenarios(t, h, scenarios, start, robust=2)
    assert found.status == "solved"
    assert found.at is not None
    u = found.at.moves / MOVE_SCALE
    assert np.ptp(u[:, :2], axis=0).max() < 1e-6
    assert np.ptp(u[:, 2:], axis=0).max() > 1e-3
    spread = found.at.ends[:, -1, 0]
    assert spread.min() < spread[0] < spread.max()


def test_gauss_hermite_points_have_the_belief_s_variance_where_it_counts() -> None:
    """Along the directions that are kept: the spread of ln cells now over the scenarios is not above the belief's."""
    t = task()
    points = belief_scenarios(t, 4, 27)
    assert len(points) == 27
    w = np.array([p.weight for p in points])
    ln = np.log(np.array([p.x0[:2].sum() for p in points]))
    assert w @ ln == pytest.approx(np.log(t.x0[:2].sum()), abs=1e-9)
    assert 0.5 * 0.03 < np.sqrt(w @ (ln - w @ ln) ** 2) < 1.001 * 0.03


def test_27_scenarios_spread_viability_too() -> None:
    """Three directions are three: the third is not of rounding."""
    t = task()
    directions = np.array([np.log(p.x0) for p in belief_scenarios(t, 4, 27)]) - np.log(t.x0)
    assert np.linalg.svd(directions, compute_uv=False)[2] > 1e-3


def test_what_a_plan_costs_does_not_hang_on_where_the_search_began() -> None:
    """Harvests can be compared only if J(h) is a function of h."""
    t, h = task(scenarios=9), 6
    gentle, hard = (rollout(t, np.tile([u, 0.0, 300.0], (h, 1)), h, h) for u in (0.2, 1.0))
    scenarios = belief_scenarios(t, h, 9)
    costs = [solve_scenarios(t, h, scenarios, start).cost for start in (gentle, hard)]
    assert costs[0] == pytest.approx(costs[1], rel=2e-4)
    later = belief_scenarios(t, h + 2, 9)
    assert all(a.x0 == pytest.approx(b.x0, rel=1e-12) for a, b in zip(scenarios, later, strict=True))


def test_scenarios_that_begin_apart_share_their_first_moves_all_the_same() -> None:
    t, h = task(scenarios=9, robust=2), 6
    problem = problem_of(t, h, belief_scenarios(t, h, 9), rollout(t, None, h, h), 2)
    course = rollout(t, None, h, h)
    moves = np.tile(course.moves, (9, 1, 1)) * np.linspace(0.6, 1.0, 9)[:, None, None]
    start = Iterate(moves, np.tile(course.middles, (9, 1, 1)), np.tile(course.ends, (9, 1, 1)))
    for once in (True, False):
        found = solve_sqp(problem, start, once=once)
        assert found.at is not None
        assert np.ptp(found.at.moves[:, :2] / MOVE_SCALE, axis=0).max() < 1e-6


def test_a_plan_is_priced_as_the_solver_prices_it() -> None:
    found, course = solved(DAY10, 8)
    simulated = rollout(task(), course.moves, 8, 8)
    assert price(task(), 8, nominal(task(), 8), simulated.moves) == pytest.approx(found.cost, rel=5e-3)  # collocated


def test_waiting_is_weighed_over_the_scenarios() -> None:
    """Where every future is the mean, harvesting now costs what it costs the mean; spread futures miss more."""
    sure = replace(task(scenarios=9), belief=replace(task().belief, cov=1e-16 * task().belief.cov))
    alone = sum(w.weight * cost_now(sure, w.x0, w.targets) for w in belief_scenarios(sure, 0, 9))
    assert policy.waiting(sure) == pytest.approx(alone)
    assert policy.waiting(sure) == pytest.approx(
        cost_now(sure, None, belief_scenarios(sure, 0, 9)[0].targets), rel=1e-6
    )
    assert policy.waiting(task(scenarios=9)) > policy.waiting(sure) - 1e-9


def test_scenarios_that_cannot_be_are_refused() -> None:
    t = task()
    start = rollout(t, None, 4, 4)
    one = nominal(t, 4)[0]
    with pytest.raises(ValueError, match="at least one"):
        solve_scenarios(t, 4, [], start)
    with pytest.raises(ValueError, match="positive weight"):
        solve_scenarios(t, 4, [replace(one, weight=0.0)], start)
    other: Scenario = replace(one, targets=(Target("viability", "at_least", 0.8, "-"),))
    with pytest.raises(ValueError, match="same kinds"):
        solve_scenarios(t, 4, [one, other], start)
