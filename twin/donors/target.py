"""What is known of one donor: the population's prior and the likelihood of one batch, as a plain function of columns.

The same donor-level model as `twin.donors.model` (a test holds the two to each other), written in NumPy over many columns
at once: values by the vector code of the step, gradients by its adjoint. Coordinates are ln of the learnt kinetics, of the
viable and dead densities at inoculation [1e6 cells/mL] and of the noise growth q of every channel.

    theta ~ 1/K sum_k N(m_k, L_k L_k')   over draws k of the population's posterior: its uncertainty is carried
    ln q  ~ N, matched to the mean and standard deviation of q in the fit (its half-normal prior where no fit knows q)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy.linalg import block_diag
from scipy.special import gammaln, logsumexp, ndtri, stdtr

from twin.bioreactor import State
from twin.donors.adjoint import sweeps
from twin.donors.artefact import Artefact
from twin.donors.data import COUNTS, FitData
from twin.donors.model import DEAD0_SD, NU, SPAN, VIABLE0_SD, drift_sd, grid, population, preset_population
from twin.process import Process
from twin.sensors import CHANNELS
from twin.transition import advance_many, flat

DENSITIES = ("viable0", "dead0")
COMPONENTS = 200
"""Draws of the population that make the mixture; more change nothing that 17 donors could tell."""
_READ = (State._fields.index("car_negative"), State._fields.index("ammonia") + 1)
_QUANTITIES = ("viable", "dead", "glucose", "lactate", "glutamine", "ammonia")  # rows of `_READ`, CAR+ added to CAR-


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
        scale = drift_sd(channel)
        half_normal = scale * np.sqrt(2.0 / np.pi), scale * np.sqrt(1.0 - 2.0 / np.pi)
        mean, sd = (known["mean"], known["sd"]) if known else half_normal
        variance = float(np.log1p((sd / mean) ** 2))
        drift[channel] = float(np.log(mean)) - variance / 2.0, variance**0.5
    if artefact.population is None:
        return Population(prior.names, prior.mean[None], prior.cov[None], drift)
    shared, given = population(prior.names)
    median, spread = preset_population(process, given)
    order = [(*shared, *given).index(n) for n in prior.names]
    thin = max(1, len(artefact.population["m"]) // COMPONENTS)
    m, root = (artefact.population[k][::thin][:COMPONENTS] for k in ("m", "root"))
    mean = np.hstack([m, np.tile(median, (len(m), 1))])[:, order]
    cov = np.array([block_diag(r @ r.T, np.diag(spread**2))[np.ix_(order, order)] for r in root])
    return Population(prior.names, mean, cov, drift)


def normal_scores(r: Float[np.ndarray, "n m"], student: np.ndarray) -> Float[np.ndarray, "n m"]:
    """Residuals that are Student-t where `student` [n, 1] says so, as normal ones of the same probability."""
    tail = np.maximum(stdtr(NU, -np.abs(r)), 1e-300)
    return np.where(student, -np.sign(r) * ndtri(tail), r)


class _Rows(NamedTuple):
    """Readings as rows: what of the path each one needs."""

    before: Int[np.ndarray, " n"]  # grid point before the sample
    weight: Float[np.ndarray, " n 1"]  # of the next one
    quantity: Int[np.ndarray, " n"]
    limit: Float[np.ndarray, " n 1"]
    time: Float[np.ndarray, " n 1"]
    sd: Float[np.ndarray, " n 1"]
    value: Float[np.ndarray, " n 1"]  # on the compared scale
    channel: Int[np.ndarray, " n"]
    counts: int  # the first rows: Student-t
    log: int  # rows on the log scale; the others are viabilities


class Readings(NamedTuple):
    """Residuals of all readings over columns."""

    r: Float[np.ndarray, "n m"]  # in units of their scale
    scale: Float[np.ndarray, "n m"]


@dataclass(frozen=True, eq=False)
class Target:
    """Log-density of one donor, up to a constant. Columns are rows of `u` [m, d]; not finite where the path is not."""

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
        return (*self.population.names, *DENSITIES, *(f"q[{c}]" for c in self.channels))

    @cached_property
    def prior(self) -> tuple[Float[np.ndarray, " d"], Float[np.ndarray, "d d"]]:
        """Moments of the prior over all coordinates."""
        mean, cov = self.population.moments
        x0, drift = self.data.initial, [self.population.drift[c] for c in self.channels]
        rest = [(float(np.log(x0.viable[0])), VIABLE0_SD), (float(np.log(x0.dead[0])), DEAD0_SD), *drift]
        return np.concatenate([mean, [m for m, _ in rest]]), np.asarray(
            block_diag(cov, np.diag([s**2 for _, s in rest]))
        )

    def log_density(self, u: Float[np.ndarray, "m d"]) -> Float[np.ndarray, " m"]:
        """Values over columns; -inf where the model cannot be evaluated."""
        with np.errstate(all="ignore"):
            residual = self._residuals(u, self._path(u))
            value = self._prior(u)[0] + self._likelihood(residual)
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
            found, quantities = self._readings(u, path)
            value, gradient = self._prior(u)
            r, scale = found
            g = np.where(self._student, (NU + 1.0) * r / (NU + r * r), r) / scale  # d ln p / d prediction
            slope = g * quantities["slope"]
            back = np.zeros((len(path), len(_QUANTITIES), len(u)))
            vitality = slope[rows.log :]
            for at, share in ((rows.before, 1.0 - rows.weight), (rows.before + 1, rows.weight)):
                read = quantities["at"](at)
                np.add.at(back, (at, rows.quantity), share * slope / read)
                np.add.at(back, (at[rows.log :], 1), -share[rows.log :] * vitality / quantities["dead"](at))
            weight = np.zeros_like(path)
            weight[:, slice(*_READ)] = back
            weight[:, 0] = weight[:, 1]
            by_start, by_cell = both.backward(path, controls, theta, self.span, weight)
            gradient[:, :p] += by_cell.T * np.exp(u[:, :p])
            gradient[:, p] += by_start[0] * x0[0] + by_start[1] * x0[1]
            gradient[:, p + 1] += by_start[2] * x0[2]
            q = np.exp(u[:, p + 2 :]).T[rows.channel]
            by_drift = (g * r - 1.0 / scale) * q * q * rows.time / scale
            for k in range(len(self.channels)):
                gradient[:, p + 2 + k] += by_drift[rows.channel == k].sum(axis=0)
            value = value + self._likelihood(found)
        good = np.isfinite(value) & np.isfinite(gradient).all(axis=1)
        return np.where(good, value, -np.inf), np.where(good[:, None], gradient, 0.0)

    def scores(self, u: Float[np.ndarray, "m d"]) -> tuple[Float[np.ndarray, "n m"], Int[np.ndarray, " n"]]:
        """Residuals as standard-normal scores (exactly so where the model is true), and the channel of each."""
        r = self._residuals(u, self._path(u)).r
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
        order = (COUNTS, *(c for c in self.channels if c not in (COUNTS, "viability")), "viability")
        own = [(c, self.data.samples[c]) for c in order if c in self.data.samples]
        sizes = [s.time.size for _, s in own]
        time, sd, value = (np.concatenate([getattr(s, f) for _, s in own]) for f in ("time", "sd", "value"))
        before = np.minimum(np.floor(time / self.span + 1e-9).astype(int), self._steps - 1)
        limit = np.repeat([CHANNELS[c].limit for c, _ in own], sizes)
        log = int(sum(n for n, (c, _) in zip(sizes, own, strict=True) if c != "viability"))
        value[:log] = np.log(value[:log] + limit[:log])
        which = [_QUANTITIES.index(c) if c in _QUANTITIES else 0 for c, _ in own]
        return _Rows(
            before, (time / self.span - before)[:, None], np.repeat(which, sizes), limit[:, None], time[:, None],
            sd[:, None], value[:, None], np.repeat([self.channels.index(c) for c, _ in own], sizes), sizes[0], log,
        )  # fmt: skip

    @cached_property
    def _student(self) -> np.ndarray:
        """Which rows have Student-t noise [n, 1]."""
        return (np.arange(len(self._rows.before)) < self._rows.counts)[:, None]

    def _start(self, u: np.ndarray) -> Float[np.ndarray, "13 m"]:
        p, x0 = len(self.population.names), self.data.initial
        viable, dead, share = np.exp(u[:, p]), np.exp(u[:, p + 1]), x0.car_fraction[0]
        rest = x0._replace(car_positive=viable * share, car_negative=viable * (1.0 - share), dead=dead)
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

    def _residuals(self, u: np.ndarray, path: np.ndarray) -> Readings:
        return self._readings(u, path)[0]

    def _readings(self, u: np.ndarray, path: np.ndarray) -> tuple[Readings, dict[str, Any]]:
        """Residuals, and what their derivatives need: prediction by ln quantity, and the quantities at grid points."""
        rows = self._rows
        first = _READ[0]

        def at(k: np.ndarray) -> np.ndarray:
            value = path[k, first + rows.quantity]
            return np.where((rows.quantity == 0)[:, None], value + path[k, 0], value)

        def dead(k: np.ndarray) -> np.ndarray:
            return path[k[rows.log :], first + 1]

        ln = (1.0 - rows.weight) * np.log(at(rows.before)) + rows.weight * np.log(at(rows.before + 1))
        w = rows.weight[rows.log :]
        ln_dead = (1.0 - w) * np.log(dead(rows.before)) + w * np.log(dead(rows.before + 1))
        level = np.exp(ln[: rows.log])
        viability = 1.0 / (1.0 + np.exp(ln_dead - ln[rows.log :]))
        limit = rows.limit[: rows.log]
        predicted = np.concatenate([np.log(level + limit), viability])
        slope = np.concatenate([level / (level + limit), viability * (1.0 - viability)])
        q = np.exp(u[:, len(self.population.names) + 2 :]).T[rows.channel]
        scale = np.sqrt(rows.sd**2 + q * q * rows.time)
        return Readings((rows.value - predicted) / scale, scale), {"slope": slope, "at": at, "dead": dead}

    def _likelihood(self, found: Readings) -> Float[np.ndarray, " m"]:
        r, scale = found
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
