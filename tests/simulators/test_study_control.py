"""The study of control: hindsight is a fair yardstick, and the figures are what they claim to be."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from simulators.recording import record
from simulators.study import STUDIES
from simulators.study.control import ALL, HINDSIGHT, MPC, figures, hindsight, programmes, tables
from twin.config import load_config

PROCESS = load_config("car_nk")


def batch(donor: int, passed: bool, medium: float, density: float = 20.0) -> dict[str, Any]:
    return {
        "donor": donor, "seed": donor, "scenario": "nominal", "passed": passed, "missed": "" if passed else "viable_cells",
        "margin": 0.0, "day": 12.0, "medium_vv": medium, "cytokine": 0.0, "feed_vv": 0.0, "lactate_peak": 20.0,
        "viability_low": 0.8, "viable_cells": density, "viable_density": density, "viability": 0.9, "car_fraction": 0.5,
        "exhausted_fraction": 0.1,
    }  # fmt: skip


def rows(n: int = 200) -> list[dict[str, Any]]:
    """Donors who pass with the chance that the MPC declared; every second one fails under every recipe."""
    rng, found = np.random.default_rng(5), list[dict[str, Any]]()
    for k in range(n):
        p = float(rng.uniform(0.05, 0.95))
        passed = bool(rng.random() < p)
        batches = {name: batch(k, k % 2 == 0, 8.0) for name in ALL}
        batches |= {MPC: batch(k, passed, 6.0), HINDSIGHT: batch(k, True, 5.0)}
        found.append({"seed": k, "batches": batches, "declared": {6.0: p, 8.0: p, 10.0: p}})
    return found


def test_chances_that_mean_what_they_say_have_a_slope_of_one() -> None:
    told = {f.name: f for f in figures(rows(2000))}
    assert told["declared P(release) from day 6: calibration slope"].value == pytest.approx(1.0, abs=0.15)
    assert told["declared P(release) from day 6: Brier less base rate's"].value < -0.05


def test_the_figures_are_those_of_the_rows() -> None:
    given = rows()
    told = {f.name: f for f in figures(given)}
    share = np.mean([r["batches"][MPC]["passed"] for r in given])
    assert told["MPC: pass rate"].value == pytest.approx(share)
    assert told["hindsight: pass rate"].value == 1.0
    assert told["MPC: medium, mean over all donors [volumes]"].value == pytest.approx(6.0)
    saved = next(f for name, f in told.items() if name.startswith("medium saved against"))
    assert saved.value == pytest.approx(0.25) and saved.holds
    assert [line[0] for line in tables(given)[0].rows] == [MPC, *ALL, HINDSIGHT]
    assert "control" in STUDIES


def test_the_programmes_of_hindsight_keep_to_the_limits() -> None:
    family = programmes(PROCESS)
    assert len(
        {(*r.numbers["cspr_pl_per_cell_d"], *r.numbers["perfusion_max"], r.cytokine_dose) for r in family}
    ) == len(family)
    assert all(r.numbers["perfusion_max"][0] <= PROCESS.limits.perfusion_max for r in family)


@pytest.mark.slow
def test_hindsight_takes_the_least_medium_of_its_family_at_an_hour_at_which_all_targets_are_met() -> None:
    best = hindsight(PROCESS, 3000)
    assert best["passed"] and all(t.met(best[t.cqa]) for t in PROCESS.targets)
    for recipe in programmes(PROCESS)[::5]:
        course = record(PROCESS, 3000, seed=3000, recipe=recipe, days=14.0, online=False).truth
        met = np.all(
            [course[t.cqa] >= t.value if t.sense == "at_least" else course[t.cqa] <= t.value for t in PROCESS.targets],
            axis=0,
        )
        assert not met.any() or best["medium_vv"] <= course["medium_vv"][met].min() + 1e-12
