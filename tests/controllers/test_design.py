"""The search finds a known optimum; its figures come from donors that no choice was made on; the map is what it says."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from controllers.design import FRONT, Range, design_map, optimum, search, space_of, usual_range
from controllers.prospect import Cohort, cohort, planned, play
from twin.batch import start
from twin.config import ConfigError, load_config
from twin.donors.prior import preset_prior

SHIPPED = load_config("car_nk")
PROCESS = replace(SHIPPED, limits=replace(SHIPPED.limits, medium_budget=8.0))
PRIOR = preset_prior(PROCESS)
NOBODY = start("plan", PROCESS, PRIOR)


def bowl(z: np.ndarray) -> float:
    return float(np.square(z - np.array([0.2, 0.5, 0.7, 0.9])).sum())


def test_the_search_finds_the_optimum_of_a_bowl() -> None:
    z, low = optimum(bowl, 4, 1200, seed=1)
    assert np.abs(z - [0.2, 0.5, 0.7, 0.9]).max() < 0.02
    assert low == bowl(z)


def test_the_search_comes_within_a_twentieth_of_a_staircase_of_successes() -> None:
    """P as a cohort of 400 gives it, a step function of the settings: the share of donors whose own bowl is shallow enough."""
    spread = np.random.default_rng(3).standard_normal((400, 1)) * 0.15

    def staircase(z: np.ndarray) -> float:
        return -float(np.mean(np.square(z - 0.6 + spread).sum(axis=1) < 0.05))

    best = -min(staircase(np.full(4, v)) for v in np.linspace(0.0, 1.0, 2001))
    z, low = optimum(staircase, 4, 500, seed=0)
    assert -low >= 0.95 * best
    assert low == staircase(z)


def test_the_search_is_deterministic_and_begins_where_it_is_told() -> None:
    assert optimum(bowl, 4, 96, seed=5)[0].tobytes() == optimum(bowl, 4, 96, seed=5)[0].tobytes()
    exact = np.array([[0.2, 0.5, 0.7, 0.9]])
    assert optimum(bowl, 4, 48, seed=5, first=exact)[1] == 0.0


@pytest.mark.slow
def test_a_search_beats_the_present_recipe_on_fresh_donors_within_its_ranges() -> None:
    given = Range("perfusion_max", 0.6, 1.4)
    tried: list[None] = []
    found = search(
        NOBODY, within=[given], fixed={"feed": 0.0}, evaluations=70, n=80, declared=240, seed=3000,
        tell=lambda: tried.append(None),
    )  # fmt: skip
    assert found.evaluated == len(tried) >= 60
    best = found.best
    assert 0.6 <= best.settings["perfusion_max"] <= 1.4 and best.settings["feed"] == 0.0
    assert found.present.plan == PROCESS
    assert found.gain[0] == pytest.approx(best.prospect.p - found.present.prospect.p)
    assert found.gain[1] > 0.0
    assert best.prospect.p == play(best.plan, Cohort(NOBODY, 0.0, 240, 3002)).p
    assert [c.budget for c in found.front] == [8.0 * share for share in FRONT]
    p = [c.prospect.p for c in found.front]
    assert p[-1] > p[FRONT.index(1.0)] > p[0]


def test_the_map_is_what_playing_its_plans_gives() -> None:
    donors = cohort(PROCESS, PRIOR, 40, seed=2)
    x, y = Range("cspr_pl_per_cell_d", 50.0, 200.0, log=True), Range("cytokine_dose", 100.0, 500.0)
    drawn = design_map(PROCESS, donors, x, y, size=3, budget=9.0)
    assert drawn.xs == pytest.approx([50.0, 100.0, 200.0])
    assert drawn.ys == pytest.approx([100.0, 300.0, 500.0])
    for j, k in np.ndindex(3, 3):
        plan = planned(PROCESS, {"cspr_pl_per_cell_d": float(drawn.xs[k]), "cytokine_dose": float(drawn.ys[j])})
        end = play(plan, donors, 9.0)
        assert (drawn.p[j, k], drawn.p_release[j, k], drawn.medium[j, k]) == (
            end.p,
            end.released.mean(),
            end.medium.mean(),
        )
    assert drawn.mc_error == pytest.approx(np.sqrt(drawn.p * (1 - drawn.p) / 40))


@pytest.mark.parametrize(
    ("within", "fixed", "policies", "said"),
    [
        ([Range("stirring", 0.0, 1.0)], {}, ("cspr",), "'stirring': unknown to cspr"),
        ([Range("gain", 0.1, 0.5)], {}, ("cspr",), "'gain': unknown to cspr"),
        ([Range("feed", 0.04, 0.01)], {}, ("cspr",), "feed: from 0.04 to 0.01 VVD is no range"),
        ([Range("feed", 0.0, 0.2)], {}, ("cspr",), "beyond the limits of process car_nk, 0 to 0.05"),
        ([Range("feed", 0.0, 0.02)], {"feed": 0.01}, ("cspr",), "is held at 0.01 and cannot be searched"),
        ([], {}, ("weather",), "unknown recipes entry 'weather'"),
        ([], {}, (), "at least one"),
    ],
)  # fmt: skip
def test_a_contradiction_is_told_before_anything_is_played(
    within: list[Range], fixed: dict[str, float], policies: tuple[str, ...], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        search(NOBODY, policies=policies, within=within, fixed=fixed)


def test_a_map_needs_two_different_settings_of_its_plan() -> None:
    donors, feed = cohort(PROCESS, PRIOR, 20, seed=2), Range("feed", 0.0, 0.05)
    with pytest.raises(ConfigError, match="two different"):
        design_map(PROCESS, donors, feed, feed)
    with pytest.raises(ConfigError, match="'setpoint': unknown to policy cspr"):
        design_map(PROCESS, donors, feed, usual_range("setpoint", PROCESS))


def test_inoculation_and_the_latest_day_are_searched_only_where_a_range_is_given() -> None:
    usual = [r.name for r in space_of(PROCESS, "cspr", (), {})]
    assert usual == ["cspr_pl_per_cell_d", "perfusion_max", "feed", "cytokine_dose", "harvest_cells"]
    wider = space_of(PROCESS, "cspr", [Range("inoculation", 0.3, 0.6)], {"feed": 0.0})
    assert wider[0].name == "inoculation" and "feed" not in [r.name for r in wider]
