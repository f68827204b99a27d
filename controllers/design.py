"""Which settings to choose: a search for the highest P(all CQA) of a new donor, what medium buys, and a map of the design space.

Every setting is judged on the same cohort (`controllers.prospect`), so that the objective is a plain function of the settings:
differential evolution minimises it. The best of many is the luckiest, too: the candidates are compared again on a second
cohort, and what is declared of the winner, of the present recipe and of the front comes from a third.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from scipy.optimize import differential_evolution
from scipy.stats import qmc

from controllers.prospect import (
    HELD,
    INOCULATION,
    Cohort,
    Prospect,
    limits_of,
    names_of,
    paired,
    planned,
    play,
    settings_of,
    unit_of,
)
from twin.config import ConfigError
from twin.history import Batch
from twin.process import Process

POLICIES = ("cspr", "lactate_p")
"""Perfusion policies that are searched when none is named."""

POPULATION = 24
"""Settings in a generation of the search."""

FINALISTS = 8
"""Candidates that are compared again on the second cohort."""

FRONT = (0.5, 0.625, 0.75, 0.875, 1.0, 1.25, 1.5, 2.0, 3.0)
"""Medium budgets of the front, as shares of the plan's own."""


class Range(NamedTuple):
    """A setting that may vary, from `low` to `high` in its own unit; searched evenly in its logarithm where `log`."""

    name: str
    low: float
    high: float
    log: bool = False

    def at(self, share: float) -> float:
        """The value a `share` of 0 to 1 of the way from low to high."""
        if self.log:
            return float(self.low * (self.high / self.low) ** share)
        return float(self.low + share * (self.high - self.low))


def usual_range(name: str, process: Process) -> Range:
    """The range in which a setting is searched unless one is given, within the process's limits.

    Raises ConfigError for a name that no policy has.
    """
    limits, recipe, key = process.limits, process.recipe, name.partition("[")[0]
    dose, volume = process.dose, float(process.initial.volume)
    density = float(process.initial.viable)
    known: Mapping[str, tuple[float, float, bool]] = {
        INOCULATION: (0.5 * density, 2.0 * density, True),
        "feed": (0.0, limits.feed_max, False),
        "cytokine_dose": (0.0, limits.cytokine_dose_max, False),
        "harvest_cells": (dose, 1.5 * dose, False),
        "harvest_latest": (0.5 * recipe.harvest_latest, recipe.harvest_latest, False),
        "cspr_pl_per_cell_d": (20.0, 400.0, True),
        "perfusion_max": (0.1 * limits.perfusion_max, limits.perfusion_max, False),
        "perfusion": (0.0, limits.perfusion_max, False),
        "gain": (0.03, 1.0, True),
        "setpoint": (0.0, limits.lactate_soft, False),
        "days": (0.0, recipe.harvest_latest, False),
        "densities": (0.0, dose / volume, False),
    }
    if key not in known:
        raise ConfigError(f"setting {name!r}: unknown; known: {', '.join(known)}")
    return Range(name, *known[key])


def check_range(given: Range, process: Process) -> Range:
    """The range, if it is one and lies within the limits of the process; else ConfigError naming the setting."""
    low, high = limits_of(given.name, process)
    unit = unit_of(given.name)
    if not (math.isfinite(given.low) and math.isfinite(given.high) and given.low < given.high):
        raise ConfigError(
            f"setting {given.name}: from {given.low:g} to {given.high:g} {unit} is no range: low < high is needed"
        )
    if not low <= given.low or not given.high <= high * (1.0 + 1e-9):
        raise ConfigError(
            f"setting {given.name}: from {given.low:g} to {given.high:g} {unit} is beyond the limits of process "
            f"{process.name}, {low:g} to {high:g}"
        )
    return given


def optimum(
    objective: Callable[[np.ndarray], float],
    dimensions: int,
    evaluations: int,
    seed: int,
    first: np.ndarray | None = None,
) -> tuple[np.ndarray, float]:
    """Where in the unit cube a function is least, and how low: differential evolution from a Sobol design.

    `first` [k, dimensions] are points to begin with, in place of as many of the design. Deterministic by `seed`.
    """
    size = max(5, min(POPULATION, evaluations // 2))
    begin = qmc.Sobol(dimensions, rng=np.random.default_rng([seed, 22])).random(2 ** math.ceil(math.log2(size)))[:size]
    if first is not None and first.size:
        begin[: len(first[:size])] = first[:size]
    first_generation: Any = begin  # an array, which the types of SciPy leave out
    found = differential_evolution(
        objective, [(0.0, 1.0)] * dimensions, init=first_generation, maxiter=max(1, evaluations // size - 1), tol=0.0,
        mutation=(0.4, 0.9), recombination=0.8, polish=False, rng=np.random.default_rng([seed, 23]),
    )  # fmt: skip
    return np.asarray(found.x), float(found.fun)


@dataclass(frozen=True, slots=True, eq=False)
class Candidate:
    """A plan and what became of it on a cohort."""

    plan: Process
    prospect: Prospect
    budget: float  # that it is the best for [vessel volumes]

    @property
    def settings(self) -> dict[str, float]:
        """By name, in the units of `controllers.prospect.UNITS`."""
        return settings_of(self.plan)


@dataclass(frozen=True, slots=True, eq=False)
class Found:
    """What a search found; every figure from a cohort that no choice was made on."""

    best: Candidate
    present: Candidate  # the process as it stood
    gain: tuple[float, float, float]  # P of the best less P of the present: paired, with its 90 % interval
    front: tuple[Candidate, ...]  # the best for less and for more medium, by budget
    policies: Mapping[str, float]  # best P of each policy that was searched, on the first cohort: optimistic
    evaluated: int


class _Tried(NamedTuple):
    """One setting of the search on the first cohort."""

    plan: Process
    policy: str
    point: np.ndarray  # in the unit cube
    released: np.ndarray
    medium: np.ndarray

    def score(self, budget: float) -> float:
        """-P within `budget`; of two that are as good the one that takes less medium."""
        most = self.plan.limits.perfusion_max * self.plan.recipe.harvest_latest
        tie = 0.5 / self.medium.size * min(1.0, float(self.medium.mean()) / most)
        return tie - float(np.mean(self.released & (self.medium <= budget)))


def search(
    batch: Batch,
    now: float = 0.0,
    *,
    policies: Sequence[str] = POLICIES,
    within: Sequence[Range] = (),
    fixed: Mapping[str, float] | None = None,
    budget: float | None = None,
    evaluations: int = 500,
    n: int = 400,
    declared: int = 3000,
    seed: int = 0,
    tell: Callable[[], None] = lambda: None,
) -> Found:
    """The settings with the highest P(all CQA within the medium budget).

    Args:
        batch: nobody's yet (`twin.batch.start` with a donor prior), or one that is under way; the recipe of its process is
            scored beside what is found.
        now: from when on the settings hold [d].
        policies: perfusion policies to search, each over all its numbers, feed, cytokine dose and counted dose of harvest.
        within: ranges in place of the usual ones; a setting that is not searched by itself (inoculation, harvest_latest) is
            searched when it has one.
        fixed: settings that stay at a value.
        budget: of medium [vessel volumes]; None: the limits' own.
        evaluations: plans that are played on the first cohort.
        n: donors of the first cohort.
        declared: donors of the third cohort; the second has half of them.
        seed: of the cohorts and of the search.
        tell: called after every plan that was played.

    Raises ConfigError for an unknown policy or setting and for a range that is none or beyond the limits.
    """
    process, fixed = batch.process, dict(fixed or {})
    limit = process.limits.medium_budget if budget is None else budget
    _refuse(process, policies, within, fixed)
    donors, tried = Cohort(batch, now, n, seed), list[_Tried]()

    def run(policy: str, allowed: float, count: float) -> None:
        space = space_of(process, policy, within, fixed)

        def objective(z: np.ndarray) -> float:
            wanted = {r.name: r.at(float(v)) for r, v in zip(space, z, strict=True)}
            plan = planned(process, {**fixed, **wanted}, policy)
            end = play(plan, donors)
            tried.append(_Tried(plan, policy, z.copy(), end.released, end.medium))
            tell()
            return tried[-1].score(allowed)

        known = sorted((t for t in tried if t.policy == policy), key=lambda t: t.score(allowed))
        first = np.array([t.point for t in known[: POPULATION // 2]])
        optimum(objective, len(space), round(count), seed + len(tried), first)

    for policy in policies:
        run(policy, limit, 0.35 * evaluations / len(policies))
    if math.isfinite(limit):
        for policy in policies:
            run(policy, 0.6 * limit, 0.15 * evaluations / len(policies))
            run(policy, 2.0 * limit, 0.15 * evaluations / len(policies))
    run(min(tried, key=lambda t: t.score(limit)).policy, limit, evaluations - len(tried))
    present = planned(process, fixed)
    second, third = Cohort(batch, now, declared // 2, seed + 1), Cohort(batch, now, declared, seed + 2)
    best = _chosen(tried, limit, second, FINALISTS)
    ends = play(present, third, limit), play(best, third, limit)
    front = [
        Candidate(plan, play(plan, third, part * limit), part * limit)
        for part in (FRONT if math.isfinite(limit) else ())
        for plan in [best if part == 1.0 else _chosen(tried, part * limit, second, 2)]
    ]
    by_policy = {p: -min(t.score(limit) for t in tried if t.policy == p) for p in policies}
    return Found(
        Candidate(best, ends[1], limit), Candidate(present, ends[0], limit), paired(ends[1], ends[0]), tuple(front), by_policy, len(tried)
    )  # fmt: skip


def _chosen(tried: Sequence[_Tried], limit: float, second: Cohort, finalists: int) -> Process:
    """The best plan within a budget: the best few on the first cohort, compared on the second."""
    best = sorted(tried, key=lambda t: t.score(limit))[:finalists]
    again = [
        _Tried(t.plan, t.policy, t.point, end.released, end.medium)
        for t in best
        for end in [play(t.plan, second, limit)]
    ]
    return min(again, key=lambda t: t.score(limit)).plan


def space_of(process: Process, policy: str, within: Sequence[Range], fixed: Mapping[str, float]) -> tuple[Range, ...]:
    """What is searched of a policy: its numbers, feed, dose and harvest rule that can vary, and whatever `within` adds."""
    given = {r.name: r for r in within}
    own = names_of(planned(process, {}, policy).recipe)
    usual = [k for k in own if k not in (INOCULATION, "harvest_latest") or k in given]
    found = [given.get(k) or usual_range(k, process) for k in usual if k not in fixed]
    return tuple(r for r in found if r.low < r.high)


def _refuse(process: Process, policies: Sequence[str], within: Sequence[Range], fixed: Mapping[str, float]) -> None:
    """What contradicts itself, before anything is played."""
    if not policies:
        raise ConfigError("policies: at least one is needed")
    known = {k for p in policies for k in names_of(planned(process, {}, p).recipe)}
    for name in (*fixed, *(r.name for r in within)):
        if name not in known:
            raise ConfigError(f"setting {name!r}: unknown to {', '.join(policies)}; known: {', '.join(sorted(known))}")
    for r in within:
        check_range(r, process)
        if r.name in fixed:
            raise ConfigError(
                f"setting {r.name}: is held at {fixed[r.name]:g} and cannot be searched from {r.low:g} to {r.high:g}"
            )
    planned(process, {k: v for k, v in fixed.items() if k in (INOCULATION, *HELD)})


# --- the design space ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class DesignMap:
    """P over a grid of two settings; the rest is the plan's."""

    x: Range
    y: Range
    xs: np.ndarray  # [k]
    ys: np.ndarray  # [m]
    p: np.ndarray  # all CQAs within the budget [m, k]
    p_release: np.ndarray  # all CQAs, whatever the medium [m, k]
    medium: np.ndarray  # mean [vessel volumes] [m, k]
    n: int  # donors

    @property
    def mc_error(self) -> np.ndarray:
        """Standard error of `p` by the number of donors; neighbours share their donors, so differences are surer."""
        return np.sqrt(self.p * (1.0 - self.p) / self.n)


def design_map(
    plan: Process, donors: Cohort, x: Range, y: Range, *, size: int = 13, budget: float | None = None,
    tell: Callable[[], None] = lambda: None,
) -> DesignMap:  # fmt: skip
    """P of `plan` on a `size` by `size` grid of two of its settings. Raises ConfigError for unusable ranges."""
    for r in (x, y):
        if r.name not in names_of(plan.recipe):
            raise ConfigError(
                f"setting {r.name!r}: unknown to policy {plan.recipe.policy}; known: {', '.join(names_of(plan.recipe))}"
            )
        check_range(r, plan)
    if x.name == y.name:
        raise ConfigError(f"setting {x.name}: a map needs two different settings")
    shares = np.linspace(0.0, 1.0, size)
    xs, ys = np.array([x.at(s) for s in shares]), np.array([y.at(s) for s in shares])
    grid = np.zeros((3, size, size))
    for j, k in np.ndindex(size, size):
        end = play(planned(plan, {x.name: float(xs[k]), y.name: float(ys[j])}), donors, budget)
        grid[:, j, k] = end.p, end.released.mean(), end.medium.mean()
        tell()
    return DesignMap(x, y, xs, ys, grid[0], grid[1], grid[2], donors.n)
