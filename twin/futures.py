"""Ensembles of futures from a belief: bands, P(pass) for every CQA, expected harvest.

Each future is one joint draw of state, donor parameters and sensor errors (`twin.estimation.draw`), and of the kinetics
that show late and that nobody learns; the model carries it forward under the noise of biology. The controls may depend on
what an operator would see of each future (a recipe that answers to density): counts and lactate as the laboratory reads
them, with its noise, its rhythm and its delay, and the harvest falls due on counted cells, as at the edge. The same seed
gives the same draws, so that two schedules can be compared future by future.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from jaxtyping import Float, Int

from twin.batch import Batch, believe_at, medium_at
from twin.bioreactor import Control, Coordinates, Kinetics, State, from_coordinates, to_coordinates
from twin.estimation.belief import N_STATE
from twin.estimation.draw import informed_draws
from twin.estimation.model import BioreactorModel
from twin.evidence import Measurement
from twin.integrate import FLOOR
from twin.process import DEFAULT_NOISE, Target
from twin.transition import advance_many

Schedule = Callable[[float, State], Control]
"""What the pumps will do at `t` [d] when an operator sees `x`: fields are arrays, one value a future. Viable density and
lactate are those last read (0 before the first), where the process has a sensor for them; the rest is as it is."""

HORIZON = 28.0
"""Longest forecast [d]: a recipe that never harvests (`none`) is forecast this far."""

FUTURE_STEP = 1.0 / 48.0
"""Integration step of futures [d]; agrees with the filter's 15 min within 1e-4 (tests)."""

ROUTINE = (1.0, 2.5 / 24.0)
"""Time from sample to sample and until its result is known [d], where the batch has not shown it: SCIENCE section 3."""

ROUND = 1e-3
"""Instants closer than this are one [d]."""

LATE = ("delta", "k_E", "e_L", "k_dS", "k_dC", "k_dL", "k_dA")
"""Kinetics of phenotype and of death by want or poison: a donor's own show late in a batch. Where they are not learnt, every
future draws them from the preset's spread over donors. What else is not learnt shows at once, in kinetics that are."""

COUNTS, LACTATE, VOLUME = "viable_density", State._fields.index("lactate"), State._fields.index("volume")

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
    until: float | None = None,
    also: Sequence[float] = (),
) -> Ensemble:
    """`n` futures from `now` [d] to the recipe's latest harvest day, controls renewed every `step` days.

    A future is harvested when the recipe's dose of viable cells is counted, at the latest on the recipe's last day; or, with
    `harvest_at`, on that day. None is carried further than `HORIZON`. Counts come in the rhythm and with the delay that the
    batch has shown; their instants are edges of the ensemble's time beside the steps. `also` are further instants [d] at which
    controls are renewed; with `until` [d] the ensemble goes on past the harvest. Futures of the same seed, `also` and end meet
    the same chances, whatever is scheduled and whenever it is harvested.
    """
    rng, looks, between = (np.random.default_rng([seed, stream]) for stream in (20, 21, 22))
    process, layout, medium = batch.process, batch.layout, medium_at(batch, now)
    points = informed_draws(believe_at(batch, now), batch.prior, layout, process.theta, n, rng)
    theta = BioreactorModel(process, layout).theta_columns(points, medium)
    for name in (k for k in LATE if k not in layout.parameters):
        theta[Kinetics._fields.index(name)] *= np.exp(process.donor_sd.get(name, 0.0) * rng.standard_normal(n))
    noise = np.minimum(process.noise, DEFAULT_NOISE)[:, None]
    advance, floor = advance_many(FUTURE_STEP), np.array(FLOOR)[:, None]
    x = np.maximum(np.array(from_coordinates(Coordinates(*np.exp(points[:N_STATE])))), floor)
    end = min(harvest_at if harvest_at is not None else process.recipe.harvest_latest, now + HORIZON)
    beyond = max(end, now, min(until if until is not None else end, now + HORIZON))
    counts, lactate = (Rounds.of(batch, now, channel, points, looks) for channel in (COUNTS, "lactate"))
    usual = counts.edges(np.append(np.arange(now, beyond - 1e-9, step), beyond))
    edges = refined(usual, (end, *also))
    chances = _normals(usual, edges, n, rng, between)
    states, used, counted = [x], [np.zeros(n)], [counts.look(now, State(*x).viable) * x[VOLUME]]
    for t, later in pairwise(edges):
        seen = _seen(State(*x), counts.value, lactate.look(float(t), x[LACTATE]))
        control = np.array([np.broadcast_to(np.asarray(u, dtype=float), (n,)) for u in schedule(float(t), seen)])
        x = advance(x, control, theta, later - t)
        shock = noise * np.sqrt(later - t) * next(chances)
        moved = np.array(to_coordinates(State(*x))) * np.exp(shock)
        x = np.maximum(np.array(from_coordinates(Coordinates(*moved))), floor)
        states.append(x)
        used.append(used[-1] + control[0] * (later - t))
        counted.append(counts.look(float(later), State(*x).viable) * x[VOLUME])
    history, volumes = np.array(states), np.array(used)
    last = int(np.abs(edges - end).argmin())
    reached = np.array(counted)[: last + 1] >= process.recipe.harvest_cells
    harvest = np.where(reached.any(axis=0), reached.argmax(axis=0), last) if harvest_at is None else np.full(n, last)
    column = np.arange(n)
    return Ensemble(edges, history, harvest, State(*history[harvest, :, column].T), volumes[harvest, column])


def refined(edges: np.ndarray, also: Sequence[float]) -> np.ndarray:
    """`edges` [d] and, where none is near, the instants `also` that lie between the first and the last."""
    for t in sorted(also):
        if edges[0] < t < edges[-1] and np.abs(edges - t).min() >= ROUND:
            edges = np.insert(edges, np.searchsorted(edges, t), t)
    return edges


def _normals(
    usual: np.ndarray, edges: np.ndarray, n: int, rng: np.random.Generator, between: np.random.Generator
) -> Iterator[np.ndarray]:
    """Standard normals [13, n] of the stretches of `edges`; those of a divided stretch of `usual` add up to its own.

    The chances of a stretch come from `rng` whether it is divided or not, those within it from `between` (a Brownian bridge).
    """
    for a, b in pairwise(usual):
        whole = rng.standard_normal((N_STATE, n))
        inner = edges[(edges > a) & (edges < b)]
        left = whole * np.sqrt(b - a)
        for t in inner:
            part = left * ((t - a) / (b - a))
            part += np.sqrt((t - a) * (b - t) / (b - a)) * between.standard_normal((N_STATE, n))
            yield part / np.sqrt(t - a)
            a, left = t, left - part
        yield left / np.sqrt(b - a) if inner.size else whole


@dataclass(slots=True)
class Rounds:
    """How the laboratory reads one channel of every future: now and then, with noise, known some hours later."""

    value: np.ndarray  # newest known reading of every future [m]; NaN before the first
    due: float  # when the next sample is drawn [d]
    every: float  # from sample to sample [d]
    delays: np.ndarray  # from sample to result, as seen so far [d]
    gain: np.ndarray | None  # ln of reading over truth, noise apart [m]; None: no sensor, the truth is seen at once
    sd: float  # of ln
    rng: np.random.Generator
    waiting: list[tuple[np.ndarray, np.ndarray]]  # results to come: when each is known [d], and what it says

    @classmethod
    def of(cls, batch: Batch, now: float, channel: str, points: np.ndarray, rng: np.random.Generator) -> Rounds:
        """The rounds that the results of `channel` known by `now` [d] have shown, else those of `ROUTINE`."""
        n, sensor, told = points.shape[1], batch.process.sensors.get(channel), _results(batch, now, channel)
        times = [sampled for sampled, _, _ in told]
        every = float(np.clip(np.median(np.diff(times)), FUTURE_STEP, 7.0)) if len(times) > 1 else ROUTINE[0]
        due = times[-1] + every if times else now
        due += every * max(0.0, np.ceil((now - due) / every - 1.0))  # rounds that were missed
        gain = None
        if sensor is not None:
            gain = points[batch.layout.index(sensor.error.name)] if sensor.error is not None else np.zeros(n)
        delays = np.array([known - sampled for sampled, known, _ in told] or [ROUTINE[1]])
        last = np.full(n, told[-1][2] if told else np.nan)
        return cls(last, due, every, delays, gain, sensor.sd if sensor else 0.0, rng, [])

    def edges(self, edges: np.ndarray) -> np.ndarray:
        """`edges` [d] and between them the instants at which samples are drawn and, as a rule, known."""
        if self.gain is None:
            return edges
        drawn = np.arange(self.due, edges[-1], self.every)
        more = np.concatenate([drawn, drawn + np.median(self.delays)])
        more = more[(more > edges[0]) & (more < edges[-1])]
        near = np.abs(more[:, None] - edges).min(axis=1, initial=np.inf) < ROUND
        return np.unique(np.concatenate([edges, more[~near]]))

    def look(self, t: float, truth: np.ndarray) -> np.ndarray:
        """Newest reading known at `t` [d] of every future, where it is `truth` [m]."""
        if self.gain is None:
            self.value = truth
            return truth
        while self.due <= t + ROUND:
            read = truth * np.exp(self.gain + self.sd * self.rng.standard_normal(truth.size))
            self.waiting.append((self.due + self.rng.choice(self.delays, truth.size), read))
            self.due += self.every
        for known, read in self.waiting:
            self.value = np.where(known <= t + ROUND, read, self.value)
        while self.waiting and (self.waiting[0][0] <= t + ROUND).all():
            self.waiting.pop(0)
        return self.value


def _results(batch: Batch, now: float, channel: str) -> list[tuple[float, float, float]]:
    """Results of `channel` known by `now`: sampled at [d], known at [d], value; total count times viability is a count."""

    def of(name: str) -> list[Measurement]:
        return [m for m in batch.evidence if m.channel == name and m.received_at <= now]

    told = [(m.sampled_at, m.received_at, m.value) for m in of(channel)]
    if told or channel != COUNTS:
        return told
    alive = {m.sampled_at: m for m in of("viability")}
    pairs = [(m, alive[m.sampled_at]) for m in of("total_density") if m.sampled_at in alive]
    return [(m.sampled_at, max(m.received_at, v.received_at), m.value * v.value) for m, v in pairs]


def _seen(x: State, counted: np.ndarray, lactate: np.ndarray) -> State:
    """What an operator sees: viable density and lactate as last read."""
    share = np.nan_to_num(counted) / x.viable
    return x._replace(
        car_positive=x.car_positive * share, car_negative=x.car_negative * share, lactate=np.nan_to_num(lactate)
    )


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
    found = summary(ensemble, batch.process.targets)
    if not intervene:
        return found
    return replace(found, last_useful_day=last_useful_day(batch, now, schedule, n=n, seed=seed, step=step))


def summary(ensemble: Ensemble, targets: tuple[Target, ...]) -> Forecast:
    """What an ensemble of futures says."""
    states = State(*np.moveaxis(ensemble.states, 1, 0))
    return Forecast(
        from_time=float(ensemble.t[0]),
        bands={name: band(ensemble.t, quantity(states)) for name, quantity in QUANTITIES.items()},
        p_pass={t.cqa: float(passes(t, ensemble.harvested).mean()) for t in targets},
        p_release=float(release(ensemble, targets).mean()) if targets else 1.0,
        harvest=quantiles(ensemble.t[ensemble.harvest]),
        medium=quantiles(ensemble.perfused),
        last_useful_day=None,
        n=ensemble.perfused.size,
    )


def band(t: np.ndarray, values: np.ndarray) -> Band:
    """Quantiles of `values` [k, m] at instants `t` [k] over the m futures."""
    return Band(t, *np.quantile(values, [0.05, 0.5, 0.95], axis=1))


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
