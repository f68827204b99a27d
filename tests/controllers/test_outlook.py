"""What a plan declares: certainties at the ends, the same futures for every plan, calibrated harvests."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from controllers.outlook import declared, schedule_of
from controllers.plan import Plan
from controllers.recipes import recipe_schedule
from twin.batch import Batch, start
from twin.bioreactor import Control, State
from twin.config import load_config
from twin.donors.prior import preset_prior
from twin.futures import forecast
from twin.process import Process, Target

PROCESS = load_config("car_nk")


def batch_of(process: Process = PROCESS) -> Batch:
    return start("outlook", process, preset_prior(process))


def plan_of(*controls: Control) -> Plan:
    return Plan(0.0, 0.25, controls, (), "solved", 0.0, None, "test")


def asked(cells: float) -> Process:
    others = tuple(t for t in PROCESS.targets if t.cqa != "viable_cells")
    return replace(PROCESS, targets=(Target("viable_cells", "at_least", cells, "1e9 cells"), *others))


def test_a_plan_is_played_step_by_step_and_its_last_move_held() -> None:
    first, last = Control(0.25, 0.01, 0.0, 300.0), Control(1.5, 0.0, 0.0, 450.0)
    schedule, x = schedule_of(plan_of(first, last), PROCESS), State(*np.ones((13, 3)))
    for t, u in ((0.0, first), (0.24, first), (0.25, last), (13.0, last)):
        assert [v.tolist() for v in schedule(t, x)] == [[v] * 3 for v in u]


def test_without_a_plan_the_recipe_is_played() -> None:
    x = State(*np.full((13, 2), 5.0))
    told, own = schedule_of(None, PROCESS)(1.0, x), recipe_schedule(PROCESS.recipe)(1.0, x)
    assert all(np.array_equal(a, b) for a, b in zip(told, own, strict=True))


def test_the_chance_falls_with_the_dose_from_certain_to_none() -> None:
    plan = plan_of(Control(1.0, 0.0, 0.0, 300.0))
    chances = [
        declared(batch_of(asked(cells)), 0.0, plan, n=100).p_pass["viable_cells"] for cells in (1.0, 18.0, 200.0)
    ]
    assert chances[0] > 0.95 and chances[2] == 0.0
    assert chances[0] > chances[1] > chances[2]


def test_a_future_is_harvested_at_its_own_dose_not_on_the_day_of_the_plan() -> None:
    plan = replace(plan_of(Control(2.0, 0.0, 0.0, 300.0)), harvest_at=3.0)
    low, middle, high = declared(batch_of(), 0.0, plan, n=100).harvest
    assert 3.0 < low < middle <= high <= PROCESS.recipe.harvest_latest


def test_the_same_seed_declares_the_same() -> None:
    plan = plan_of(Control(0.8, 0.0, 0.0, 300.0))
    one, two, other = (declared(batch_of(), 0.0, plan, n=60, seed=seed).harvest for seed in (1, 1, 2))
    assert one == two != other


def test_a_plan_without_controls_leaves_the_batch_to_the_recipe() -> None:
    failed = replace(plan_of(), status="failed", detail="the solver gave up")
    told, recipe = (declared(batch_of(), 0.0, plan, n=60, seed=1) for plan in (failed, None))
    plain = forecast(batch_of(), 0.0, recipe_schedule(PROCESS.recipe), n=60, seed=1)
    assert told.p_pass == recipe.p_pass == plain.p_pass and told.harvest == recipe.harvest == plain.harvest
