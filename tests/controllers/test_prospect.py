"""Plans: settings in and out, the same chances for every plan, agreement with the forecast."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from controllers.prospect import (
    Cohort,
    Prospect,
    cohort,
    limits_of,
    names_of,
    over_populations,
    paired,
    planned,
    play,
    settings_of,
    unit_of,
)
from controllers.recipes import recipe_schedule
from twin.batch import assimilate, start
from twin.config import ConfigError, load_config
from twin.donors.prior import preset_prior
from twin.evidence import Measurement
from twin.futures import forecast

PROCESS = load_config("car_nk")
PRIOR = preset_prior(PROCESS)
DONORS = cohort(PROCESS, PRIOR, 60, seed=4)


@pytest.mark.parametrize("policy", ["cspr", "lactate_p", "density_steps", "time_steps", "constant"])
def test_settings_of_a_plan_are_the_settings_that_were_put_in(policy: str) -> None:
    plan = planned(PROCESS, {"cytokine_dose": 450.0, "feed": 0.01}, policy)
    told = settings_of(plan)
    assert tuple(told) == names_of(plan.recipe)
    assert (told["cytokine_dose"], told["feed"]) == (450.0, 0.01)
    again = planned(PROCESS, told, policy)
    assert settings_of(again) == told
    assert again.recipe == plan.recipe and again.initial == PROCESS.initial
    assert all(unit_of(k) for k in told)


def test_no_settings_are_the_process_itself() -> None:
    assert planned(PROCESS, {}).recipe == PROCESS.recipe
    assert planned(PROCESS, settings_of(PROCESS)) == PROCESS


def test_a_denser_inoculum_has_the_more_doublings_behind_it() -> None:
    plan = planned(PROCESS, {"inoculation": 4.0 * float(PROCESS.initial.viable)})
    assert plan.initial.viable == pytest.approx(4.0 * PROCESS.initial.viable)
    assert plan.initial.viability == pytest.approx(PROCESS.initial.viability)
    assert plan.initial.car_fraction == pytest.approx(PROCESS.initial.car_fraction)
    assert plan.initial.doublings == pytest.approx(PROCESS.initial.doublings + 2.0)


def test_steps_are_put_in_order() -> None:
    plan = planned(PROCESS, {"days[0]": 9.0, "days[1]": 2.0}, "time_steps")
    assert plan.recipe.numbers["days"] == tuple(sorted(plan.recipe.numbers["days"]))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"stirring": 3.0}, "setting 'stirring': unknown to policy cspr; known: inoculation"),
        ({"perfusion_max": 2.5}, "setting perfusion_max: 2.5 VVD is beyond the limit of process car_nk, 2"),
        ({"feed": 0.06}, "setting feed: 0.06 VVD is beyond the limit"),
        ({"cytokine_dose": math.nan}, "setting cytokine_dose: nan"),
        ({"inoculation": 0.0}, "setting inoculation: 0 1e6 cells/mL: more than 0"),
        ({"harvest_latest": 40.0}, "beyond the limit"),
    ],
)
def test_what_cannot_be_planned_is_refused_by_name(settings: dict[str, float], said: str) -> None:
    with pytest.raises(ConfigError, match="^" + said.replace(".", r"\.") if said.startswith("setting") else said):
        planned(PROCESS, settings)


def same(a: Prospect, b: Prospect) -> bool:
    return (
        a.medium.tobytes() == b.medium.tobytes()
        and a.day.tobytes() == b.day.tobytes()
        and bool((a.good == b.good).all())
    )


def test_the_same_settings_give_the_same_numbers_to_the_last_bit() -> None:
    plan = planned(PROCESS, {"cspr_pl_per_cell_d": 120.0, "perfusion_max": 1.1})
    assert same(play(plan, DONORS), play(planned(plan, settings_of(plan)), cohort(PROCESS, PRIOR, 60, seed=4)))
    assert paired(play(plan, DONORS), play(plan, DONORS)) == (0.0, 0.0, 0.0)
    assert not same(play(plan, DONORS), play(PROCESS, DONORS))


def test_a_setting_that_is_never_felt_changes_no_donor() -> None:
    """Perfusion by count never reaches either ceiling: every donor fares the same under both plans."""
    gentle = {"cspr_pl_per_cell_d": 10.0}
    low, high = (planned(PROCESS, {**gentle, "perfusion_max": ceiling}) for ceiling in (1.5, 2.0))
    assert same(play(low, DONORS), play(high, DONORS))


def test_a_plan_fares_as_the_forecast_of_its_recipe() -> None:
    told = forecast(start("x", PROCESS, PRIOR), 0.0, recipe_schedule(PROCESS.recipe), n=60, seed=4)
    end = play(PROCESS, DONORS)
    assert float(end.released.mean()) == told.p_release
    assert {k: float(v.mean()) for k, v in end.passed.items()} == dict(told.p_pass)
    assert end.summary()["harvest"]["q50"] == told.harvest[1]


def test_more_budget_never_makes_a_batch_worse_and_none_makes_all_of_them_bad() -> None:
    p = [play(PROCESS, DONORS, budget).p for budget in (1e-9, 4.0, 8.0, math.inf)]
    assert p[0] == 0.0
    assert p == sorted(p)
    assert p[-1] == float(play(PROCESS, DONORS).released.mean())


def test_a_batch_under_way_is_planned_from_now_on() -> None:
    batch = assimilate(start("b", PROCESS, PRIOR), Measurement("x", "viable_density", 1.4, 3.0, 3.1))
    donors = Cohort(batch, 4.0, 40, 1)
    more = play(planned(PROCESS, {"cspr_pl_per_cell_d": 200.0}), donors)
    assert more.medium.mean() > play(PROCESS, donors).medium.mean()
    with pytest.raises(ConfigError, match="inoculation: lies in the past of a batch that is on day 4"):
        play(planned(PROCESS, {"inoculation": 1.0}), donors)


def test_the_paired_interval_is_that_of_the_differences() -> None:
    good, bad = np.array([True] * 30 + [False] * 70), np.array([True] * 20 + [False] * 80)
    a, b = (Prospect({"x": g}, np.ones(100), np.ones(100), 2.0) for g in (good, bad))
    mean, low, high = paired(a, b)
    assert mean == pytest.approx(0.10)
    assert high - mean == pytest.approx(1.6449 * math.sqrt(0.1 * 0.9 / 99), rel=1e-3)
    assert mean - low == pytest.approx(high - mean)


def test_a_population_known_from_many_donors_leaves_p_less_open() -> None:
    few, many = (over_populations(PROCESS, DONORS, n, centres=8) for n in (3, 10_000))
    p = play(PROCESS, DONORS).p
    assert few[2] - few[0] > 0.1
    assert many[2] - many[0] < 0.5 * (few[2] - few[0])
    assert abs(many[1] - p) < 0.05
    with pytest.raises(ValueError, match="two donors"):
        over_populations(PROCESS, DONORS, 1)


def test_limits_of_settings_are_those_of_the_process() -> None:
    tight = replace(PROCESS, limits=replace(PROCESS.limits, perfusion_max=1.0))
    assert limits_of("perfusion[2]", tight) == (0.0, 1.0)
    with pytest.raises(ConfigError, match="perfusion_max"):
        planned(tight, {})
