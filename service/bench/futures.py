"""`celltwin bench futures`: many futures carried ahead, beside a loop over SciPy's LSODA, NumPy and CasADi's mapped function.

Three problems of car_nk: 10,000 futures of a believed batch over six hours, from day 3 and from day 9, when some are starved and
stiff; and 1,000 donors from inoculation over 28 days, whose perfusion is set anew every day by the recipe. Every future has a
state, kinetics and pump rates of its own, drawn as `twin.futures` draws them. All fixed steps of
a problem are of one length, the longest of `STEPS` that keeps every future within `TOLERANCE` of the reference; LSODA's tolerance
is the loosest power of ten that does so on its sample. The reference is steps of `FINE`, which in turn is held to LSODA at 1e-10.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from scipy.integrate import odeint, solve_ivp

from controllers.recipes import recipe_schedule
from service.bench.timing import Owed, Row, Timed, machine, run_rows
from twin.batch import as_known, assimilate, believe_at, medium_at, start
from twin.bioreactor import Control, Coordinates, Kinetics, Medium, State, Theta, Vessel, from_coordinates, rates
from twin.config import load_config
from twin.donors.prior import preset_prior
from twin.estimation.belief import N_STATE
from twin.estimation.draw import informed_draws
from twin.estimation.model import BioreactorModel
from twin.evidence import Measurement
from twin.futures import forecast
from twin.history import Batch
from twin.integrate import advance as advance_numpy
from twin.integrate import substeps
from twin.native.build import compiler
from twin.native.columns import Columns
from twin.process import Process
from twin.transition import N_CELL, N_VESSEL, advance_many, step_function

SHORT, LONG, WHOLE = (
    "{} futures, 6 h from day {:g}",
    "{} futures, 28 d, daily rates",
    "{} futures to harvest, with statistics",
)
EARLY, LATER = 3.0, 9.0  # d
FIRST = "scipy solve_ivp LSODA, rtol {:.0e}, future by future ({} timed, scaled)"
PLAIN, MAPPED = "NumPy RK4, all futures at once", "CasADi virtual machine, RK4 step mapped ({} timed, scaled)"
INTERPRETED, STRICT, LOOSE = "ours, no compiler", "ours", "ours, the C library's vector functions"
TO_HARVEST = "ours: draws, counts, harvest, bands, P(pass)"
STEPS = tuple(1.0 / k for k in (4, 6, 8, 10, 12, 16, 20, 24, 32, 48, 96, 192))  # d
FINE = 1.0 / 384.0  # d
TOLERANCE = 1e-5
SMALL = 1e-3
"""Differences are relative to a state, or to this where it is smaller (in its own unit)."""
MANY = 128
"""So many futures are timed where every one of them costs the same."""
ROUNDS = 3
PACKAGES = ("numpy", "scipy", "casadi")

Carry = Callable[[np.ndarray, np.ndarray, np.ndarray, float], np.ndarray]
"""(states [13, m], controls [4, m], theta [53, m], span [d]) -> states [13, m]."""


@dataclass(frozen=True, slots=True, eq=False)
class Problem:
    """Futures to be carried ahead."""

    name: str
    x: np.ndarray  # [13, m]
    theta: np.ndarray  # [53, m]
    controls: tuple[np.ndarray, ...]  # one a stretch [4, m]
    span: float  # of a stretch [d]

    def carried(self, carry: Carry) -> np.ndarray:
        """The states at the end [13, m]."""
        x = self.x
        for u in self.controls:
            x = carry(x, u, self.theta, self.span)
        return x

    def sample(self, m: int) -> Problem:
        """The first `m` futures."""
        x, theta = (np.ascontiguousarray(a[:, :m]) for a in (self.x, self.theta))
        return Problem(self.name, x, theta, tuple(np.ascontiguousarray(u[:, :m]) for u in self.controls), self.span)


def apart(a: np.ndarray, b: np.ndarray) -> float:
    """Largest difference of two sets of states, relative (see `SMALL`)."""
    return float(np.max(np.abs(a - b) / np.maximum(np.abs(b), SMALL)))


def grown(process: Process, days: int = 10) -> Batch:
    """A batch that has been counted once a day."""
    batch = start("bench", process, preset_prior(process))
    for day in range(days):
        batch = assimilate(batch, Measurement(f"c{day}", "viable_density", 0.6 * 1.5**day, float(day), day + 0.1))
    return batch


def make_problems(process: Process, batch: Batch, seed: int, short: int, long: int) -> tuple[Problem, Problem, Problem]:
    """Six hours of what is believed on either day, and 28 days of donors of the prior under the recipe, its rates set daily."""
    schedule, model = recipe_schedule(process.recipe), BioreactorModel(process, batch.layout)

    def drawn(day: float, m: int) -> tuple[np.ndarray, np.ndarray]:
        known, rng = as_known(batch, day), np.random.default_rng([seed, round(day)])
        points = informed_draws(believe_at(known, day), batch.prior, batch.layout, process.theta, m, rng)
        x = np.array(from_coordinates(Coordinates(*np.exp(points[:N_STATE]))))
        return x, model.theta_columns(points, medium_at(batch, 0.0))

    def rates_at(t: float, x: np.ndarray) -> np.ndarray:
        return np.array([np.broadcast_to(np.asarray(u, dtype=float), x.shape[1:]) for u in schedule(t, State(*x))])

    ahead: list[Problem] = []
    for day in (EARLY, LATER):
        x, theta = drawn(day, short)
        ahead.append(Problem(SHORT.format(short, day), x, theta, (rates_at(day, x),), 0.25))
    x, theta = drawn(0.0, long)
    first, controls = x, list[np.ndarray]()
    for day in range(28):
        controls.append(rates_at(float(day), x))
        x = advance_many()(x, controls[-1], theta, 1.0)
    return ahead[0], ahead[1], Problem(LONG.format(long), first, theta, tuple(controls), 1.0)


# --- the peers -------------------------------------------------------------------------------------------------------


def theta_of(column: np.ndarray) -> Theta:
    """Named parameters of one future, as floats, or of many, as rows."""
    cell, vessel = N_CELL, N_CELL + N_VESSEL
    parts = column.tolist() if column.ndim == 1 else column
    return Theta(Kinetics(*parts[:cell]), Vessel(*parts[cell:vessel]), Medium(*parts[vessel:]))


def by_lsoda(rtol: float, atol: float | None = None, wrapper: str = "solve_ivp") -> Carry:
    """LSODA on `rates`, one future after the other, by either of SciPy's interfaces to it."""

    def carry(x: np.ndarray, u: np.ndarray, theta: np.ndarray, span: float) -> np.ndarray:
        ends = np.empty_like(x)
        least = rtol if atol is None else atol
        for i in range(x.shape[1]):
            control, fixed = Control(*u[:, i].tolist()), theta_of(theta[:, i])

            def slope(_: float, y: np.ndarray, control: Control = control, fixed: Theta = fixed) -> Any:
                return rates(State(*y), control, fixed)

            if wrapper == "odeint":
                ends[:, i] = odeint(slope, x[:, i], [0.0, span], tfirst=True, rtol=rtol, atol=least)[-1]
            else:
                solved = solve_ivp(slope, (0.0, span), x[:, i], method="LSODA", rtol=rtol, atol=least)
                ends[:, i] = solved.y[:, -1]
        return ends

    return carry


def by_numpy(step: float) -> Carry:
    """The fixed steps in NumPy, one call an operation."""

    def carry(x: np.ndarray, u: np.ndarray, theta: np.ndarray, span: float) -> np.ndarray:
        return np.array(advance_numpy(State(*x), Control(*u), theta_of(theta), span, longest=step))

    return carry


@cache
def mapped(m: int) -> Any:
    """CasADi's own map of the step."""
    return step_function().map(m)


def by_map(step: float) -> Carry:
    """The fixed steps by CasADi's mapped function, one call a step."""

    def carry(x: np.ndarray, u: np.ndarray, theta: np.ndarray, span: float) -> np.ndarray:
        n, run = substeps(span, step), mapped(x.shape[1])
        for _ in range(n):
            x = np.asarray(run(x, u, theta, span / n))
        return x

    return carry


@cache
def _loose() -> Columns:
    return Columns(step_function(), {3}, {0: 0}, loose=True)


def by_vectors(step: float) -> Carry:
    """Our step with the C library's vector functions: within rounding of the others, not to the same bits."""

    def carry(x: np.ndarray, u: np.ndarray, theta: np.ndarray, span: float) -> np.ndarray:
        n = substeps(span, step)
        return _loose()(x, u, theta, span / n, times=n)[0]

    return carry


# --- rows ------------------------------------------------------------------------------------------------------------


def longest_step(problem: Problem, reference: np.ndarray) -> float:
    """The longest of `STEPS` that keeps every future within `TOLERANCE` of the reference."""
    for step in STEPS:
        with np.errstate(all="ignore"):
            off = apart(problem.carried(advance_many(step)), reference)
        if off <= TOLERANCE:
            return step
    return STEPS[-1]


def loosest(problem: Problem, reference: np.ndarray) -> float:
    """The loosest relative tolerance, a power of ten, at which LSODA keeps within `TOLERANCE` of the reference."""
    for power in range(3, 9):
        if apart(problem.carried(by_lsoda(10.0**-power)), reference) <= TOLERANCE:
            return 10.0**-power
    return 1e-8


def rows_of(problem: Problem, step: float, rtol: float, sample: int, effort: float) -> list[Row]:
    """Every implementation of one problem; the first is the loop that a user writes."""
    few, all_ = problem.sample(sample), problem.x.shape[1]
    scale, part = all_ / sample, min(MANY, all_)

    def row(name: str, carry: Carry, times: int, given: Problem = problem, scale: float = 1.0) -> Row:
        return Row(name, problem.name, lambda: given.carried(carry), max(1, round(times * effort)), scale)

    rows = [
        row(FIRST.format(rtol, sample), by_lsoda(rtol), 6, few, scale),
        row(f"scipy odeint, the same ({sample} timed, scaled)", by_lsoda(rtol, wrapper="odeint"), 6, few, scale),
        row(PLAIN, by_numpy(step), 1), row(MAPPED.format(part), by_map(step), 1, problem.sample(part), all_ / part),
        row(INTERPRETED, advance_many(step, compiled=False), 6),
    ]  # fmt: skip
    if advance_compiled():
        rows += [row(STRICT, advance_many(step), 15), row(LOOSE, by_vectors(step), 30)]
    return rows


def advance_compiled() -> bool:
    """Is the step machine code here?"""
    return compiler() is not None and _loose().compiled


def measure(
    seed: int,
    effort: float,
    advance: Callable[[float], None],
    short: int = 10_000,
    long: int = 1_000,
    whole: int = 5_000,
) -> dict[str, Any]:
    """All rows, as `--json` gives them. `advance` is told of every round, `2 * ROUNDS` in all."""
    process = load_config("car_nk")
    batch = grown(process)
    problems = make_problems(process, batch, seed, short, long)
    samples = (min(64, short), min(64, short), min(8, long))
    found: list[dict[str, Any]] = []
    owed: list[Owed] = []
    told: dict[str, Any] = {"coordinates": N_STATE, "seed": seed}
    for problem, sample in zip(problems, samples, strict=True):
        few, reference = problem.sample(sample), problem.carried(advance_many(FINE))
        tight = few.carried(by_lsoda(1e-10, 1e-12))
        step, rtol = longest_step(problem, reference), loosest(few, reference[:, :sample])
        done = run_rows(rows_of(problem, step, rtol, sample, effort), ROUNDS, lambda _: advance(0.5))
        found += _tabled(done, reference)
        owed += _owed(problem.name, done, found, apart(reference[:, :sample], tight))
        told[problem.name] = {"step_h": 24.0 * step, "lsoda_rtol": rtol, "lsoda_futures": sample}
    summary, when = WHOLE.format(whole), max(1, round(4 * effort))
    schedule = recipe_schedule(process.recipe)
    row = Row(TO_HARVEST, summary, lambda: forecast(as_known(batch, 6.5), 6.5, schedule, n=whole, seed=seed), when)
    (harvested,) = run_rows([row], ROUNDS, lambda _: advance(0.5))
    found += _tabled([harvested], None)
    ms = float(np.median(harvested.ms))
    owed.append(Owed(f"{summary} [ms], at most", 1000.0, ms, ms <= 1000.0))
    return {"rows": found, "owed": [o._asdict() for o in owed], "problem": told, "machine": machine(PACKAGES)}


def _tabled(done: list[Timed], reference: np.ndarray | None) -> list[dict[str, Any]]:
    base = float(np.median(done[0].ms))
    return [
        {
            "name": t.name, "group": t.group, "median_ms": float(np.median(t.ms)), "p95_ms": float(np.percentile(t.ms, 95)),
            "ratio": base / float(np.median(t.ms)), "skipped": "",
            "agreement": None if reference is None or t.posterior is None
            else apart(t.posterior, reference[:, : t.posterior.shape[1]]),
        }
        for t in done
    ]  # fmt: skip


def _owed(group: str, done: list[Timed], found: list[dict[str, Any]], checked: float) -> list[Owed]:
    """What PERFORMANCE promises of one problem, on the rows that are there."""
    by = {row["name"]: row for row in found if row["group"] == group}
    bare = max(by[name]["ratio"] for name in (PLAIN, INTERPRETED))
    owed = [Owed(f"{group}: without a compiler, times the LSODA loop, at least", 500.0, bare, bare >= 500.0)]
    built = [by[name]["ratio"] for name in (STRICT, LOOSE) if name in by]
    if built:
        owed.append(
            Owed(f"{group}: compiled, times the LSODA loop, at least", 3000.0, max(built), max(built) >= 3000.0)
        )
    off = max(by[name]["agreement"] for name in (INTERPRETED, STRICT, LOOSE) if name in by)
    return [
        *owed,
        Owed(f"{group}: ours from the reference, relative, at most", TOLERANCE, off, off <= TOLERANCE, answer=True),
        Owed(f"{group}: the reference from LSODA at 1e-10, relative, at most", 1e-7, checked, checked <= 1e-7, answer=True),
    ]  # fmt: skip
