"""Does control earn its place? The MPC, recipes and hindsight on the same mismatched donors, and what the MPC declared.

Every donor's batch is run in closed loop under the MPC and by the edge alone under recipes. On days 6, 8 and 10 the plan in
force declares its chance of release (`controllers.outlook`); the batch then shows. Hindsight is the plant itself, asked
donor by donor: the best of a family of programmes, with the true state known and harvested at the best hour of the true
course. No policy can know as much, and the true optimum may lie a little above the family's; where hindsight fails, the donor
cannot pass on this plant within the recipe's days.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product
from typing import Any, NamedTuple

import numpy as np

from controllers import make_recipe
from controllers.outlook import declared
from controllers.prospect import planned as set_up
from simulators.closed_loop import run_closed_loop
from simulators.comparison import paired
from simulators.metrics import summarise
from simulators.recording import record
from simulators.study.base import Figure, Row, Study, Table
from twin.batch import as_known
from twin.config import load_config
from twin.donors.prior import DonorPrior
from twin.process import Process, Recipe
from twin.scores import Z95, brier, logistic_calibration

RECIPES = ("time_steps", "density_steps", "cspr_50", "cspr_100", "lactate_p_12", "lactate_p_8", "constant_2")
"""The recipes of SCIENCE section 4."""
DOSED = ("cspr_100", "lactate_p_8", "constant_2")
"""Those of them that are also run at the largest cytokine dose: the MPC may dose more than the recipes do."""
MPC, HINDSIGHT = "mpc", "hindsight"
DAYS = (6.0, 8.0, 10.0)
"""Days on which the plan in force is asked what it declares."""
FUTURES = 300
BUDGET = 8.0
"""Volumes of medium that a donor may take on average (issue of the users: pass rate at no more than this)."""

NEAR = 0.02
"""How much less than the MPC a recipe may pass and still be what its medium is held against."""


class Job(NamedTuple):
    """One donor under every policy."""

    seed: int
    process: str
    prior: DonorPrior | None


def jobs(batches: int, first: int, process: str, prior: DonorPrior | None) -> Sequence[Job]:
    """One job a donor."""
    return [Job(first + k, process, prior) for k in range(batches)]


def run(job: Job) -> Row:
    """One donor: a row of outcome a policy, declared chances, and hindsight."""
    process = load_config(job.process)
    batches: dict[str, dict[str, Any]] = {}
    result = run_closed_loop(process, MPC, donor=job.seed, seed=job.seed, donor_prior=job.prior)
    batches[MPC] = _row(result.outcome, job.seed)
    said: dict[float, float] = {}
    if result.session is not None:
        for decision in result.decisions:
            if decision.at in DAYS and decision.plan.controls:
                batch = as_known(result.session.batch, decision.at)
                said[decision.at] = declared(batch, decision.at, decision.plan, n=FUTURES, seed=job.seed).p_release
    for name, recipe in recipes(process).items():
        batches[name] = _row(run_closed_loop(process, recipe, donor=job.seed, seed=job.seed).outcome, job.seed)
    batches[HINDSIGHT] = hindsight(process, job.seed)
    return {"seed": job.seed, "batches": batches, "declared": said}


def _row(outcome: Any, donor: int) -> dict[str, Any]:
    return {
        "donor": donor, "seed": donor, "scenario": "nominal", "passed": outcome.passed, "missed": ",".join(outcome.missed),
        "margin": 0.0, "day": outcome.day, "medium_vv": outcome.medium_vv, "cytokine": outcome.cytokine, "feed_vv": outcome.feed_vv,
        "lactate_peak": outcome.lactate_peak, "viability_low": outcome.viability_low, **outcome.cqas,
    }  # fmt: skip


def recipes(process: Process) -> dict[str, Recipe]:
    """The recipes as users run them, and the best of them at the largest cytokine dose."""
    own = {name: make_recipe(name, process) for name in RECIPES}
    most = process.limits.cytokine_dose_max
    return own | {dosed(name): replace(own[name], name=f"{name}*", cytokine_dose=most) for name in DOSED}


def dosed(name: str) -> str:
    """What a recipe at the largest cytokine dose is called."""
    return f"{name}, most cytokine"


ALL = (*RECIPES, *map(dosed, DOSED))


def programmes(process: Process) -> list[Recipe]:
    """The family that hindsight chooses from: perfusion by density, its ceiling, and the cytokine dose."""
    low, high = process.recipe.cytokine_dose, process.limits.cytokine_dose_max
    return [
        set_up(process, {"cspr_pl_per_cell_d": c, "perfusion_max": share * process.limits.perfusion_max, "cytokine_dose": dose}, "cspr").recipe
        for c, share, dose in product((60.0, 100.0, 160.0, 260.0), (0.5, 1.0), (low, high))
    ]  # fmt: skip


def hindsight(process: Process, donor: int) -> dict[str, Any]:
    """The programme and the hour that pass on least medium; where none passes, those with the most cells."""
    rows = [_best_hour(process, donor, recipe) for recipe in programmes(process)]
    return min(rows, key=lambda r: (not r["passed"], r["medium_vv"] if r["passed"] else -r["viable_cells"]))


def _best_hour(process: Process, donor: int, recipe: Recipe) -> dict[str, Any]:
    course = record(process, donor, seed=donor, recipe=recipe, days=recipe.harvest_latest, online=False).truth
    met = np.all([_met(course[t.cqa], t.sense, t.value) for t in process.targets], axis=0)
    k = int(met.argmax()) if met.any() else int(course["viable_cells"].argmax())
    reached = {name: float(values[k]) for name, values in course.items()}
    return {
        "donor": donor, "seed": donor, "scenario": "nominal", "passed": bool(met[k]), "day": reached["time"],
        "missed": ",".join(t.cqa for t in process.targets if not t.met(reached[t.cqa])), "margin": 0.0, "cytokine": 0.0,
        "feed_vv": 0.0, "lactate_peak": float(course["lactate"][: k + 1].max()),
        "viability_low": float(course["viability"][: k + 1].min()), **reached,
    }  # fmt: skip


def _met(values: np.ndarray, sense: str, limit: float) -> np.ndarray:
    return values >= limit if sense == "at_least" else values <= limit


def _by_policy(rows: Sequence[Row]) -> dict[str, list[dict[str, Any]]]:
    return {name: [r["batches"][name] for r in rows] for name in (MPC, *ALL, HINDSIGHT)}


def figures(rows: Sequence[Row]) -> tuple[Figure, ...]:
    """The MPC against the best recipe and hindsight, and the calibration of what it declared."""
    by = _by_policy(rows)
    told = {name: summarise(batches) for name, batches in by.items()}
    mpc, n = told[MPC], len(rows)
    best = max(ALL, key=lambda name: (told[name]["pass"], -told[name]["medium_vv"]))
    frugal = min(
        (name for name in ALL if told[name]["pass"] >= mpc["pass"] - NEAR), default=best, key=lambda name: told[name]["medium_vv"]
    )  # fmt: skip
    feasible = [k for k, row in enumerate(by[HINDSIGHT]) if row["passed"]]
    able = [by[MPC][k] for k in feasible]
    against = paired(by[best], by[MPC])
    density = np.array([row["viable_density"] for row in able])
    found = [
        Figure("MPC: pass rate", mpc["pass"], low=0.90, n=n, note=_between(mpc["pass_ci"])),
        Figure("hindsight: pass rate", told[HINDSIGHT]["pass"], n=n, note=f"{_between(told[HINDSIGHT]['pass_ci'])}; on {_mean([by[HINDSIGHT][k] for k in feasible], 'medium_vv'):.1f} volumes where it passes"),
        Figure("MPC: pass rate on donors that hindsight passes", float(np.mean([r["passed"] for r in able])) if able else float("nan"), low=0.90, n=len(able)),
        Figure("MPC: medium, mean over all donors [volumes]", mpc["medium_vv"], high=BUDGET, n=n, note=_between(mpc["medium_vv_ci"])),
        Figure(f"MPC less best recipe ({best}): pass rate", float(against["pass_difference"]), low=0.0, n=n, note=f"{_between(against['pass_difference_ci'])}; McNemar p {against['p']:.3f}"),
        Figure(f"medium saved against {frugal}, the cheapest that passes as many within {NEAR:.0%}, else the best", 1.0 - mpc["medium_vv"] / told[frugal]["medium_vv"], low=0.10, n=n, note=f"{_saved(by[frugal], by[MPC])}; it passes {told[frugal]['pass']:.3f}"),
        Figure("MPC: CV of density at harvest, donors that hindsight passes", float(density.std(ddof=1) / density.mean()) if density.size > 1 else float("nan"), high=0.10, n=density.size),
    ]  # fmt: skip
    return (*found, *_calibration(rows))


def _mean(rows: Sequence[Mapping[str, Any]], key: str) -> float:
    return float(np.mean([r[key] for r in rows])) if rows else float("nan")


def _between(ci: Sequence[float] | None) -> str:
    return "" if ci is None else f"95 % {ci[0]:.2f} to {ci[1]:.2f}"


def _saved(a: Sequence[Mapping[str, Any]], b: Sequence[Mapping[str, Any]]) -> str:
    less = np.array([x["medium_vv"] - y["medium_vv"] for x, y in zip(a, b, strict=True)])
    half = Z95 * less.std(ddof=1) / np.sqrt(less.size) if less.size > 1 else float("nan")
    return f"{less.mean():.2f} +/-{half:.2f} volumes a donor, paired"


def _calibration(rows: Sequence[Row]) -> list[Figure]:
    """Declared P(release) against what came of it, by day."""
    found: list[Figure] = []
    for day in DAYS:
        pairs = [(r["declared"][day], float(r["batches"][MPC]["passed"])) for r in rows if day in r["declared"]]
        p, y = np.array([a for a, _ in pairs]), np.array([b for _, b in pairs])
        if p.size < 20 or y.min() == y.max():
            continue
        fit = logistic_calibration(p, y > 0.5, FUTURES)
        score, slope, half = brier(p, y > 0.5), fit.slope, Z95 * fit.slope_sd
        found += [
            Figure(f"declared P(release) from day {day:g}: calibration slope", slope, low=0.8, high=1.2, n=p.size, note=f"+/-{half:.2f}; passed {y.mean():.3f}, declared {p.mean():.3f}"),
            Figure(f"declared P(release) from day {day:g}: Brier less base rate's", score.score - score.base, high=0.0, n=p.size),
        ]  # fmt: skip
    return found


def tables(rows: Sequence[Row]) -> tuple[Table, ...]:
    """Every policy on the same donors."""
    lines: list[tuple[Any, ...]] = []
    for name, batches in _by_policy(rows).items():
        s = summarise(batches)
        missed = ", ".join(f"{cqa} {k}" for cqa, k in s["missed"].items())
        lines.append(
            (
                name,
                f"{s['pass']:.3f}",
                _between(s["pass_ci"]),
                f"{s['days']:.1f}",
                f"{s['medium_vv']:.1f}",
                f"{s['cells']:.1f}",
                missed,
            )
        )
    return (Table("all donors", ("policy", "pass", "", "day", "volumes", "1e9 cells", "missed"), tuple(lines)),)


STUDY = Study("Control against recipes and hindsight", 200, jobs, run, figures, tables)
