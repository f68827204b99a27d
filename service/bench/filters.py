"""`celltwin bench filter`: the estimator beside filterpy and Stone-Soup on one problem, agreement included."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np

from service.bench import stone, timing
from service.bench.peers import by_rk4, by_solver, day_again, loop, one_step
from service.bench.problem import PROBES, QUARTER, START, Problem, make_problem, value_of
from service.bench.timing import Owed, Posterior, Row, Timed, apart, machine, run_rows
from twin.batch import assimilate
from twin.estimation.filters import Filter
from twin.estimation.fleet import fuse_fleet, look_fleet, predict_fleet
from twin.estimation.screen import Datum, fuse
from twin.native.build import compiler

STEP, FLEET, REPLAY = "15 min and 8 readings", "the same, {} reactors", "a late fact replays 24 h (96 such steps)"
TEXTBOOK = "filterpy UKF + NumPy RK4 per point"
COMPILED, INTERPRETED = "ours", "ours, no compiler"
SAMPLE = 8
"""So many reactors of the filterpy loop are timed; the figure is scaled to the fleet."""
ROUNDS = 10
PACKAGES = ("numpy", "scipy", "casadi", "filterpy", "stonesoup")


def ours(problem: Problem, label: str, effort: float) -> list[Row]:
    """The rows of this library, as they run in this process."""
    ukf, ekf = problem.filters
    fleet, beliefs, drives, readings = problem.fleet, problem.beliefs, problem.drives, problem.readings
    r, gate = problem.r[None], problem.gate[None]
    data = tuple(
        Datum(problem.process.sensors[c], value_of(c, y), float(y), float(v))
        for c, y, v in zip(PROBES, readings[0], problem.r, strict=True)
    )
    batch, late = problem.batch()

    def step(algorithm: Filter) -> Callable[[], Posterior]:
        def run() -> Posterior:
            ahead = algorithm.predict(first, drives[0], START + QUARTER)
            fused = fuse(algorithm, ahead, data, drives[0], {}, problem.layout, problem.process.sensors)
            return Posterior(fused.belief.mean, fused.belief.cov)

        first = beliefs[0]
        return run

    def all_reactors() -> Posterior:
        ahead = predict_fleet(fleet, beliefs, drives, START + QUARTER)
        after, _ = fuse_fleet(ahead, look_fleet(fleet, ahead, PROBES), readings, r, gate)
        return Posterior(after.mean, after.cov)

    def again() -> Posterior:
        after = assimilate(batch, late).belief
        return Posterior(after.mean, after.cov)

    def times(n: int) -> int:
        return max(1, round(n * effort))

    return [
        Row(f"{label}: UKF", STEP, step(ukf), times(400)),
        Row(f"{label}: EKF", STEP, step(ekf), times(200)),
        Row(f"{label}: stacked", FLEET, all_reactors, times(30)),
        Row(f"{label}: rewind and replay", REPLAY, again, times(30)),
    ]


def peers(problem: Problem, effort: float) -> list[Row]:
    """The rows of other libraries; the first of each group is what a user writes."""
    lsoda, rk45 = by_solver("LSODA", rtol=1e-6), by_solver("RK45")

    def times(n: int) -> int:
        return max(1, round(n * effort))

    sample = min(SAMPLE, problem.reactors)
    rows = [
        Row("filterpy UKF + solve_ivp LSODA, rtol 1e-6", STEP, lambda: one_step(problem, lsoda), times(40)),
        Row("filterpy UKF + solve_ivp RK45", STEP, lambda: one_step(problem, rk45), times(20)),
        Row(TEXTBOOK, STEP, lambda: one_step(problem, by_rk4), times(20)),
    ]
    if stone.installed():
        rows.append(Row("Stone-Soup UKF + NumPy RK4 of all points", STEP, stone.one_step(problem), times(100)))
    name = f"filterpy + LSODA, reactor by reactor ({sample} timed, scaled)"
    rows += [
        Row(name, FLEET, lambda: loop(problem, lsoda, sample), times(5), problem.reactors / sample),
        Row("filterpy + LSODA, the day again", REPLAY, lambda: day_again(problem, lsoda), times(3)),
    ]
    return rows


def measure(seed: int, reactors: int, effort: float, advance: Callable[[float], None]) -> dict[str, Any]:
    """All rows, as `--json` gives them. `advance` is told of every round, `2 * ROUNDS` in all."""
    problem = make_problem(seed, reactors)
    label = COMPILED if compiler() else INTERPRETED
    done = run_rows([*peers(problem, effort), *ours(problem, label, effort)], ROUNDS, advance)
    if compiler():
        done += without_compiler(seed, reactors, effort)
    advance(ROUNDS)
    if not stone.installed():
        done.append(Timed("Stone-Soup", STEP, (), None, "not installed: pip install 'celltwin[bench]'"))
    rows = [row for group in (STEP, FLEET, REPLAY) for row in _figures([t for t in done if t.group == group], reactors)]
    return {
        "rows": rows,
        "owed": [o._asdict() for o in _owed(done, rows)],
        "problem": {"process": problem.process.name, "coordinates": problem.layout.size, "readings": PROBES,
                    "reactors": reactors, "seed": seed},
        "machine": {"clock": "CPU time of the process", **machine(PACKAGES)},
    }  # fmt: skip


def _figures(done: list[Timed], reactors: int) -> list[dict[str, Any]]:
    """One group: medians, and how each row compares with the first."""
    base = done[0]
    rows: list[dict[str, Any]] = []
    for t in done:
        row: dict[str, Any] = {"name": t.name, "group": t.group.format(reactors)}
        if t.skipped:
            row |= {"median_ms": None, "p95_ms": None, "ratio": None, "agreement": None, "skipped": t.skipped}
        else:
            median, first = float(np.median(t.ms)), t.base_ms or float(np.median(base.ms))
            row |= {"median_ms": median, "p95_ms": float(np.percentile(t.ms, 95)),
                    "base_ms": first, "ratio": first / median, "agreement": _agreement(t, base)}  # fmt: skip
        rows.append(row)
    return rows


def _agreement(t: Timed, base: Timed) -> float | None:
    """How far the posterior is from that of the first row [sd]; None for the first row itself."""
    a, b = t.posterior, base.posterior
    if t is base or a is None or b is None:
        return None
    if b.mean.ndim == 2:  # the loop answers for a sample
        a = Posterior(a.mean[: len(b.mean)], a.cov[: len(b.mean)])
    return apart(a, b)


def _owed(done: list[Timed], rows: list[dict[str, Any]]) -> list[Owed]:
    """What PERFORMANCE promises, on the rows that are there."""
    by = {row["name"]: row for row in rows}
    least = [
        (f"{COMPILED}: UKF", "times a step of filterpy + LSODA", 100.0),
        (f"{INTERPRETED}: UKF", "times a step of filterpy + LSODA", 60.0),
        (f"{COMPILED}: stacked", "times the loop over reactors", 100.0),
    ]
    found = [
        Owed(f"{name}, {what}, at least", limit, by[name]["ratio"], by[name]["ratio"] >= limit)
        for name, what, limit in least
        if name in by
    ]
    name = f"{COMPILED}: rewind and replay"
    if name in by:
        found.append(Owed(f"{name} [ms], at most", 50.0, by[name]["median_ms"], by[name]["median_ms"] <= 50.0))
    posterior = {t.name: t.posterior for t in done}
    book = posterior[TEXTBOOK]
    for label in (COMPILED, INTERPRETED):
        mine = posterior.get(f"{label}: UKF")
        if mine is not None and book is not None:
            far = apart(mine, book)
            found.append(Owed(f"{label}: UKF, from {TEXTBOOK} [sd], at most", 1e-10, far, far <= 1e-10, answer=True))
    return found


def without_compiler(seed: int, reactors: int, effort: float) -> list[Timed]:
    """The rows of this library in a process of its own that is to find no compiler.

    The first row of each group is timed there again, so that both sides of a ratio meet the same state of the machine.
    """
    return [
        Timed(
            t["name"], t["group"], tuple(t["ms"]), Posterior(np.array(t["mean"]), np.array(t["cov"])), "", t["base_ms"]
        )
        for t in timing.without_compiler("filters", {"seed": seed, "reactors": reactors, "effort": effort})
    ]


def answer(told: str) -> str:
    """What that process prints."""
    given = json.loads(told)
    problem = make_problem(given["seed"], given["reactors"])
    first = {row.group: row for row in reversed(peers(problem, given["effort"]))}
    rows = run_rows([*first.values(), *ours(problem, INTERPRETED, given["effort"])], ROUNDS, lambda _: None)
    base = {t.group: float(np.median(t.ms)) for t in rows[: len(first)]}
    return json.dumps(
        [
            {
                "name": t.name,
                "group": t.group,
                "ms": t.ms,
                "base_ms": base[t.group],
                "mean": t.posterior.mean.tolist(),
                "cov": t.posterior.cov.tolist(),
            }
            for t in rows[len(first) :]
            if t.posterior is not None
        ]
    )
