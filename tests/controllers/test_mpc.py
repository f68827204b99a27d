"""The MPC: its plan is what the simulator does, its status is typed, and odd states end in no plan, never in a bad one."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import casadi as ca
import numpy as np
import pytest

from controllers.guard import GuardSettings, resimulation_fault
from controllers.mpc import Mpc, make_mpc
from controllers.mpc.objective import N_PATH
from controllers.mpc.policy import optimum, search
from controllers.mpc.solver import SIZES, Compiled, compiled, size_for, solve
from controllers.mpc.task import Task, bounds, ceilings, make_task, parameters, rollout, starting_point, strict_targets
from controllers.mpc.transcription import SCALE, pack, radau, unpack
from controllers.plan import Plan, Situation
from controllers.recipes import recipe_schedule
from controllers.rollout import resimulate
from twin.bioreactor import Control, State, to_coordinates
from twin.config import ConfigError, load_config
from twin.estimation.belief import Belief, Layout
from twin.integrate import advance
from twin.process import Process, Target

PROCESS = load_config("car_nk")
LAYOUT = Layout(("mu_max", "Y_LG"), ())
DAY10 = State(6.5, 6.0, 1.2, 14.0, 15.0, 3.5, 2.0, 130.0, 11.0, 0.1, 16.0, 0.99, 1.0)
HELD = Control(0.8, 0.0, 0.0, 300.0)


def situation(
    x: State, now: float, *, applied: Control = HELD, used: float = 3.0, sd: float = 0.03, process: Process = PROCESS
) -> Situation:
    cell = process.theta.cell
    with np.errstate(all="ignore"):
        mean = np.log(np.array([*to_coordinates(x), cell.mu_max, cell.Y_LG], dtype=float))
    recipe = recipe_schedule(process.recipe)(now, x)
    return Situation(now, Belief(now, mean, np.eye(mean.size) * sd**2), LAYOUT, {}, applied, recipe, process, used)


def mpc(**settings: object) -> Mpc:
    return make_mpc(PROCESS, **settings)


@cache
def usual() -> tuple[Situation, Plan]:
    s = situation(DAY10, 10.0)
    return s, mpc()(s, None)


def task(x: State = DAY10, now: float = 10.0, **settings: object) -> Task:
    policy = mpc(**settings)
    return make_task(situation(x, now), PROCESS, policy.settings)


# --- the transcription ---------------------------------------------------------------------------------------------


def test_the_radau_basis_differentiates_quadratics_exactly() -> None:
    tau = np.array([0.0, *ca.collocation_points(2, "radau")])
    for power in range(3):
        values, slopes = tau**power, power * tau ** max(power - 1, 0)
        assert values @ radau(2) == pytest.approx(slopes, abs=1e-12)


def test_pack_and_unpack_are_inverse() -> None:
    rng = np.random.default_rng(0)
    parts = (rng.random((8, 3)), rng.random((8, 13)), rng.random((8, 13)), rng.random((8, N_PATH)), rng.random(5))
    for given, got in zip(parts, unpack(pack(*parts), 8), strict=True):
        assert got == pytest.approx(given)


def test_a_simulated_course_nearly_solves_the_collocation_equations() -> None:
    """The rollout by RK4 leaves residuals of the order of the collocation error only: same model, same units, same grid."""
    t = task()
    targets = strict_targets(t, 8)
    course = rollout(t, None, 8, 8)
    program = compiled(8, tuple((g.cqa, g.sense) for g in targets), 80).programme
    residual = ca.Function("g", [program.x, program.p], [program.g])
    g = np.asarray(residual(starting_point(t, course, 8, targets), parameters(t, 8, 8, targets))).ravel()
    equations = program.lbg == 0.0
    assert np.abs(g[equations]).max() < 5e-3  # scaled states; a wrong unit or sign gives residuals of order one
    assert g[~equations].max() < 1e-9  # slacks make it feasible


@pytest.mark.parametrize(
    ("x", "now", "used"),
    [
        (DAY10, 10.0, 3.0),
        pytest.param(PROCESS.initial, 0.25, 0.0, marks=pytest.mark.slow),  # builds the longest programme
        (DAY10._replace(glucose=0.8, glutamine=0.05), 10.0, 3.0),  # nearly depleted: the stiff corner
        (DAY10._replace(lactate=29.0, strong_ion=4.0), 11.0, 5.0),
    ],
)
def test_the_plan_is_what_the_simulator_does(x: State, now: float, used: float) -> None:
    policy = mpc()
    s = situation(x, now, used=used, applied=HELD if now > 1 else Control(0.0, 0.0, 0.0, 300.0))
    plan = policy(s, None)
    assert plan.status == "solved"
    simulated, theta = x, PROCESS.theta
    ion = State._fields.index("strong_ion")
    for control, planned in zip(plan.controls, plan.states[1:], strict=True):
        simulated = advance(simulated, control, theta, plan.step)
        a, b = np.array(simulated, dtype=float), np.array(planned)
        gaps = np.abs(np.log((a + 0.05) / (b + 0.05)))
        assert gaps[ion] < 0.25  # the base pump switches within a move
        assert np.delete(gaps, ion).max() < 0.02
    assert resimulation_fault(plan, resimulate(s, plan), PROCESS.limits, GuardSettings()) is None


def test_resimulation_is_the_numpy_integrator() -> None:
    s, plan = usual()
    x, again = DAY10, resimulate(s, plan)
    for control, row in zip(plan.controls, again[1:], strict=True):
        x = advance(x, control, PROCESS.theta, plan.step)
        assert np.array(row) == pytest.approx(np.array(x, dtype=float), rel=1e-9)


def test_stages_of_length_zero_change_nothing() -> None:
    """Horizon 6 in the programme of 8 stages and in that of 16: the same optimum."""
    t = task()
    targets = strict_targets(t, 6)
    kinds = tuple((g.cqa, g.sense) for g in targets)
    costs, moves = [], []
    for n in (8, 16):
        course = rollout(t, None, 6, n)
        found = solve(
            compiled(n, kinds, 80),
            starting_point(t, course, 6, targets),
            parameters(t, n, 6, targets),
            *bounds(t, course),
        )
        assert found.status == "solved"
        costs.append(found.cost)
        moves.append(found.blocks(n)[0][:6])
    assert costs[0] == pytest.approx(costs[1], abs=1e-3)
    assert moves[0][:, 2] == pytest.approx(moves[1][:, 2], abs=3.0)
    assert moves[0][:, 0] == pytest.approx(moves[1][:, 0], abs=5e-3)


# --- what it decides -----------------------------------------------------------------------------------------------


def test_the_plan_reaches_the_dose_within_every_limit() -> None:
    _, plan = usual()
    lim, end = PROCESS.limits, plan.states[-1]
    assert plan.harvest_at == pytest.approx(10.0 + 0.25 * len(plan.controls))
    assert plan.harvest_at is not None
    assert plan.harvest_at <= 14.0
    assert 20.0 < end.viable_cells < 23.0
    assert end.viability > 0.8
    before = HELD.perfusion
    for u in plan.controls:
        assert 0.0 <= u.perfusion <= lim.perfusion_max
        assert abs(u.perfusion - before) <= lim.perfusion_step + 1e-6
        assert 180.0 - 1e-3 <= u.cytokine_dose <= lim.cytokine_dose_max
        before = u.perfusion
    assert sum(u.perfusion for u in plan.controls) * 0.25 + 3.0 < lim.medium_budget
    assert max(x.lactate for x in plan.states) < lim.lactate_hard


def test_the_plan_costs_less_medium_than_the_recipe_for_the_same_cells() -> None:
    _, plan = usual()
    x, used, schedule = DAY10, 0.0, recipe_schedule(PROCESS.recipe)
    while x.viable_cells < plan.states[-1].viable_cells:
        u = schedule(0.0, x)
        x = advance(x, Control(*(float(v) for v in u)), PROCESS.theta, 0.25)
        used += 0.25 * float(u.perfusion)
    assert sum(u.perfusion for u in plan.controls) * 0.25 < used


def test_a_dear_day_brings_the_harvest_forward_and_dear_medium_spares_it() -> None:
    hasty, patient = (mpc(day=price)(situation(DAY10, 10.0), None) for price in (5.0, 0.0))
    assert hasty.harvest_at is not None
    assert patient.harvest_at is not None
    assert hasty.harvest_at < patient.harvest_at
    assert sum(u.perfusion for u in hasty.controls) > sum(u.perfusion for u in patient.controls)


def test_less_certainty_asks_for_more_cells() -> None:
    sure, unsure = (
        strict_targets(make_task(situation(DAY10, 10.0, sd=sd), PROCESS, mpc().settings), 4) for sd in (0.01, 0.2)
    )
    dose = {t.cqa: t.value for t in sure}["viable_cells"], {t.cqa: t.value for t in unsure}["viable_cells"]
    assert 20.0 < dose[0] < dose[1]


def test_it_harvests_when_the_dose_is_there_and_on_the_latest_day_regardless() -> None:
    ready = DAY10._replace(car_positive=11.0, car_negative=11.0)
    now = mpc()(situation(ready, 10.0), None)
    assert (now.status, now.harvest_at) == ("solved", 10.0)
    assert now.controls[0].perfusion >= HELD.perfusion
    late = mpc()(situation(DAY10, 14.0), None)
    assert (late.status, late.harvest_at) == ("solved", 14.0)
    not_yet = mpc()(situation(DAY10, 10.0), None)
    assert not_yet.harvest_at is not None
    assert not_yet.harvest_at > 10.0


def test_the_search_finds_the_best_harvest_step() -> None:
    """Against every harvest step solved one by one."""
    t = task()
    best, _ = search(t, None)
    assert best is not None
    totals = {h: found.total for h in range(1, 17) if (found := optimum(t, h, None)[0]) is not None}
    assert best.total <= min(totals.values()) + 1e-3


def test_the_edge_s_caps_bind_the_plan() -> None:
    t = task(k1=0.5, k2=1.2)
    top = ceilings(t, np.array([t.x0, t.x0]))
    assert top[:, 0] == pytest.approx([min(1.0, 1.2 * 1.25)] * 2)
    assert top[:, 1] == pytest.approx([0.0, 0.0])  # the recipe feeds nothing
    plan = mpc(k1=0.5)(situation(DAY10, 10.0), None)
    assert max(u.perfusion for u in plan.controls) <= 1.0 + 1e-6
    above = ceilings(
        make_task(situation(DAY10, 10.0, applied=Control(2.0)), PROCESS, mpc(k1=0.5).settings), np.array([t.x0] * 3)
    )
    assert above[:, 0] == pytest.approx([1.5, 1.0, 1.0])  # no faster down than a step allows


def test_spent_medium_makes_it_spare() -> None:
    rich, poor = (mpc()(situation(DAY10, 10.0, used=used), None) for used in (1.0, 6.9))
    assert sum(u.perfusion for u in poor.controls) < sum(u.perfusion for u in rich.controls)


# --- status and determinism ----------------------------------------------------------------------------------------


def test_the_same_situation_gives_the_same_bytes() -> None:
    s, plan = usual()
    assert repr(mpc()(s, None)) == repr(plan)
    following = situation(plan.states[1], 10.25, applied=plan.controls[0])
    assert repr(mpc()(following, plan)) == repr(mpc()(following, plan))


def test_warm_and_cold_starts_agree() -> None:
    _, plan = usual()
    following = situation(plan.states[1], 10.25, applied=plan.controls[0])
    warm, cold = mpc()(following, plan), mpc()(following, None)
    assert warm.cost == pytest.approx(cold.cost, abs=5e-3)
    assert warm.harvest_at == cold.harvest_at


def test_a_failed_plan_is_never_a_start() -> None:
    s, plan = usual()
    broken = replace(plan, status="failed", controls=(Control(float("nan")),) * 3)
    assert repr(mpc()(s, broken)) == repr(plan)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_state_that_is_no_number_gives_a_failed_plan(bad: float) -> None:
    plan = mpc()(situation(DAY10._replace(lactate=bad), 10.0), None)
    assert (plan.status, plan.controls) == ("failed", ())
    assert "not finite" in plan.detail


def test_an_iteration_limit_is_a_failure_whatever_numbers_came_back() -> None:
    t = task()
    targets = strict_targets(t, 8)
    course = rollout(t, None, 8, 8)
    hurried = compiled(8, tuple((g.cqa, g.sense) for g in targets), 1)
    found = solve(hurried, starting_point(t, course, 8, targets), parameters(t, 8, 8, targets), *bounds(t, course))
    assert found.status == "iteration_limit"


def test_a_solver_that_throws_is_a_failure() -> None:
    class Thrower:
        def __call__(self, **_: object) -> None:
            raise RuntimeError("no linear solver\nmore")

    t = task()
    targets = strict_targets(t, 8)
    program = compiled(8, tuple((g.cqa, g.sense) for g in targets), 80).programme
    found = solve(
        Compiled(program, Thrower()), np.zeros(program.x.numel()), np.zeros(program.p.numel()), *(np.zeros(1),) * 2
    )
    assert (found.status, found.detail) == ("error", "no linear solver")


@pytest.mark.parametrize("settings", [{"day": float("nan")}, {"medium": -1.0}, {"max_iter": float("inf")}])
def test_impossible_settings_are_refused_by_name(settings: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=f"mpc: field {next(iter(settings))}"):
        mpc(**settings)


def test_settings_may_come_as_floats_from_a_file() -> None:
    chosen = mpc(search=1.0, day=0.5, k2=None).settings
    assert (chosen.search, chosen.prices.day, chosen.k2) == (1, 0.5, None)


def test_a_target_that_the_model_cannot_predict_is_refused() -> None:
    strange = replace(PROCESS, targets=(*PROCESS.targets, Target("taste", "at_least", 1.0, "-")))
    with pytest.raises(ConfigError, match="taste"):
        make_mpc(strange)


def test_horizons_have_a_size() -> None:
    assert [size_for(n) for n in (1, 8, 9, 56)] == [8, 8, 16, 56]
    with pytest.raises(ValueError, match="too long"):
        size_for(SIZES[-1] + 1)
    assert SCALE.size == 13


@pytest.mark.slow
def test_it_solves_from_a_hundred_odd_states() -> None:
    rng = np.random.default_rng(7)
    failures = 0
    for _ in range(100):
        x = State(*(float(v * np.exp(0.7 * rng.standard_normal())) for v in DAY10))
        x = x._replace(exhausted=min(x.exhausted, 0.9), activation=min(x.activation, 1.0), volume=1.0)
        applied = Control(float(rng.uniform(0, 2)), 0.0, 0.0, 300.0)
        s = situation(x, float(rng.integers(1, 55)) * 0.25, applied=applied, used=float(rng.uniform(0, 8)))
        plan = mpc()(s, None)
        failures += plan.status != "solved"
        if plan.status == "solved":
            assert resimulation_fault(plan, resimulate(s, plan), PROCESS.limits, GuardSettings()) is None
    assert failures == 0


@pytest.mark.parametrize(
    "given",
    [{"robust": 0}, {"sqp_iter": 0}, {"search": 1.5}, {"max_iter": "abc"}, {"real_time": "false"}, {"deadline": True}],
)
def test_a_setting_that_means_nothing_is_refused(given: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=f"mpc: field {next(iter(given))}: "):
        mpc(**given)


def test_nothing_is_given_up_before_the_latest_day_has_been_asked_about() -> None:
    """Three in five cells are lost: the harvest of the last plan is far out of reach, the dose itself is not."""
    _, before = usual()
    x = before.states[1]
    lost = x._replace(car_positive=0.4 * x.car_positive, car_negative=0.4 * x.car_negative)
    plan = mpc()(situation(lost, 10.25), before)
    assert plan.status == "solved" and "out of reach" not in plan.detail
    assert plan.states[-1].viable_cells > 18.0


def test_a_culture_that_no_longer_grows_is_not_perfused_for_a_harvest_that_is_refused() -> None:
    few = DAY10._replace(car_positive=1.5, car_negative=1.5, doublings=40.0)
    s = situation(few, 12.0)
    plan = mpc()(s, None)
    own = recipe_schedule(PROCESS.recipe)(12.0, few).perfusion
    assert "out of reach" in plan.detail and plan.harvest_at != s.now
    assert plan.controls[0].perfusion <= max(float(own), PROCESS.limits.perfusion_max * 0.2)
