"""A plan found with the model, played on the mismatched plant: beside the present recipe and beside the plant's own best.

The search (`controllers.design`) knows the donor prior and nothing else. What it finds is played by the edge alone, on the true
vessel, donor by donor, with the same instruments as the present recipe and as every recipe of a coarse grid; the best of the
grid is the optimum that one could have found had one met these donors before. A batch is good when it passes on no more medium
than the budget. The grid's best is chosen on half of the donors and scored on the other half, both ways round: the best of
many on the donors that chose it would be luck.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product
from typing import Any, NamedTuple

import numpy as np

from controllers.design import search
from controllers.prospect import Cohort, planned, play
from simulators.closed_loop import run_closed_loop
from simulators.metrics import wilson
from simulators.study.base import Figure, Row, Study, Table
from twin.batch import start
from twin.config import configs_dir, load_config
from twin.donors.artefact import load_prior
from twin.donors.prior import DonorPrior, preset_prior
from twin.process import Process, Recipe

SEED = 3000
"""Of the search: its cohorts are the model's, not the plant's."""

WITHIN = 0.05
"""Largest shortfall of the found plan against the grid's best that is owed (P of a good batch)."""

Z95 = 1.959963984540054


class Plans(NamedTuple):
    """One donor, and every recipe that is played on it."""

    seed: int
    process: str
    recipes: tuple[Recipe, ...]  # found, present, then the grid
    declared: Mapping[str, float]  # P of a good batch by the model


def grid(process: Process) -> tuple[Recipe, ...]:
    """The coarse grid: perfusion by count or by lactate, its ceiling, and two pairs of cytokine dose and counted dose."""
    dose = max([t.value for t in process.targets if t.cqa == "viable_cells"], default=process.recipe.harvest_cells)
    held = (
        {"cytokine_dose": process.recipe.cytokine_dose, "harvest_cells": dose},
        {"cytokine_dose": process.limits.cytokine_dose_max, "harvest_cells": 1.1 * dose},
    )
    ceilings = [share * process.limits.perfusion_max for share in (0.4, 0.6)]
    by_count = [
        planned(process, {"cspr_pl_per_cell_d": c, "perfusion_max": p, **h}, "cspr").recipe
        for c, p, h in product((70.0, 110.0, 170.0), ceilings, held)
    ]
    by_lactate = [
        planned(process, {"setpoint": s, "perfusion_max": ceilings[1], **held[1]}, "lactate_p").recipe
        for s in (6.0, 10.0)
    ]
    return (*by_count, *by_lactate)


def jobs(batches: int, first: int, process: str, prior: DonorPrior | None) -> Sequence[Plans]:
    """The search, once; then one job a donor."""
    given = load_config(process)
    found = search(start("planned", given, prior or preset_prior(given)), seed=SEED)
    recipes = (found.best.plan.recipe, given.recipe, *grid(given))
    declared = {"found plan": found.best.prospect.p, "present recipe": found.present.prospect.p}
    shipped = configs_dir() / "priors" / given.name
    if shipped.is_dir():
        others = Cohort(start("planned", given, load_prior(shipped)), 0.0, found.best.prospect.medium.size, SEED + 2)
        for name, recipe in zip(tuple(declared), recipes[:2], strict=True):
            declared[f"{name}, under prior {shipped.name}"] = play(replace(given, recipe=recipe), others).p
    return [Plans(first + k, process, recipes, declared) for k in range(batches)]


def run(job: Plans) -> Row:
    """Every recipe on one donor of the plant."""
    process = load_config(job.process)
    ends = [run_closed_loop(process, recipe, donor=job.seed, seed=job.seed).outcome for recipe in job.recipes]
    budget = process.limits.medium_budget
    return {
        "seed": job.seed, "declared": job.declared, "recipes": [_named(r) for r in job.recipes],
        "passed": [o.passed for o in ends], "medium": [o.medium_vv for o in ends], "day": [o.day for o in ends],
        "good": [o.passed and o.medium_vv <= budget for o in ends],
    }  # fmt: skip


def _named(recipe: Recipe) -> str:
    numbers = ", ".join(f"{k} {'/'.join(f'{v:.3g}' for v in values)}" for k, values in recipe.numbers.items())
    return f"{recipe.policy}: {numbers}; cytokine {recipe.cytokine_dose:.0f}, feed {recipe.feed:.3f}, harvest at {recipe.harvest_cells:.3g}"


def best_of_grid(good: np.ndarray) -> np.ndarray:
    """Donor by donor [n], how the grid's best did: chosen on the other half of the donors. `good` is [n, recipes]."""
    half = np.arange(len(good)) % 2 == 0
    scored = np.empty(len(good))
    for own in (half, ~half):
        scored[own] = good[own][:, int(good[~own].mean(axis=0).argmax())]
    return scored


def figures(rows: Sequence[Row]) -> tuple[Figure, ...]:
    """Rates on the plant, what is owed of the found plan, and what the model declared."""
    good = np.array([r["good"] for r in rows], dtype=float)
    passed = np.array([r["passed"] for r in rows], dtype=float)
    n = len(rows)
    top = best_of_grid(good[:, 2:]) if n > 1 else good[:, 2:].max(axis=1)

    def declared_of(name: str, p: float, column: np.ndarray) -> Figure:
        half = Z95 * float(column.std()) / np.sqrt(n)
        note = f"declared {p:.3f}; sampling error of the realised +/-{half:.3f}"
        return Figure(f"declared less realised: {name}", float(p - column.mean()), n=n, note=note)

    def rate(name: str, column: np.ndarray, note: str = "") -> Figure:
        low, high = wilson(int(column.sum()), n)
        return Figure(name, float(column.mean()), n=n, note=f"95 %: {low:.2f} to {high:.2f}{note}")

    def gap(name: str, gain: np.ndarray, low: float | None = None, high: float | None = None) -> Figure:
        half = Z95 * float(gain.std()) / np.sqrt(n)
        return Figure(name, float(gain.mean()), low, high, n, f"+/-{half:.3f}, paired")

    return (
        rate("good on the plant: found plan", good[:, 0], f"; passed whatever the medium {passed[:, 0].mean():.3f}"),
        rate("good on the plant: present recipe", good[:, 1], f"; passed whatever the medium {passed[:, 1].mean():.3f}"),
        rate("good on the plant: best of the grid", top, "; chosen on the other half of the donors"),
        gap("grid's best less found plan", top - good[:, 0], high=WITHIN),
        gap("found plan less present recipe", good[:, 0] - good[:, 1], low=0.0),
        *(declared_of(name, p, good[:, int("present" in name)]) for name, p in rows[0]["declared"].items()),
    )  # fmt: skip


def tables(rows: Sequence[Row]) -> tuple[Table, ...]:
    """Every recipe on the plant, the best first."""
    good, passed = (np.array([r[k] for r in rows], dtype=float).mean(axis=0) for k in ("good", "passed"))
    medium, day = (np.array([r[k] for r in rows], dtype=float).mean(axis=0) for k in ("medium", "day"))
    mark = ("found", "present")
    lines: list[tuple[Any, ...]] = [
        (
            mark[k] if k < len(mark) else "grid",
            name,
            f"{good[k]:.3f}",
            f"{passed[k]:.3f}",
            f"{medium[k]:.2f}",
            f"{day[k]:.1f}",
        )
        for k, name in sorted(enumerate(rows[0]["recipes"]), key=lambda item: -good[item[0]])
    ]
    return (Table("recipes on the plant", ("", "recipe", "good", "passed", "medium [vv]", "day"), tuple(lines)),)


STUDY = Study("A plan found with the model on the mismatched plant", 200, jobs, run, figures, tables)
