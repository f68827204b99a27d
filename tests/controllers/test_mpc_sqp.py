"""The SQP: the optimum is IPOPT's, penalties are exact, and whatever fails leaves nothing behind."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from controllers.mpc import condensed, convex, make_mpc, policy
from controllers.mpc.objective import PATH, PATH_SCALE, Economy, limit_vector, path_violations
from controllers.mpc.points import slopes_at, values_at
from controllers.mpc.policy import adapted, by_ipopt, by_sqp, optimum
from controllers.mpc.settings import Prices
from controllers.mpc.sqp import Found, Iterate
from controllers.mpc.stages import Stages, eliminate, residuals
from controllers.mpc.task import Course, make_task, rollout
from controllers.mpc.transcription import MOVE_SCALE, SCALE
from controllers.mpc.tree import nominal, solve_scenarios
from tests.controllers.planning import ACID, DAY10, PROCESS, situation, solved, task
from twin.bioreactor import State, physiology
from twin.config import ConfigError
from twin.gas import osmolality
from twin.process import Target
from twin.sensors import AIR_SATURATION, CHANNELS
from twin.transition import flat


@pytest.mark.parametrize(("x", "h"), [(DAY10, 4), (DAY10, 8), (ACID, 8)])
def test_the_optimum_is_ipopt_s(x: State, h: int) -> None:
    """Another solver on the same equations: its own tolerance is the last digit."""
    found, course = solved(x, h)
    other, _ = by_ipopt(task(x), h, None)
    assert other is not None
    days = task(x).settings.prices.day * h * 0.25
    assert found.cost == pytest.approx(other.total - days, rel=1e-5)
    assert course.moves[:, 0] == pytest.approx(other.course.moves[:, 0], abs=5e-3)


def test_a_target_in_reach_is_met_exactly_and_its_price_is_never_paid() -> None:
    """Exact penalties: beyond the multiplier, the price of a miss changes nothing; below it, the target is missed."""
    want = {t.cqa: t.value for t in nominal(task(), 8)[0].targets}["viable_cells"]
    _, course = solved(DAY10, 8)
    dearer, again = by_sqp(task(target_ln=900.0), 8, None)
    cheap, less = by_sqp(task(target_ln=0.5), 8, None)
    assert again is not None
    assert less is not None
    cells = [float(c.ends[-1, :2].sum()) for c in (course, again, less)]
    assert cells[:2] == pytest.approx([want] * 2, rel=1e-5)
    assert cells[2] < 0.99 * want
    assert dearer.cost == pytest.approx(solved(DAY10, 8)[0].cost, rel=1e-5)
    assert cheap.cost < dearer.cost


def test_a_ceiling_of_osmolality_is_planned_for() -> None:
    """Fresh medium is the saltier here: with a ceiling below what the plan comes to, less of it is perfused."""

    def osmotic(course: Course) -> float:
        ends = State(*course.ends.T)
        return float(np.max(osmolality(ends.glucose, ends.lactate, ends.glutamine, ends.strong_ion)))

    free = solved(DAY10, 8)[1]
    top = osmotic(free) - 2.0
    limits = replace(PROCESS.limits, osmolality_max=top)
    strict, dear = replace(PROCESS, limits=limits), make_mpc(PROCESS, osmolality=100.0).settings
    found, held = by_sqp(make_task(situation(DAY10), strict, dear), 8, None)
    assert found.status == "solved"
    assert held is not None
    assert osmotic(held) < top + 0.05
    assert held.moves[:, 0].sum() != pytest.approx(free.moves[:, 0].sum(), rel=1e-3)


def test_the_oxygen_floor_is_in_the_terms_of_the_probe() -> None:
    """A dense culture draws dissolved oxygen down; the violation is the floor less what the DO sensor would read."""
    dense = DAY10._replace(car_positive=60.0, car_negative=60.0)
    economy = Economy(Prices(), list(limit_vector(replace(PROCESS.limits, oxygen_min=0.09), 0.0)))
    for x in (DAY10, dense):
        phys = physiology(x, PROCESS.theta)
        beyond = path_violations(x, phys, economy)[PATH.index("oxygen")] * PATH_SCALE[PATH.index("oxygen")]
        assert float(beyond) == pytest.approx(
            0.09 - float(CHANNELS["do"].observe(x, phys, 0.0)) / 100.0 * AIR_SATURATION
        )
    assert float(beyond) > 0.0


def test_eliminated_stages_are_newton_s_step() -> None:
    """One step of the linear stages from a course leaves gaps of second order only."""
    t = task()
    course, p = rollout(t, None, 4, 4), flat(t.theta)[:, None]
    limits = limit_vector(PROCESS.limits, 0.05)
    z, x, u = course.middles[None] / SCALE, course.ends[None] / SCALE, course.moves[None] / MOVE_SCALE
    x0, theta = t.x0[None] / SCALE, np.ascontiguousarray(np.tile(p, (1, 8)))

    def at(z: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return np.stack([z, x], axis=2).reshape(-1, 13), np.repeat(u.reshape(-1, 3), 2, axis=0)

    def gaps(z: np.ndarray, x: np.ndarray) -> np.ndarray:
        return residuals(x0, z, x, values_at(*at(z, x), theta, limits)[0].reshape(1, 4, 2, 13), 0.25)

    stages = eliminate(slopes_at(*at(z, x), theta, limits), gaps(z, x), 0.25)
    before = np.abs(gaps(z, x)).max()
    dx, start = np.zeros_like(x), np.zeros((1, 13))
    dz = np.zeros_like(z)
    for k in range(4):
        both = np.concatenate([start, np.zeros((1, 3))], axis=1)[..., None]
        dz[:, k] = (stages.inner_by[:, k] @ both)[..., 0] + stages.inner_gap[:, k]
        dx[:, k] = start = (stages.by[:, k] @ both)[..., 0] + stages.gap[:, k]
    assert np.abs(gaps(z + dz, x + dx)).max() < 0.05 * before


def test_convexity_costs_nothing_along_the_dynamics() -> None:
    """Both routes give the same forms; they are convex; and over steps that keep the dynamics they are those given."""
    rng = np.random.default_rng(0)
    s, n = 2, 4
    h, g = rng.standard_normal((s, n, 16, 16)), rng.standard_normal((s, n, 16))
    h = 0.02 * (h + h.swapaxes(-1, -2))
    stages = Stages(
        0.3 * rng.standard_normal((s, n, 13, 16)), rng.standard_normal((s, n, 13)), *(np.zeros(1),) * 6
    )  # fmt: skip
    rates, held = np.full((s, n, 3), 5.0), np.zeros((s, n, 3), bool)
    made, linear, _ = convex.convexify(stages, h, g, rates, held)
    again, too, turned = convex.convexify(stages, h, g, rates, held, compiled=False)
    assert turned == 0
    assert made == pytest.approx(again, abs=1e-9)
    assert linear == pytest.approx(too, abs=1e-9)
    assert np.linalg.eigvalsh(made).min() > -1e-9

    def worth(u: np.ndarray, full: bool) -> float:
        total, x, before = 0.0, np.zeros((s, 13, 1)), np.zeros((s, 3, 1))
        for k in range(n):
            now = u[:, k, :, None]
            if full:
                v = np.concatenate([before, x, now], axis=1)
                total += float((0.5 * v.swapaxes(1, 2) @ made[:, k] @ v).sum() + (linear[:, k] * v[..., 0]).sum())
            else:
                v = np.concatenate([x, now], axis=1)
                total += float((0.5 * v.swapaxes(1, 2) @ h[:, k] @ v).sum() + (g[:, k] * v[..., 0]).sum())
                total += float(5.0 * ((now - before) ** 2).sum())
            x = stages.by[:, k] @ np.concatenate([x, now], axis=1) + stages.gap[:, k, :, None]
            before = now
        return total

    nothing = np.zeros((s, n, 3))
    for _ in range(3):
        u = rng.standard_normal((s, n, 3))
        assert worth(u, True) - worth(nothing, True) == pytest.approx(worth(u, False) - worth(nothing, False), rel=1e-6)


def test_without_a_compiler_the_plan_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    _, course = solved(DAY10, 4)
    monkeypatch.setattr(convex, "_entry", lambda: None)
    monkeypatch.setattr(condensed, "_entry", lambda: None)
    _, other = by_sqp(task(), 4, None)
    assert other is not None
    assert other.moves == pytest.approx(course.moves, abs=1e-4)


def test_the_same_problem_gives_the_same_bytes() -> None:
    found, _ = solved(DAY10, 8)
    again, _ = by_sqp(task(), 8, None)
    assert found.at is not None
    assert again.at is not None
    assert [a.tobytes() for a in again.at] == [a.tobytes() for a in found.at]


def test_what_is_not_solved_leaves_nothing_behind() -> None:
    t = task()
    start = rollout(t, None, 4, 4)
    hurried = solve_scenarios(t, 4, nominal(t, 4), start, max_iter=1)
    late = solve_scenarios(t, 4, nominal(t, 4), start, late=lambda: True)
    broken = solve_scenarios(t, 4, nominal(t, 4), start._replace(ends=start.ends * np.nan))
    assert [f.status for f in (hurried, late, broken)] == ["iteration_limit", "iteration_limit", "not_finite"]
    assert all(f.at is None and np.isnan(f.cost) for f in (hurried, late, broken))
    assert "out of time" in late.detail


def test_the_ladder_ends_at_ipopt_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    found, words = optimum(task(), 4, None)
    assert found is not None
    assert words.startswith("SQP cold: SQP, ")
    failed = Found("diverged", "SQP: no descent", float("nan"), None, 3)
    monkeypatch.setattr(policy, "solve_scenarios", lambda *_, **__: failed)
    fallen, words = optimum(task(), 4, None)
    assert fallen is not None
    assert words.startswith("SQP cold: SQP: no descent; IPOPT Solve")
    assert fallen.total == pytest.approx(found.total, rel=1e-5)
    nothing, words = optimum(task(), 4, None, late=lambda: True)
    assert nothing is None
    assert "no time for IPOPT" in words


def test_a_real_time_iteration_comes_close_to_the_optimum() -> None:
    s = situation(DAY10)
    plan = make_mpc(PROCESS)(s, None)
    following = situation(State(*np.array(plan.states[1]) * 1.01), 10.25)
    following = replace(following, applied=plan.controls[0])
    quick = make_mpc(PROCESS, real_time=True)(following, plan)
    full = make_mpc(PROCESS)(following, plan)
    assert "of a real-time iteration" in quick.detail  # a full step would overshoot
    assert quick.status == "solved"
    assert quick.controls[0].perfusion == pytest.approx(full.controls[0].perfusion, abs=0.1)


def test_a_real_time_iteration_that_only_costs_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step to where nothing is fed: dearer at every length, so the search goes on as without it."""
    s = situation(DAY10)
    plan = make_mpc(PROCESS)(s, None)
    wrong = rollout(task(), np.zeros((8, 3)), 8, 8)
    monkeypatch.setattr(policy, "by_sqp", lambda *_, **__: (Found("solved", "step", 0.0, None, 1), wrong))
    moves = np.array([[u.perfusion, u.feed, u.cytokine_dose] for u in plan.controls])[:8]
    assert policy.iterated(task(), 8, moves, None) is None


def test_more_futures_that_cannot_be_solved_are_said_to_be_no_work_for_ipopt(monkeypatch: pytest.MonkeyPatch) -> None:
    failed = Found("diverged", "SQP: no descent", float("nan"), None, 3)
    monkeypatch.setattr(policy, "solve_scenarios", lambda *_, **__: failed)
    nothing, words = optimum(task(scenarios=9), 4, None)
    assert nothing is None
    assert "IPOPT plans for one future" in words


def test_a_course_is_cut_and_continued() -> None:
    t = task()
    course = rollout(t, None, 4, 4)
    shorter, longer = adapted(t, course, 3), adapted(t, course, 6)
    assert [len(c.moves) for c in (shorter, longer)] == [3, 6]
    assert longer.moves[4:, 2] == pytest.approx(course.moves[3, 2])
    assert adapted(t, longer, 4).ends == pytest.approx(course.ends)


@pytest.mark.parametrize(
    ("settings", "field"),
    [({"solver": "ipopt", "scenarios": 9}, "solver"), ({"chance": 0.9, "scenarios": 9}, "chance"),
     ({"chance": 0.9, "solver": "ipopt"}, "chance")],
)  # fmt: skip
def test_settings_that_mean_nothing_together_are_refused(settings: dict[str, Any], field: str) -> None:
    with pytest.raises(ConfigError, match=f"mpc: field {field}"):
        make_mpc(PROCESS, **settings)


def test_where_no_plan_is_found_for_all_futures_the_plan_for_one_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    real = policy.solve_scenarios
    failed = Found("diverged", "SQP: no descent", float("nan"), None, 3)
    monkeypatch.setattr(policy, "solve_scenarios", lambda *a, **k: real(*a, **k) if len(a[2]) == 1 else failed)
    plan = make_mpc(PROCESS, scenarios=9)(situation(DAY10), None)
    assert plan.status == "solved"
    assert "for one future with the usual margins: SQP" in plan.detail


def test_a_real_time_iteration_of_nine_futures_is_priced_with_their_own_moves() -> None:
    """From the optimum it stays there, at the optimum's own price: later moves are each future's own."""
    t, h = task(scenarios=9), 6
    found, course = by_sqp(t, h, None)
    assert course is not None
    quick = policy.iterated(t, h, course.moves, None)
    assert quick is not None
    best = found.cost + t.settings.prices.day * h * 0.25
    assert quick.total == pytest.approx(best, rel=0.1)


def test_a_ceiling_of_cells_is_no_dose_to_give_up() -> None:
    """Nothing asks for cells here, so no dose can be out of reach."""
    ceiling = replace(PROCESS, targets=(Target("viable_cells", "at_most", 8.0, "1e9 cells"),))
    t = make_task(situation(DAY10), ceiling, make_mpc(ceiling).settings)
    best, _ = optimum(t, 4, None)
    assert best is not None
    assert policy.out_of_reach(t, best) == -np.inf


@pytest.mark.parametrize("settings", [{"solver": "magic"}, {"scenarios": 5}, {"robust": -1}])
def test_solvers_and_trees_that_are_not_there_are_refused_by_name(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"mpc: field {next(iter(settings))}"):
        make_mpc(PROCESS, **settings)


def test_an_iterate_is_of_physical_units() -> None:
    found, course = solved(DAY10, 4)
    assert isinstance(found.at, Iterate)
    assert found.at.moves[0] == pytest.approx(course.moves)
    assert course.moves[:, 2].min() >= 180.0 - 1e-6
