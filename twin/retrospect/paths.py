"""Joint draws of what really happened in a batch, given all of its evidence, and the batch run again from them.

A draw is a whole path of the state and of the donor's parameters: the smoother's Gaussians are sampled backwards (Fruhwirth-
Schnatter 1994), so that the parts of a path belong together. Kinetics that no data of the batch inform but that decide what
other inputs would have done (`UNSEEN`) are drawn with the preset's spread over donors. What the model does not explain of a
path from one instant to the next is its shock. A rerun keeps start, parameters and shocks of each path and changes what is
asked (Pearl's abduction, action, prediction): the same draws with and without a change are compared path by path.

Shocks are the model's errors under the conditions that were. Under others they are correlated with those the less the further
the conditions differ, as a Gaussian process over conditions would have it (Kennedy and O'Hagan, J. R. Stat. Soc. B 63, 425, 2001;
`ALIKE`), and what is not known of them is drawn anew with the filter's process noise. Without a change all is kept, to the bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from twin.bioreactor import Control, Coordinates, Kinetics, State, from_coordinates, to_coordinates
from twin.estimation.belief import N_STATE, draws
from twin.estimation.filters import symmetric
from twin.estimation.model import BioreactorModel
from twin.estimation.smooth import Move, Stop, backwards, way, within
from twin.futures import FUTURE_STEP, passes, quantiles
from twin.history import Batch, carry
from twin.inputs import Course
from twin.integrate import FLOOR
from twin.process import Target
from twin.transition import advance_many

GRID = 1.0 / 12.0
"""Least time between two instants of a path [d]; shocks fall due there."""

UNSEEN = ("K_G", "K_Q", "K_A", "K_C", "k_dS", "k_dC", "k_dL", "k_dA")
"""Kinetics of limitation and death that the filter keeps at their medians where no prior has learnt them."""

ALIKE = 1.5
"""Conditions this far apart share errors with correlation exp(-1/2): root of the summed squares of differences in ln density and
ln concentrations, and in perfusion [VVD]. Chosen on donors that no study scores."""
CONDITIONS = tuple(
    Coordinates._fields.index(n) for n in ("viable", "glucose", "lactate", "glutamine", "ammonia", "cytokine")
)

Cells = Callable[[float, np.ndarray], np.ndarray]
"""(time [d], kinetics [34, m]) -> kinetics as they would have been."""
Hand = Callable[[float, State, State], Control]
"""(time [d], state as it is in the rerun, as it was) -> what is added to the rates of the course; fields [m]."""


@dataclass(frozen=True, slots=True, eq=False)
class Paths:
    """What may have happened, every draw with the same probability."""

    t: Float[np.ndarray, " k"]  # [d], ascending
    points: Float[np.ndarray, "k n m"]  # ln coordinates and ln donor parameters of a `Layout`
    shocks: Float[np.ndarray, "k-1 s m"]  # of the ln coordinates, at the end of each step, under the batch's own course
    unseen: Float[np.ndarray, "34 m"]  # factors on the kinetics, 1 for those that are learnt or kept
    fresh: Float[np.ndarray, "k-1 s m"]  # shocks of other conditions: independent, of the filter's process noise


class Change(NamedTuple):
    """What a rerun does otherwise; the default is nothing."""

    course: Course | None = None
    cells: Cells | None = None
    start: Callable[[np.ndarray], np.ndarray] | None = None  # of the ln coordinates at the beginning [13, m]
    hand: Hand | None = None


def paths(batch: Batch, at: float, n: int = 200, seed: int = 0) -> Paths:
    """`n` joint draws of the batch from inoculation to `at` [d], or to its newest evidence if that is later, given all of it."""
    newest = batch.belief
    at = max(at, newest.time)
    rng, moving = np.random.default_rng([seed, 31]), batch.layout.error_start
    points = draws(carry(batch, batch.newest, at).belief, n, rng)
    found: list[tuple[float, np.ndarray]] = [(at, points)]

    def keep(t: float, points: np.ndarray) -> None:
        if found[-1][0] - t >= GRID or (t == batch.prior.time and t < found[-1][0]):
            found.append((t, points))

    for move in reversed([*way(batch, newest, [at])]):
        points = _back(move, points, rng)
    for stop in backwards(batch):
        keep(stop.after.time, points)
        for move in _moves_back(batch, stop):
            points = _back(move, points, rng)
    keep(batch.prior.time, points)
    times = np.array([t for t, _ in reversed(found)])
    history = np.array([p[:moving] for _, p in reversed(found)])
    noise = np.array(batch.process.noise)[:, None] * np.sqrt(np.diff(times))[:, None, None]
    fresh = noise * rng.standard_normal((times.size - 1, N_STATE, n))
    quiet = Paths(times, history, np.zeros_like(fresh), _unseen(batch, n, rng), fresh)
    return replace(quiet, shocks=_shocks(batch, quiet))


def _unseen(batch: Batch, n: int, rng: np.random.Generator) -> np.ndarray:
    factors = np.ones((len(Kinetics._fields), n))
    for name in UNSEEN:
        if name in batch.process.donor_sd and name not in batch.layout.parameters:
            factors[Kinetics._fields.index(name)] = np.exp(batch.process.donor_sd[name] * rng.standard_normal(n))
    return factors


def _moves_back(batch: Batch, stop: Stop) -> Iterator[Move]:
    steps = within(batch, stop) if stop.widened else ()
    yield from (s for s in reversed(steps) if isinstance(s, Move))
    yield from reversed(stop.way)


def _back(move: Move, later: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draws [n, m] of the time before a move, given draws of the time after it."""
    before, after, cross = move
    values, vectors = np.linalg.eigh(after.cov)
    whole = values > max(float(values[-1]), 1e-300) * 1e-13
    gain = (cross @ vectors[:, whole] / values[whole]) @ vectors[:, whole].T
    cov = symmetric(before.cov - gain @ after.cov @ gain.T)
    values, vectors = np.linalg.eigh(cov)
    noise = (vectors * np.sqrt(np.maximum(values, 0.0))) @ rng.standard_normal(later.shape)
    return before.mean[:, None] + gain @ (later - after.mean[:, None]) + noise


def _shocks(batch: Batch, quiet: Paths) -> np.ndarray:
    """What the model does not explain of each step, on ln coordinates [k-1, 13, m]."""
    step, shocks = _stepper(batch, quiet, Change()), np.empty_like(quiet.shocks)
    for k in range(shocks.shape[0]):
        x = _physical(quiet.points[k, :N_STATE])
        shocks[k] = quiet.points[k + 1, :N_STATE] - np.log(np.array(to_coordinates(State(*step(k, x, x)[0]))))
    return shocks


def rerun(batch: Batch, found: Paths, change: Change | None = None) -> Float[np.ndarray, "k s m"]:
    """States at every instant of `found` with start, parameters and shocks of each path, under `change`.

    Without one it is the factual rerun, the paths themselves but for rounding: what a changed one is to be compared with.
    """
    change = change or Change()
    step, start = _stepper(batch, found, change), found.points[0, :N_STATE]
    x = _physical(start if change.start is None else change.start(start))
    states = [x]
    for k, shock in enumerate(found.shocks):
        was = _physical(found.points[k, :N_STATE])
        moved, control = step(k, x, was)
        share = _kinship(x, was, control[0] - batch.course.at(float(found.t[k])).control.perfusion)
        error = share * shock + np.sqrt(1.0 - share * share) * found.fresh[k]
        x = _physical(np.log(np.array(to_coordinates(State(*moved)))) + error)
        states.append(x)
    return np.array(states)


def _kinship(x: np.ndarray, was: np.ndarray, perfusion: np.ndarray | float) -> np.ndarray:
    """Correlation [m] of the model's errors in states `x` and `was` [13, m], the perfusion differing by so much [VVD]."""
    rows = list(CONDITIONS)
    apart = np.log(np.array(to_coordinates(State(*x)))[rows] / np.array(to_coordinates(State(*was)))[rows])
    return np.exp(-0.5 * (np.square(apart).sum(axis=0) + np.square(perfusion)) / ALIKE**2)


Step = Callable[[int, np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]
"""(step, states [13, m], states as they were) -> states at the end of the step but for its shock, and rates [4] or [4, m]."""


def _stepper(batch: Batch, found: Paths, change: Change) -> Step:
    model, course = BioreactorModel(batch.process, batch.layout), change.course or batch.course
    advance, cell = advance_many(FUTURE_STEP), len(Kinetics._fields)

    def step(k: int, x: np.ndarray, was: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        after, begun = float(found.t[k]), None
        for end, drive, _ in course.spans(after, float(found.t[k + 1])):
            theta = model.theta_columns(found.points[k], drive.medium)
            theta[:cell] *= found.unseen
            if change.cells is not None:
                theta[:cell] = change.cells(after, theta[:cell])
            control = np.array(drive.control, dtype=float)
            if change.hand is not None:
                more = change.hand(after, State(*x), State(*was))
                control = np.array([u + np.broadcast_to(m, (x.shape[1],)) for u, m in zip(control, more, strict=True)])
                control = np.maximum(control, 0.0)
            begun = control if begun is None else begun
            x, after = advance(x, control, theta, end - after), end
        return x, np.zeros(4) if begun is None else begun

    return step


def _physical(logarithms: np.ndarray) -> np.ndarray:
    """ln coordinates [13, m] to states above their floors."""
    return np.maximum(np.array(from_coordinates(Coordinates(*np.exp(logarithms)))), np.array(FLOOR)[:, None])


class Compared(NamedTuple):
    """A batch as it was and as it would have been, at its end; 5, 50 and 95 % over the paths."""

    factual: dict[str, tuple[float, float, float]]
    counterfactual: dict[str, tuple[float, float, float]]
    delta: dict[str, tuple[float, float, float]]  # counterfactual minus factual, path by path
    p_pass: dict[str, tuple[float, float]]  # by CQA, before and after
    p_release: tuple[float, float]


OUTCOMES: dict[str, Callable[[State], np.ndarray]] = {
    "viable_cells": lambda x: x.viable_cells,  # [1e9 cells]
    "viability": lambda x: x.viability,
    "lactate": lambda x: x.lactate,  # [mM]
}


def compared(was: np.ndarray, would: np.ndarray, targets: tuple[Target, ...]) -> Compared:
    """Two reruns of the same paths [k, 13, m], at their last instant. Units as in `State`."""
    a, b = State(*was[-1]), State(*would[-1])
    met = {t.cqa: (passes(t, a), passes(t, b)) for t in targets}
    both = [np.all([m[i] for m in met.values()], axis=0).mean() if met else 1.0 for i in (0, 1)]
    return Compared(
        {k: quantiles(f(a)) for k, f in OUTCOMES.items()},
        {k: quantiles(f(b)) for k, f in OUTCOMES.items()},
        {k: quantiles(f(b) - f(a)) for k, f in OUTCOMES.items()},
        {k: (float(before.mean()), float(after.mean())) for k, (before, after) in met.items()},
        (float(both[0]), float(both[1])),
    )
