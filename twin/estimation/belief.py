"""What we believe at one instant: a Gaussian over ln coordinates of the state, ln donor parameters, sensor errors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.stats import norm

from twin.bioreactor import Coordinates, Kinetics, State, from_coordinates

N_STATE = len(Coordinates._fields)
Z90 = float(norm.ppf(0.95))


class Layout(NamedTuple):
    """Names of the coordinates, in order: ln of the 13 `Coordinates`, ln of donor parameters, additive sensor errors."""

    parameters: tuple[str, ...]  # fields of Kinetics that this filter learns
    errors: tuple[str, ...]  # sensor errors it learns, e.g. ln gain of capacitance; see `twin.sensors`

    @property
    def names(self) -> tuple[str, ...]:
        return (*Coordinates._fields, *self.parameters, *self.errors)

    @property
    def size(self) -> int:
        return N_STATE + len(self.parameters) + len(self.errors)

    @property
    def error_start(self) -> int:
        return N_STATE + len(self.parameters)

    def index(self, name: str) -> int:  # pyright: ignore[reportIncompatibleMethodOverride] - of a name, not a value
        return self.names.index(name)


@dataclass(frozen=True, slots=True, eq=False)
class Belief:
    """Gaussian over the coordinates of a `Layout` at one instant."""

    time: float  # [d since inoculation]
    mean: Float[np.ndarray, " n"]
    cov: Float[np.ndarray, "n n"]
    repairs: int = 0  # times the covariance lost definiteness on the way here and was repaired

    def repaired(self) -> Belief:
        """The same belief, one repair richer."""
        return Belief(self.time, self.mean, self.cov, self.repairs + 1)

    def __eq__(self, other: object) -> bool:
        """Bitwise equality: what arrival-order independence and replay are held to."""
        return (
            isinstance(other, Belief)
            and self.time == other.time
            and self.mean.tobytes() == other.mean.tobytes()
            and self.cov.tobytes() == other.cov.tobytes()
        )

    def __hash__(self) -> int:
        return hash((self.time, self.mean.tobytes()))

    @property
    def finite(self) -> bool:
        return bool(np.isfinite(self.mean).all() and np.isfinite(self.cov).all())


class Marginal(NamedTuple):
    """One quantity with its uncertainty, in its own unit."""

    mean: float
    sd: float
    q05: float
    q95: float


def split(points: Float[np.ndarray, "n ..."], layout: Layout, cell: Kinetics) -> tuple[State, Kinetics, np.ndarray]:
    """Coordinates (first axis) to physical state, kinetics with the learnt parameters put in, and sensor errors."""
    state = from_coordinates(Coordinates(*np.exp(points[:N_STATE])))
    learnt = dict(zip(layout.parameters, np.exp(points[N_STATE : layout.error_start]), strict=True))
    return state, cell._replace(**learnt), points[layout.error_start :]


def lognormal(mean: float, variance: float) -> Marginal:
    """Marginal of exp(N(mean, variance))."""
    sd = float(np.sqrt(max(variance, 0.0)))
    centre = float(np.exp(mean + variance / 2))
    return Marginal(
        centre,
        centre * float(np.sqrt(np.expm1(variance))),
        float(np.exp(mean - Z90 * sd)),
        float(np.exp(mean + Z90 * sd)),
    )


def logitnormal(mean: float, variance: float) -> Marginal:
    """Marginal of 1/(1+exp(-N(mean, variance))): a fraction whose odds are log-normal (20-point Gauss-Hermite)."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(20)
    sd = float(np.sqrt(max(variance, 0.0)))
    values, w = _sigmoid(mean + sd * nodes), weights / weights.sum()
    centre = float(w @ values)
    return Marginal(
        centre,
        float(np.sqrt(max(float(w @ np.square(values - centre)), 0.0))),
        float(_sigmoid(mean - Z90 * sd)),
        float(_sigmoid(mean + Z90 * sd)),
    )


def _sigmoid(z: float | np.ndarray) -> np.ndarray:
    return np.asarray(1.0 / (1.0 + np.exp(-np.asarray(z))))


QUANTITIES: Mapping[str, Mapping[str, float]] = {
    "viable_density": {"viable": 1.0}, "dead_density": {"dead": 1.0}, "viable_cells": {"viable": 1.0, "volume": 1.0},
    "viability": {"viable": 1.0, "dead": -1.0}, "car_fraction": {"car_odds": 1.0}, "exhausted_fraction": {"exhausted": 1.0},
    **{name: {name: 1.0} for name in ("glucose", "lactate", "glutamine", "ammonia", "cytokine", "doublings", "volume")},
}  # fmt: skip
"""The quantities people ask for as sums of coordinates: of their ln, or for `FRACTIONS` of their log odds."""

FRACTIONS = ("viability", "car_fraction")


def transformed(belief: Belief, layout: Layout, name: str) -> tuple[float, float]:
    """Mean and variance of ln of a quantity, or for `FRACTIONS` of its log odds. KeyError for a name not in `QUANTITIES`."""
    weights = QUANTITIES[name]
    rows, w = [layout.index(k) for k in weights], np.array(list(weights.values()))
    return float(w @ belief.mean[rows]), float(w @ belief.cov[np.ix_(rows, rows)] @ w)


def marginals(belief: Belief, layout: Layout) -> dict[str, Marginal]:
    """The quantities people ask for, each with mean, sd and 90 % interval, in the units of `State`.

    Densities, concentrations, volume and doublings are log-normal; viability and the CAR+ fraction are logit-normal,
    because the log odds viable : dead and CAR+ : CAR- are linear in the coordinates. All forms are exact.
    """
    out: dict[str, Marginal] = {}
    for name in QUANTITIES:
        mean, variance = transformed(belief, layout, name)
        out[name] = (logitnormal if name in FRACTIONS else lognormal)(mean, variance)
    return out


def learnt(belief: Belief, layout: Layout) -> dict[str, Marginal]:
    """Donor parameters (log-normal) and sensor errors (normal) as the data so far have them."""
    out: dict[str, Marginal] = {}
    for i, name in enumerate(layout.names[N_STATE:], start=N_STATE):
        mean, variance = float(belief.mean[i]), float(belief.cov[i, i])
        if i < layout.error_start:
            out[name] = lognormal(mean, variance)
        else:
            sd = float(np.sqrt(max(variance, 0.0)))
            out[name] = Marginal(mean, sd, mean - Z90 * sd, mean + Z90 * sd)
    return out


def draws(belief: Belief, n: int, rng: np.random.Generator) -> Float[np.ndarray, "size n"]:
    """`n` joint draws of the coordinates, one a column."""
    values, vectors = np.linalg.eigh(belief.cov)
    root = vectors * np.sqrt(np.maximum(values, 0.0))
    return belief.mean[:, None] + root @ rng.standard_normal((belief.mean.size, n))
