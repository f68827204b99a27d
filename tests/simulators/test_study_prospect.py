"""The study of plans: its yardstick is fair, its grid within limits, its figures the means they claim to be."""

from __future__ import annotations

import numpy as np
import pytest

from simulators.study import STUDIES
from simulators.study.prospect import Plans, best_of_grid, figures, grid, run, tables
from twin.config import load_config

PROCESS = load_config("car_nk")


def test_the_best_of_a_grid_of_equals_is_no_better_than_any() -> None:
    """Chosen and scored on the same donors, the best of 14 fair coins looks better than one."""
    grids = [np.random.default_rng(k).random((400, 14)) < 0.5 for k in range(50)]
    assert np.mean([g.mean(axis=0).max() for g in grids]) > 0.53
    assert np.mean([best_of_grid(g).mean() for g in grids]) == pytest.approx(0.5, abs=0.011)


def test_a_recipe_that_always_wins_is_the_best_of_its_grid() -> None:
    good = np.zeros((10, 3), dtype=bool)
    good[:, 1] = True
    assert best_of_grid(good).all()


def test_the_grid_keeps_to_the_limits() -> None:
    recipes = grid(PROCESS)
    assert len({(r.policy, tuple(r.numbers.items()), r.cytokine_dose, r.harvest_cells) for r in recipes}) == len(
        recipes
    )
    assert all(r.cytokine_dose <= PROCESS.limits.cytokine_dose_max for r in recipes)
    assert all(max(r.numbers["perfusion_max"]) <= PROCESS.limits.perfusion_max for r in recipes)


@pytest.mark.slow
def test_a_job_plays_every_recipe_on_its_donor() -> None:
    recipes = (PROCESS.recipe, PROCESS.recipe, *grid(PROCESS)[:1])
    rows = [run(Plans(seed, "car_nk", recipes, {"found plan": 0.5, "present recipe": 0.4})) for seed in (3401, 3402)]
    assert all(r["good"][0] == r["good"][1] and len(r["good"]) == 3 for r in rows)
    told = {f.name: f for f in figures(rows)}
    assert told["found plan less present recipe"].value == 0.0
    realised = float(np.mean([r["good"][0] for r in rows]))
    assert told["declared less realised: found plan"].value == pytest.approx(0.5 - realised)
    assert [line[0] for line in tables(rows)[0].rows].count("grid") == 1
    assert "prospect" in STUDIES
