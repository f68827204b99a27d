"""Ensembles of futures from a belief: bands, P(pass) for every CQA, expected harvest.

Each future is one joint draw of state, donor parameters and sensor errors, carried forward by the model with the
filter's own process noise. The controls may depend on each future's own state (a recipe that answers to density).
The same seed gives the same draws, so that two schedules can be compared future by future.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from jaxtyping import Float, Int

from twin.batch import Batch, believe_at, medium_at
from twin.bioreactor import Control, Coordinates, State, from_coordinates, to_coordinates
from twin.estimation.belief import N_STATE, draws
from twin.estimation.model import BioreactorModel
from twin.integrate import FLOOR
from twin.process import Target
from twin.transition import advance_many

Schedule = Callable[[float, State], Control]
"""What the pumps will do at `t` [d] in state `x`: fields are arrays, one value a future."""

HORIZON = 28.0
"""Longest forecast [d]: a recipe that never harvests (`none`) is forecast this far."""

FUTURE_STEP = 1.0 / 48.0
"""Integration step of futures [d]; agrees with the filter's 15 min within 1e-4 (tests)."""

QUANTITIES: Mapping[str, Callable[[State], np.ndarray]] = {
    "viable_density": lambda x: x.viable,
    "viable_cells": lambda x: x.viable_cells,
    "viability": lambda x: x.viability,
    "car_fraction": lambda x: x.car_fraction,
    "exhausted_fraction": lambda x: x.exhausted,
    "glucose": lambda x: x.glucose,
    "lactate": lambda x: x.lactate,
    "glutamine": lambda x: x.glutamine,
    "ammonia": lambda x: x.ammonia,
    "cytokine": lambda x: x.cytokine,
}
"""What is forecast, by name, in the units of `State` (viable_cells in 1e9 cells)."""


@dataclass(frozen=True, slots=True, eq=False)
class Band:
    """5, 50 and 95 % quantiles over time."""

    t: Float[np.ndarray, " k"]  # [d]
    q05: Float[np.ndarray, " k"]
    q50: Float[np.ndarray, " k"]
    q95: Float[np.ndarray, " k"]


@dataclass(frozen=True, slots=True, eq=False)
class Ensemble:
    """Futures as they ran."""

    t: Float[np.ndarray, " k"]  # [d]
    states: Float[np.ndarray, "k s m"]
    harvest: Int[np.ndarray, " m"]  # index into `t` at which each future is harvested
    harvested: State  # state of each future at its harvest
    perfused: Float[np.ndarray, " m"]  # medium until harvest [vessel volumes]


@dataclass(frozen=True, slots=True, eq=False)
class Forecast:
    """What the twin expects, and how sure it is."""

    from_time: float  # [d]
    bands: Mapping[str, Band]
    p_pass: Mapping[str, float]  # by CQA
    p_release: float  # all CQAs together
    harvest: tuple[float, float, float]  # 5, 50, 95 % quantiles of the harvest day [d]
    medium: tuple[float, float, float]  # of the medium still to be perfused [vessel volumes]
    last_useful_day: float | None  # last day on which full perfusion would still raise P(release) noticeably [d]
    n: int


def run_futures(
    batch: Batch,
    now: float,
    schedule: Schedule,
    *,
    n: int = 200,
    seed: int = 0,
    step: float = 0.25,
    harvest_at: float | None = None,
) -> Ensemble:
    """`n` futures from `now` [d] to the recipe's latest harvest day, controls renewed every `step` days.

    A future is harvested when its viable cells reach the recipe's dose, at the latest on the recipe's last day; or, with
    `harvest_at`, on that day. None is carried further than `HORIZON`.
    """
    rng = np.random.default_rng([seed, 20])
    process, layout = batch.process, batch.layout
    points = draws(believe_at(batch, now), n, rng)
    theta = BioreactorModel(process, layout).theta_columns(points, medium_at(batch, now))
    noise = np.array(process.noise)[:, None]
    advance, floor = advance_many(FUTURE_STEP), np.array(FLOOR)[:, None]
    x = np.maximum(np.array(from_coordinates(Coordinates(*np.exp(points[:N_STATE])))), floor)
    end = min(harvest_at if harvest_at is not None else process.recipe.harvest_latest, now + HORIZON)
    edges = np.append(np.arange(now, max(end, now) - 1e-9, step), max(end, now))
    states, used = [x], [np.zeros(n)]
    for t, until in pairwise(edges):
        control = np.array([np.broadcast_to(np.asarray(u, dtype=float), (n,)) for u in schedule(float(t), State(*x))])
        x = advance(x, control, theta, until - t)
        shock = noise * np.sqrt(until - t) * rng.standard_normal((N_STATE, n))
        moved = np.array(to_coordinates(State(*x))) * np.exp(shock)
        x = np.maximum(np.array(from_coordinates(Coordinates(*moved))), floor)
        states.append(x)
        used.append(used[-1] + control[0] * (until - t))
    history, volumes = np.array(states), np.array(used)
    reached = State(*np.moveaxis(history, 1, 0)).viable_cells >= process.recipe.harvest_cells
    last = len(edges) - 1
    harvest = np.where(reached.any(axis=0), reached.argmax(axis=0), last) if harvest_at is None else np.full(n, last)
    column = np.arange(n)
    return Ensemble(edges, history, harvest, State(*history[harvest, :, column].T), volumes[harvest, column])


def passes(target: Target, harvested: State) -> np.ndarray:
    """Which futures meet a target at harvest."""
    value = QUANTITIES[target.cqa](harvested)
    return value >= target.value if target.sense == "at_least" else value <= target.value


def release(ensemble: Ensemble, targets: tuple[Target, ...]) -> np.ndarray:
    """Which futures meet every target."""
    return np.all([passes(t, ensemble.harvested) for t in targets], axis=0)


def quantiles(values: np.ndarray) -> tuple[float, float, float]:
    low, middle, high = np.quantile(values, [0.05, 0.5, 0.95])
    return float(low), float(middle), float(high)


def forecast(
    batch: Batch,
    now: float,
    schedule: Schedule,
    *,
    n: int = 200,
    seed: int = 0,
    step: float = 0.25,
    harvest_at: float | None = None,
    intervene: bool = False,
) -> Forecast:
    """Forecast from `now` [d] under `schedule`; with `intervene`, the last useful day as well (costs about tenfold)."""
    ensemble = run_futures(batch, now, schedule, n=n, seed=seed, step=step, harvest_at=harvest_at)
    targets = batch.process.targets
    bands: dict[str, Band] = {}
    for name, quantity in QUANTITIES.items():
        low, middle, high = np.quantile(quantity(State(*np.moveaxis(ensemble.states, 1, 0))), [0.05, 0.5, 0.95], axis=1)
        bands[name] = Band(ensemble.t, low, middle, high)
    return Forecast(
        from_time=now,
        bands=bands,
        p_pass={t.cqa: float(passes(t, ensemble.harvested).mean()) for t in targets},
        p_release=float(release(ensemble, targets).mean()) if targets else 1.0,
        harvest=quantiles(ensemble.t[ensemble.harvest]),
        medium=quantiles(ensemble.perfused),
        last_useful_day=last_useful_day(batch, now, schedule, n=n, seed=seed, step=step) if intervene else None,
        n=n,
    )


def last_useful_day(
    batch: Batch, now: float, schedule: Schedule, *, n: int, seed: int, step: float, gain: float = 0.05
) -> float | None:
    """The last whole day from `now` on which full perfusion and cytokine dosing still raise P(release) by `gain`.

    Paired futures: the same draws with and without the intervention. None: no day from now on does.
    """
    targets, limits = batch.process.targets, batch.process.limits

    def p_release(change_at: float) -> float:
        def intervened(t: float, x: State) -> Control:
            u = schedule(t, x)
            full = u._replace(perfusion=limits.perfusion_max, cytokine_dose=limits.cytokine_dose_max)
            return full if t >= change_at else u

        return float(release(run_futures(batch, now, intervened, n=n, seed=seed, step=step), targets).mean())

    baseline = p_release(np.inf)
    days = [now, *np.arange(np.ceil(now + 1e-9), min(batch.process.recipe.harvest_latest, now + HORIZON))]
    useful = [day for day in days if p_release(float(day)) >= baseline + gain]
    return float(max(useful)) if useful else None
