"""A plan before its batch: the settings of a recipe, and what they do to donors who are not yet known.

`planned` puts settings into a process, `cohort` names donors by seed, `play` runs a plan on them. The cohort is common to all
plans: the same donors, the same process noise, the same counting errors, so that two plans differ by their settings alone and
the same plan gives the same numbers to the last bit. A recipe acts on what the laboratory counts, and so does the harvest:
a batch ends when enough cells are *counted*, and misses its dose where the count was high.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy.stats import norm

from controllers import make_recipe
from controllers.recipes import NUMBERS, check_recipe, recipe_schedule
from twin.batch import perfused, start
from twin.bioreactor import Control, State
from twin.config import ConfigError
from twin.donors.prior import DonorPrior
from twin.futures import HORIZON, passes, quantiles, run_futures
from twin.history import Batch
from twin.integrate import FLOOR
from twin.process import Process, Recipe

INOCULATION = "inoculation"
HELD: Mapping[str, str] = {
    "feed": "VVD", "cytokine_dose": "IU/mL/d", "harvest_cells": "1e9 cells", "harvest_latest": "d",
}  # fmt: skip
"""Settings that are fields of every `Recipe`, with their units."""
UNITS: Mapping[str, str] = {
    **HELD, INOCULATION: "1e6 cells/mL", "cspr_pl_per_cell_d": "pL/cell/d", "perfusion_max": "VVD", "perfusion": "VVD",
    "gain": "VVD/mM", "setpoint": "mM", "days": "d", "densities": "1e6 cells/mL",
}  # fmt: skip
"""Units of all settings; a number in a list is named ``perfusion[0]``."""
STEPS = {"time_steps": "days", "density_steps": "densities"}
"""Policies whose numbers are lists, and the list that must ascend."""
_INDEXED = re.compile(r"^(days|densities|perfusion)\[(\d+)\]$")

Z90 = float(norm.ppf(0.95))


def unit_of(setting: str) -> str:
    """Unit of a setting; of ``perfusion[2]`` that of perfusion."""
    return UNITS[setting.partition("[")[0]]


def names_of(recipe: Recipe) -> tuple[str, ...]:
    """The settings that a recipe has, inoculation first."""
    numbers: list[str] = []
    for key in NUMBERS[recipe.policy]:
        many = recipe.policy in STEPS
        numbers += [f"{key}[{k}]" for k in range(len(recipe.numbers[key]))] if many else [key]
    return (INOCULATION, *numbers, *HELD)


def settings_of(process: Process) -> dict[str, float]:
    """The settings of a process as it stands, by name."""
    recipe = process.recipe
    found = {INOCULATION: float(process.initial.viable), **{k: float(getattr(recipe, k)) for k in HELD}}
    for name in names_of(recipe):
        if name not in found:
            key, k = _place(name)
            found[name] = float(recipe.numbers[key][k])
    return {name: found[name] for name in names_of(recipe)}


def _place(name: str) -> tuple[str, int]:
    match = _INDEXED.match(name)
    return (match.group(1), int(match.group(2))) if match else (name, 0)


def planned(process: Process, settings: Mapping[str, float], policy: str | None = None) -> Process:
    """The process with `settings` in place of its own, and with the perfusion policy `policy` (None: its own).

    Steps are put in order. A culture that is inoculated more densely comes from a longer seed train: its cells have the more
    doublings behind them. Raises ConfigError naming the setting for one that is unknown, or beyond the limits.
    """
    recipe = process.recipe if policy in (None, process.recipe.policy) else make_recipe(str(policy), process)
    known = names_of(recipe)
    numbers = {k: list(v) for k, v in recipe.numbers.items()}
    for name, value in settings.items():
        if name not in known:
            raise ConfigError(f"setting {name!r}: unknown to policy {recipe.policy}; known: {', '.join(known)}")
        if not 0.0 <= value < math.inf:
            raise ConfigError(f"setting {name}: {value!r} {unit_of(name)}: a finite number of 0 or more is needed")
        key, k = _place(name)
        if key in numbers:
            numbers[key][k] = float(value)
    if recipe.policy in STEPS:
        numbers[STEPS[recipe.policy]].sort()
    held = {k: float(settings[k]) for k in HELD if k in settings}
    put = {k: tuple(v) for k, v in numbers.items()}
    changed = put != dict(recipe.numbers) or any(getattr(recipe, k) != v for k, v in held.items())
    if changed:
        name = recipe.name if recipe.name.endswith("*") else f"{recipe.name}*"
        recipe = replace(recipe, name=name, numbers=put, **held)
    check_recipe(recipe)
    _within_limits(recipe, process)
    if INOCULATION in settings:
        process = replace(process, initial=_inoculated(process.initial, settings[INOCULATION]))
    return replace(process, recipe=recipe)


def _inoculated(x: State, density: float) -> State:
    if not density > 0.0:
        raise ConfigError(f"setting {INOCULATION}: {density:g} {UNITS[INOCULATION]}: more than 0 is needed")
    ratio = density / float(x.viable)
    doublings = max(float(x.doublings) + math.log2(ratio), float(FLOOR.doublings))
    cells = {k: ratio * getattr(x, k) for k in ("car_positive", "car_negative", "dead")}
    return x._replace(**cells, doublings=doublings) if ratio != 1.0 else x


def limits_of(setting: str, process: Process) -> tuple[float, float]:
    """Lowest and highest value that the process's limits allow for a setting, in its unit."""
    limits, key = process.limits, _place(setting)[0]
    most = {
        "perfusion": limits.perfusion_max, "perfusion_max": limits.perfusion_max, "feed": limits.feed_max,
        "cytokine_dose": limits.cytokine_dose_max, "harvest_latest": HORIZON,
    }  # fmt: skip
    return 0.0, most.get(key, math.inf)


def _within_limits(recipe: Recipe, process: Process) -> None:
    given = [(k, float(getattr(recipe, k))) for k in HELD] + [(k, max(v)) for k, v in recipe.numbers.items() if v]
    for name, value in given:
        _, high = limits_of(name, process)
        if value > high * (1.0 + 1e-9):
            raise ConfigError(
                f"setting {name}: {value:g} {unit_of(name)} is beyond the limit of process {process.name}, {high:g}"
            )


# --- donors who are not yet known -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class Cohort:
    """Donors, and all that chance does to their batches, the same for every plan: futures of a batch by seed."""

    batch: Batch  # nobody's yet, or one that is under way
    now: float  # from when on the plan is played [d]
    n: int
    seed: int


def cohort(process: Process, prior: DonorPrior, n: int, seed: int) -> Cohort:
    """`n` new donors of the prior's population, its own uncertainty included, at inoculation."""
    return Cohort(start("planned", process, prior), 0.0, n, seed)


@dataclass(frozen=True, slots=True, eq=False)
class Prospect:
    """What became of a plan, donor by donor [n]."""

    passed: Mapping[str, np.ndarray]  # by CQA: met at harvest
    medium: np.ndarray  # perfused until harvest [vessel volumes]
    day: np.ndarray  # of harvest [d]
    budget: float  # [vessel volumes]

    @property
    def released(self) -> np.ndarray:
        """All CQAs met."""
        return np.all([np.ones(self.medium.size, dtype=bool), *self.passed.values()], axis=0)

    @property
    def good(self) -> np.ndarray:
        """All CQAs met, on no more medium than the budget."""
        return self.released & (self.medium <= self.budget)

    @property
    def p(self) -> float:
        """P(all CQA within the medium budget)."""
        return float(self.good.mean())

    def summary(self) -> dict[str, Any]:
        """The plan in numbers: probabilities, their Monte Carlo error, medium [vessel volumes] and harvest day [d]."""
        low, middle, high = quantiles(self.medium)
        first, usual, last = quantiles(self.day)
        return {
            "p": self.p, "mc_error": math.sqrt(self.p * (1.0 - self.p) / self.medium.size),
            "p_release": float(self.released.mean()), "p_budget": float(np.mean(self.medium <= self.budget)),
            "p_pass": {k: float(v.mean()) for k, v in self.passed.items()},
            "medium": {"mean": float(self.medium.mean()), "q05": low, "q50": middle, "q95": high},
            "harvest": {"q05": first, "q50": usual, "q95": last}, "budget": self.budget, "n": self.medium.size,
        }  # fmt: skip


def play(plan: Process, donors: Cohort, budget: float | None = None) -> Prospect:
    """A plan (see `planned`) on a cohort, to each donor's harvest by its counts: `twin.futures.run_futures`.

    `budget` of medium for the whole batch [vessel volumes]; None: the limits' own.
    Raises ConfigError for another inoculation of a batch that is under way.
    """
    batch = donors.batch
    if plan.initial != batch.process.initial:
        if donors.now > 0.0 or batch.evidence:
            raise ConfigError(f"setting {INOCULATION}: lies in the past of a batch that is on day {donors.now:g}")
        batch = start(batch.id, plan, batch.donor_prior)
    batch = replace(batch, process=plan)
    recipe, most = recipe_schedule(plan.recipe), plan.limits.perfusion_max

    def schedule(t: float, seen: State) -> Control:
        u = recipe(t, seen)
        return u._replace(perfusion=np.minimum(u.perfusion, most))

    end = run_futures(batch, donors.now, schedule, n=donors.n, seed=donors.seed)
    limit = plan.limits.medium_budget if budget is None else budget
    medium = perfused(batch, donors.now) + end.perfused
    return Prospect({t.cqa: passes(t, end.harvested) for t in plan.targets}, medium, end.t[end.harvest], limit)


def paired(a: Prospect, b: Prospect) -> tuple[float, float, float]:
    """P(a good) less P(b good) on one cohort, with its 90 % interval (normal approximation of the paired difference)."""
    gain = a.good.astype(float) - b.good.astype(float)
    half = Z90 * float(gain.std(ddof=1)) / math.sqrt(gain.size)
    return float(gain.mean()), float(gain.mean()) - half, float(gain.mean()) + half


def over_populations(
    plan: Process, donors: Cohort, known_from: int, budget: float | None = None, centres: int = 24
) -> tuple[float, float, float]:
    """P of a plan for populations that the prior leaves possible: 5, 50 and 95 %.

    The population's centre is known as well as the mean of `known_from` donors is: normal, with the prior's covariance over
    their number. P itself, which averages over it, does not tell how far off it may be. Every population meets the same
    chances, so that the Monte Carlo error is common to all. Raises ValueError for fewer than two donors or a batch under way.
    """
    if known_from < 2 or donors.batch.evidence:
        raise ValueError("the population's centre is asked of two donors or more, before anything is measured")
    prior = donors.batch.donor_prior
    rng = np.random.default_rng([donors.seed, 24])
    root = np.linalg.cholesky(prior.cov / known_from)
    found: list[float] = []
    for z in rng.standard_normal((centres, prior.mean.size)):
        other = replace(prior, mean=prior.mean + root @ z)
        batch = start(donors.batch.id, donors.batch.process, other)
        found.append(play(plan, replace(donors, batch=batch), budget).p)
    return quantiles(np.array(found))
