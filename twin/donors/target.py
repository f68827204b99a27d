"""What is known of one donor: the population's prior and the likelihood of one batch, as a plain function of columns.

The same donor-level model as `twin.donors.model` (a test holds the two to each other), written in NumPy over many columns
at once: values by the vector code of the step, gradients by its adjoint. Coordinates are ln of the learnt kinetics, of the
state at inoculation (`SEED`: viable and dead density [1e6 cells/mL], CAR+ : CAR- odds, exhausted fraction) and of the noise
growth q of every channel.

    theta ~ 1/K sum_k N(m_k, L_k L_k')   over draws k of the population's posterior: its uncertainty is carried
    ln q  ~ N, matched to the mean and standard deviation of q in the fit (its own prior where no fit knows q)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy.linalg import block_diag
from scipy.special import gammaln, logsumexp, ndtri, stdtr

from twin.bioreactor import State
from twin.donors.adjoint import sweeps
from twin.donors.artefact import Artefact
from twin.donors.data import COUNTS, FRACTIONS, FitData
from twin.donors.model import (
    DEAD0_SD,
    NU,
    SPAN,
    VIABLE0_SD,
    drift_prior,
    grid,
    population,
    preset_population,
    seed_prior,
)  # fmt: skip
from twin.process import Process
from twin.sensors import CHANNELS
from twin.transition import advance_many, flat

SEED = ("viable0", "dead0", "car_odds0", "exhausted0")
COMPONENTS = 80
"""Draws of the population that make the mixture: what a density costs grows with them."""
_QUANTITIES = (
    "viable",
    "dead",
    "glucose",
    "lactate",
    "glutamine",
    "ammonia",
    "car_positive",
    "car_negative",
    "exhausted",
)
_EXHAUSTED = State._fields.index("exhausted")
_FIELDS = {
    q: [State._fields.index(f) for f in (("car_positive", "car_negative") if q == "viable" else (q,))]
    for q in _QUANTITIES
}
_READ = {  # what a channel is of: a quantity, or the share of the first one in both
    COUNTS: ("viable",), "viability": ("viable", "dead"), "car_fraction": ("car_positive", "car_negative"),
    "exhausted_fraction": ("exhausted",),
}  # fmt: skip


@dataclass(frozen=True, slots=True, eq=False)
class Population:
    """A donor not yet seen: an even mixture of Gaussians over ln kinetics, and how noise grows."""

    names: tuple[str, ...]
    mean: Float[np.ndarray, "k p"]
    cov: Float[np.ndarray, "k p p"]
    drift: Mapping[str, tuple[float, float]]  # mean and standard deviation of ln q by channel

    @property
    def moments(self) -> tuple[Float[np.ndarray, " p"], Float[np.ndarray, "p p"]]:
        """Mean and covariance of the mixture."""
        centre = self.mean.mean(axis=0)
        off = self.mean - centre
        return centre, self.cov.mean(axis=0) + off.T @ off / len(off)


def population_of(artefact: Artefact, process: Process) -> Population:
    """The population of an artefact: its draws of m and L where it keeps them, else its Gaussian of a new donor.

    Both carry the population's own uncertainty; the Gaussian does so by its moments.
    """
    prior, noise = artefact.prior, artefact.summary.get("population", {})
    drift: dict[str, tuple[float, float]] = {}
    for channel in CHANNELS:
        known = noise.get(f"q[{channel}]")
        drift[channel] = drift_prior(channel)
        if known:
            variance = float(np.log1p((known["sd"] / known["mean"]) ** 2))
            drift[channel] = float(np.log(known["mean"])) - variance / 2.0, variance**0.5
    if artefact.population is None:
        return Population(prior.names, prior.mean[None], prior.cov[None], drift)
    return mixture_of(prior.names, process, artefact.population, drift)


def mixture_of(
    names: tuple[str, ...],
    process: Process,
    draws: Mapping[str, np.ndarray],
    drift: Mapping[str, tuple[float, float]],
    components: int = COMPONENTS,
) -> Population:
    """At most `components` thinned draws of the population, `m` [n, s] and `root` [n, s, s], as a mixture over `names`.

    Kinetics whose population is not learnt have that of the preset.
    """
    shared, given = population(names)
    median, spread = preset_population(process, given)
    order = [(*shared, *given).index(n) for n in names]
    thin = max(1, len(draws["m"]) // components)
    m, root = (draws[k][::thin][:components] for k in ("m", "root"))
    mean = np.hstack([m, np.tile(median, (len(m), 1))])[:, order]
    cov = np.array([block_diag(r @ r.T, np.diag(spread**2))[np.ix_(order, order)] for r in root])
    return Population(names, mean, cov, drift)


def normal_scores(r: Float[np.ndarray, "n m"], student: np.ndarray) -> Float[np.ndarray, "n m"]:
    """Residuals that are Student-t where `student` [n, 1] says so, as normal ones of the same probability."""
    tail = np.maximum(stdtr(NU, -np.abs(r)), 1e-300)
    return np.where(student, -np.sign(r) * ndtri(tail), r)


class _Rows(NamedTuple):
    """Readings as rows: what of the path each one needs. The first `counts` are Student-t, those until `log` on the log scale."""

    before: Int[np.ndarray, " n"]  # grid point before the sample
    weight: Float[np.ndarray, " n 1"]  # of the next one
    quantity: Int[np.ndarray, " n"]
    other: Int[np.ndarray, " n"]  # the second quantity of a share
    share: np.ndarray  # is it a share [n, 1]
    limit: Float[np.ndarray, " n 1"]
    time: Float[np.ndarray, " n 1"]
    sd: Float[np.ndarray, " n 1"]
    value: Float[np.ndarray, " n 1"]  # on the compared scale
    channel: Int[np.ndarray, " n"]
    counts: int
    log: int


class Readings(NamedTuple):
    """Residuals of all readings over columns, and what their derivatives need."""

    r: Float[np.ndarray, "n m"]  # in units of their scale
    scale: Float[np.ndarray, "n m"]
    slope: Float[np.ndarray, "n m"]  # d prediction / d ln quantity (of a share: less that by the ln of the other)


@dataclass(frozen=True, eq=False)
class Target:
    """Log-density of one donor and his readings, normalised: its integral is the evidence.

    Columns are rows of `u` [m, d]; not finite where the path is not.
    """

    population: Population
    data: FitData
    process: Process
    span: float = SPAN

    @cached_property
    def channels(self) -> tuple[str, ...]:
        """Channels that the batch has."""
        return tuple(self.data.samples)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Of the coordinates."""
        return (*self.population.names, *SEED, *(f"q[{c}]" for c in self.channels))

    @cached_property
    def prior(self) -> tuple[Float[np.ndarray, " d"], Float[np.ndarray, "d d"]]:
        """Moments of the prior over all coordinates."""
        mean, cov = self.population.moments
        x0, drift = self.data.initial, [self.population.drift[c] for c in self.channels]
        seed = [(float(np.log(x0.viable[0])), VIABLE0_SD), (float(np.log(x0.dead[0])), DEAD0_SD)]
        rest = [*seed, *((float(m), float(s)) for m, s in zip(*seed_prior(self.process), strict=True)), *drift]
        return np.concatenate([mean, [m for m, _ in rest]]), np.asarray(
            block_diag(cov, np.diag([s**2 for _, s in rest]))
        )

    def log_density(self, u: Float[np.ndarray, "m d"]) -> Float[np.ndarray, " m"]:
        """Values over columns; -inf where the model cannot be evaluated."""
        with np.errstate(all="ignore"):
            value = self._prior(u)[0] + self._likelihood(self._readings(u, self._quantities(self._path(u))))
        return np.where(np.isfinite(value), value, -np.inf)

    def value_and_gradient(
        self, u: Float[np.ndarray, "m d"]
    ) -> tuple[Float[np.ndarray, " m"], Float[np.ndarray, "m d"]]:
        """Values and exact gradients over columns."""
        rows, p = self._rows, len(self.population.names)
        with np.errstate(all="ignore"):
            both, x0, theta = sweeps(self.population.names), self._start(u), self._theta(u)
            controls = np.repeat(self._controls[:, :, None], len(u), axis=2)
            path = both.forward(x0, controls, theta, self.span)
            quantities = self._quantities(path)
            found = self._readings(u, quantities)
            value, gradient = self._prior(u)
            r, scale, slope = found
            g = np.where(self._student, (NU + 1.0) * r / (NU + r * r), r) / scale  # d ln p / d prediction
            back = np.zeros_like(quantities)
            for at, part in ((rows.before, 1.0 - rows.weight), (rows.before + 1, rows.weight)):
                by_ln = part * g * slope
                np.add.at(back, (at, rows.quantity), by_ln / quantities[at, rows.quantity])
                np.add.at(back, (at, rows.other), np.where(rows.share, -by_ln, 0.0) / quantities[at, rows.other])
            weight = np.zeros_like(path)
            for k, q in enumerate(_QUANTITIES):
                weight[:, _FIELDS[q]] += back[:, k : k + 1]
            by_start, by_cell = both.backward(path, controls, theta, self.span, weight)
            gradient[:, :p] += by_cell.T * np.exp(u[:, :p])
            positive, negative, dead = x0[:3] * by_start[:3]
            share = x0[0] / (x0[0] + x0[1])
            gradient[:, p] += positive + negative
            gradient[:, p + 1] += dead
            gradient[:, p + 2] += (1.0 - share) * positive - share * negative
            gradient[:, p + 3] += by_start[_EXHAUSTED] * x0[_EXHAUSTED]
            first = p + len(SEED)
            q = np.exp(u[:, first:]).T[rows.channel]
            by_drift = (g * r - 1.0 / scale) * q * q * rows.time / scale
            for k in range(len(self.channels)):
                gradient[:, first + k] += by_drift[rows.channel == k].sum(axis=0)
            value = value + self._likelihood(found)
        good = np.isfinite(value) & np.isfinite(gradient).all(axis=1)
        return np.where(good, value, -np.inf), np.where(good[:, None], gradient, 0.0)

    def standardised(
        self, u: Float[np.ndarray, "m d"]
    ) -> tuple[Float[np.ndarray, "n m"], np.ndarray, Int[np.ndarray, " n"]]:
        """Residuals over columns in units of their scale, which are Student-t [n, 1], and the channel of each."""
        with np.errstate(all="ignore"):
            r = self._readings(u, self._quantities(self._path(u))).r
        return r, self._student, self._rows.channel

    def scores(self, u: Float[np.ndarray, "m d"]) -> tuple[Float[np.ndarray, "n m"], Int[np.ndarray, " n"]]:
        """Residuals as standard-normal scores (exactly so where the model is true), and the channel of each."""
        r = self.standardised(u)[0]
        return normal_scores(r, self._student), self._rows.channel

    # --- the parts -----------------------------------------------------------------------------------------------------

    @cached_property
    def _steps(self) -> int:
        return grid(self.data, self.span)

    @cached_property
    def _controls(self) -> Float[np.ndarray, "steps 4"]:
        return self.data.controls(self._steps, self.span)[:, :, 0]

    @cached_property
    def _rows(self) -> _Rows:
        order = (COUNTS, *(c for c in self.channels if c not in (COUNTS, *FRACTIONS)), *FRACTIONS)
        own = [(c, self.data.samples[c]) for c in order if c in self.data.samples]
        sizes = [s.time.size for _, s in own]
        time, sd, value = (np.concatenate([getattr(s, f) for _, s in own]) for f in ("time", "sd", "value"))
        before = np.minimum(np.floor(time / self.span + 1e-9).astype(int), self._steps - 1)
        limit = np.repeat([CHANNELS[c].limit for c, _ in own], sizes)
        log = int(sum(n for n, (c, _) in zip(sizes, own, strict=True) if c not in FRACTIONS))
        value[:log] = np.log(value[:log] + limit[:log])
        read = [_READ.get(c, (c,)) for c, _ in own]
        first, other = (np.repeat([_QUANTITIES.index(r[k]) for r in read], sizes) for k in (0, -1))
        return _Rows(
            before, (time / self.span - before)[:, None], first, other, (first != other)[:, None], limit[:, None],
            time[:, None], sd[:, None], value[:, None], np.repeat([self.channels.index(c) for c, _ in own], sizes),
            sizes[0], log,
        )  # fmt: skip

    @cached_property
    def _student(self) -> np.ndarray:
        """Which rows have Student-t noise [n, 1]."""
        return (np.arange(len(self._rows.before)) < self._rows.counts)[:, None]

    def _start(self, u: np.ndarray) -> Float[np.ndarray, "13 m"]:
        p, x0 = len(self.population.names), self.data.initial
        viable, dead, odds, exhausted = np.exp(u[:, p : p + len(SEED)]).T
        share = odds / (1.0 + odds)
        rest = x0._replace(
            car_positive=viable * share, car_negative=viable * (1.0 - share), dead=dead, exhausted=exhausted
        )
        return np.array([np.broadcast_to(v, len(u)) for v in rest], dtype=float)

    def _theta(self, u: np.ndarray) -> Float[np.ndarray, "53 m"]:
        full = np.repeat(flat(self.process.theta)[:, None], len(u), axis=1)
        rows = [self.process.theta.cell._fields.index(n) for n in self.population.names]
        full[rows] = np.exp(u[:, : len(rows)]).T
        return full

    def _path(self, u: np.ndarray) -> Float[np.ndarray, "steps+1 13 m"]:
        advance, theta, x = advance_many(self.span), self._theta(u), self._start(u)
        path = np.empty((self._steps + 1, *x.shape))
        path[0] = x
        for k, control in enumerate(self._controls):
            path[k + 1] = advance(path[k], control, theta, self.span)
        return path

    def _quantities(self, path: np.ndarray) -> Float[np.ndarray, "steps+1 9 m"]:
        return np.stack([path[:, _FIELDS[q]].sum(axis=1) for q in _QUANTITIES], axis=1)

    def _readings(self, u: np.ndarray, quantities: np.ndarray) -> Readings:
        rows = self._rows

        def ln(which: np.ndarray) -> np.ndarray:
            """Between grid points linear in ln."""
            before, after = quantities[rows.before, which], quantities[rows.before + 1, which]
            return (1.0 - rows.weight) * np.log(before) + rows.weight * np.log(after)

        own = ln(rows.quantity)
        level, logs = np.exp(own), np.arange(len(rows.before))[:, None] < rows.log
        part = 1.0 / (1.0 + np.exp(np.where(rows.share, ln(rows.other) - own, 0.0)))
        natural = np.where(rows.share, part, level)
        predicted = np.where(logs, np.log(level + rows.limit), natural)
        slope = np.where(logs, level / (level + rows.limit), np.where(rows.share, part * (1.0 - part), level))
        q = np.exp(u[:, len(self.population.names) + len(SEED) :]).T[rows.channel]
        scale = np.sqrt(rows.sd**2 + q * q * rows.time)
        return Readings((rows.value - predicted) / scale, scale, slope)

    def _likelihood(self, found: Readings) -> Float[np.ndarray, " m"]:
        r, scale, _ = found
        student = gammaln((NU + 1.0) / 2.0) - gammaln(NU / 2.0) - 0.5 * np.log(NU * np.pi)
        t = student - (NU + 1.0) / 2.0 * np.log1p(r[: self._rows.counts] ** 2 / NU)
        normal = -0.5 * (r[self._rows.counts :] ** 2 + np.log(2.0 * np.pi))
        return t.sum(axis=0) + normal.sum(axis=0) - np.log(scale).sum(axis=0)

    @cached_property
    def _whitening(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of every component: inverse root [k, p, p], whitened centre [k, p], log normalisation [k]."""
        inverse = np.linalg.inv(np.linalg.cholesky(self.population.cov))
        k, p = self.population.mean.shape
        log = np.log(np.diagonal(inverse, axis1=1, axis2=2)).sum(axis=1) - p / 2.0 * np.log(2.0 * np.pi) - np.log(k)
        return inverse, np.einsum("kij,kj->ki", inverse, self.population.mean), log

    def _prior(self, u: np.ndarray) -> tuple[Float[np.ndarray, " m"], Float[np.ndarray, "m d"]]:
        inverse, centre, log = self._whitening
        k, p = centre.shape
        z = (u[:, :p] @ inverse.reshape(k * p, p).T).reshape(len(u), k, p) - centre
        each = log - 0.5 * np.einsum("mki,mki->mk", z, z)
        value = np.asarray(logsumexp(each, axis=1))
        gradient = np.zeros_like(u)
        belongs = np.exp(each - value[:, None])
        gradient[:, :p] = -((belongs[:, :, None] * z).reshape(len(u), k * p) @ inverse.reshape(k * p, p))
        mean, cov = self.prior
        sd = np.sqrt(np.diagonal(cov))[p:]
        off = (u[:, p:] - mean[p:]) / sd
        gradient[:, p:] = -off / sd
        return value - np.sum(0.5 * off * off + np.log(sd) + 0.5 * np.log(2.0 * np.pi), axis=1), gradient
