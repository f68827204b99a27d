"""What we believe at one instant: a Gaussian over log state, log donor parameters and sensor errors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.stats import norm

from twin.bioreactor import Kinetics, State

N_STATE = len(State._fields)
Z90 = float(norm.ppf(0.95))


class Layout(NamedTuple):
    """Names of the coordinates, in order: ln of the 13 states, ln of donor parameters, additive sensor errors."""

    parameters: tuple[str, ...]  # fields of Kinetics that this filter learns
    errors: tuple[str, ...]  # sensor errors it learns, e.g. ln gain of capacitance; see `twin.sensors`

    @property
    def names(self) -> tuple[str, ...]:
        return (*State._fields, *self.parameters, *self.errors)

    @property
    def size(self) -> int:
        return N_STATE + len(self.parameters) + len(self.errors)

    @property
    def error_start(self) -> int:
        return N_STATE + len(self.parameters)

    def index(self, name: str) -> int:
        return self.names.index(name)


@dataclass(frozen=True, slots=True, eq=False)
class Belief:
    """Gaussian over the coordinates of a `Layout` at one instant."""

    time: float  # [d since inoculation]
    mean: Float[np.ndarray, " n"]
    cov: Float[np.ndarray, "n n"]

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
    state = State(*np.exp(points[:N_STATE]))
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


def draws(belief: Belief, n: int, rng: np.random.Generator) -> Float[np.ndarray, "size n"]:
    """`n` joint draws of the coordinates, one a column."""
    values, vectors = np.linalg.eigh(belief.cov)
    root = vectors * np.sqrt(np.maximum(values, 0.0))
    return belief.mean[:, None] + root @ rng.standard_normal((belief.mean.size, n))
