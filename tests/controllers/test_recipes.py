"""The recipes against their closed forms, by hand, and the two readers against each other."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from controllers import POLICIES, make_policy, make_recipe
from controllers.policies import RecipePolicy
from controllers.recipes import harvest_due, recipe_control, recipe_schedule
from twin.bioreactor import Control, State
from twin.config import ConfigError, configs_dir, load_config, load_recipe
from twin.evidence import Reading

PROCESS = load_config("car_nk")
NAMES = ("time_steps", "density_steps", "cspr_50", "cspr_100", "lactate_p_8", "lactate_p_12", "constant_2", "none")


def readings(**values: float) -> dict[str, Reading]:
    return {channel: Reading(value, 1.0, 1.1) for channel, value in values.items()}


def state(viable: float, lactate: float) -> State:
    return PROCESS.initial._replace(car_positive=0.4 * viable, car_negative=0.6 * viable, lactate=lactate)


def perfusion(name: str, now: float, **values: float) -> float:
    return recipe_control(load_recipe(name), now, readings(**values)).perfusion


@pytest.mark.parametrize(
    ("day", "rate"), [(0, 0), (2.999, 0), (3, 0.25), (5.9, 0.25), (6, 0.5), (9, 0.75), (12, 1), (30, 1)]
)
def test_time_steps_follow_the_calendar(day: float, rate: float) -> None:
    assert perfusion("time_steps", day) == rate


@pytest.mark.parametrize(("count", "rate"), [(0.1, 0), (1.99, 0), (2, 0.5), (9.9, 0.5), (10, 0.75), (15, 1), (40, 1)])
def test_density_steps_follow_the_count(count: float, rate: float) -> None:
    assert perfusion("density_steps", 5.0, viable_density=count) == rate


@pytest.mark.parametrize(("name", "cspr"), [("cspr_50", 50), ("cspr_100", 100)])
@given(count=st.floats(0, 100))
def test_cspr_is_proportional_to_the_count_up_to_the_pump(name: str, cspr: float, count: float) -> None:
    assert perfusion(name, 5.0, viable_density=count) == pytest.approx(min(2.0, cspr * count / 1000))


@pytest.mark.parametrize("setpoint", [8, 12])
@given(lactate=st.floats(0, 60))
def test_lactate_control_is_a_quarter_vvd_per_millimolar(setpoint: float, lactate: float) -> None:
    assert perfusion(f"lactate_p_{setpoint}", 5.0, lactate=lactate) == pytest.approx(
        min(2.0, max(0.0, 0.25 * (lactate - setpoint)))
    )


def test_constant_and_none_look_at_nothing() -> None:
    assert perfusion("constant_2", 0.0) == 2.0
    assert recipe_control(load_recipe("none"), 9.0, readings(viable_density=20.0)) == Control()


@pytest.mark.parametrize("name", ["density_steps", "cspr_50", "cspr_100", "lactate_p_8", "lactate_p_12"])
def test_before_the_first_reading_nothing_is_perfused_but_cytokine_is_dosed(name: str) -> None:
    assert recipe_control(load_recipe(name), 5.0, {}) == Control(0.0, 0.0, 0.0, 300.0)


def test_a_total_count_with_viability_serves_as_a_count() -> None:
    assert perfusion("cspr_100", 5.0, total_density=10.0, viability=0.9) == pytest.approx(0.9)


@pytest.mark.parametrize("name", NAMES)
@given(t=st.floats(0, 20), viable=st.floats(0.01, 60), lactate=st.floats(0, 40))
def test_operator_and_model_read_one_formula(name: str, t: float, viable: float, lactate: float) -> None:
    recipe = load_recipe(name)
    x = state(viable, lactate)
    one = recipe_control(recipe, t, readings(viable_density=float(x.viable), lactate=lactate))
    many = recipe_schedule(recipe)(t, State(*(np.array([v, v, v]) for v in x)))
    for scalar, column in zip(one, many, strict=True):
        assert column.shape == (3,)
        assert column == pytest.approx(np.full(3, scalar))


def test_harvest_is_due_at_the_counted_dose_or_on_the_latest_day() -> None:
    recipe = load_recipe("cspr_100")
    assert not harvest_due(recipe, 9.0, readings(viable_density=19.9), 1.0)
    assert harvest_due(recipe, 9.0, readings(viable_density=20.0), 1.0)
    assert harvest_due(recipe, 9.0, readings(viable_density=10.1), 2.0)
    assert harvest_due(recipe, 14.0, {}, 1.0)
    assert not harvest_due(recipe, 13.99, {}, 1.0)
    assert not harvest_due(recipe, 9.0, readings(viable_density=float("nan")), 1.0)


def test_every_shipped_recipe_is_usable_and_named_like_its_file() -> None:
    names = sorted(p.stem for p in (configs_dir() / "recipes").glob("*.yaml"))
    assert set(NAMES) <= set(names)
    for name in names:
        assert load_recipe(name).name == name
        recipe_schedule(load_recipe(name))


@pytest.mark.parametrize(
    ("numbers", "field"),
    [
        ({"perfusion_max": (2.0,)}, "numbers"),
        ({"cspr_pl_per_cell_d": (100.0,), "perfusion_max": (2.0,), "gain": (1.0,)}, "gain"),
        ({"cspr_pl_per_cell_d": (float("nan"),), "perfusion_max": (2.0,)}, "numbers.cspr_pl_per_cell_d"),
        ({"cspr_pl_per_cell_d": (-1.0,), "perfusion_max": (2.0,)}, "numbers.cspr_pl_per_cell_d"),
        ({"cspr_pl_per_cell_d": (50.0, 60.0), "perfusion_max": (2.0,)}, "numbers.cspr_pl_per_cell_d"),
    ],
)
def test_unusable_numbers_are_refused_by_field(numbers: dict[str, tuple[float, ...]], field: str) -> None:
    recipe = replace(load_recipe("cspr_100"), numbers=numbers)
    with pytest.raises(ConfigError, match=field):
        recipe_control(recipe, 1.0, {})


def test_steps_must_ascend_and_match() -> None:
    steps = load_recipe("density_steps")
    for numbers in (
        {"densities": (10.0, 2.0, 15.0), "perfusion": (0.0, 0.5, 0.75, 1.0)},
        {"densities": (2.0, 10.0, 15.0), "perfusion": (0.5, 0.75, 1.0)},
    ):
        with pytest.raises(ConfigError, match=r"numbers\.densities"):
            recipe_schedule(replace(steps, numbers=numbers))


def test_make_policy_knows_every_name_and_keeps_the_process_s_dose_and_dosing() -> None:
    process = replace(PROCESS, recipe=replace(PROCESS.recipe, cytokine_dose=250.0, harvest_cells=30.0))
    for name in POLICIES:
        policy = make_policy(name, process)
        if isinstance(policy, RecipePolicy):
            assert policy.recipe.policy == name
            assert (policy.recipe.cytokine_dose, policy.recipe.harvest_cells) == (250.0, 30.0)
    assert make_recipe("cspr", process, cspr_pl_per_cell_d=80).numbers["cspr_pl_per_cell_d"] == (80.0,)
    assert make_recipe("lactate_p_12", process).numbers["setpoint"] == (12.0,)
    with pytest.raises(ConfigError, match="unknown recipes entry"):
        make_policy("telepathy", process)
    with pytest.raises(ConfigError, match="unknown settings"):
        make_policy("cspr", process, gain=1.0)
    with pytest.raises(ConfigError, match="unknown settings"):
        make_policy("mpc", process, horizon=3)
