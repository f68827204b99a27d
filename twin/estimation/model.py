"""The bioreactor as the filter sees it: `rates` in log coordinates, learnt parameters and sensor errors as random walks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from twin.bioreactor import (
    Coordinates,
    Kinetics,
    Medium,
    State,
    from_coordinates,
    to_coordinates,
)
from twin.estimation.belief import N_STATE, Belief, Layout
from twin.inputs import Drive
from twin.integrate import FLOOR
from twin.process import Process
from twin.transition import N_CELL, advance_many, advance_tangents, flat, observe_many, observe_tangents


def make_layout(process: Process, parameters: tuple[str, ...]) -> Layout:
    """Coordinates for a process: the given donor parameters and the errors of the sensors that have one."""
    own = tuple(s.error.name for s in process.sensors.values() if s.error is not None)
    return Layout(parameters, own + tuple(s.growth.name for s in process.sensors.values() if s.growth is not None))


class BioreactorModel:
    """`twin.estimation.filters.StateSpace` of a process; immutable after construction."""

    def __init__(self, process: Process, layout: Layout) -> None:
        self.process, self.layout = process, layout
        self.moving = layout.error_start
        self._advance = advance_many()
        self._theta = flat(process.theta)
        self._rows = np.array([Kinetics._fields.index(n) for n in layout.parameters], dtype=int)
        self._channels = tuple(process.sensors)
        self._place = {c: row for row, c in enumerate(self._channels)}
        sensors = process.sensors.values()
        grown = [len(self._channels) + self._place[s.channel] for s in sensors if s.growth is not None]
        self._with_error = [self._place[s.channel] for s in sensors if s.error is not None] + grown
        walks = [s.error.walk for s in sensors if s.error is not None] + [0.0] * len(grown)
        rates_of_spread = [*process.noise, *[process.parameter_walk] * len(layout.parameters), *walks]
        self._q = np.diag(np.square(np.array(rates_of_spread, dtype=float)))

    def theta_columns(self, points: Float[np.ndarray, "n m"], medium: Medium) -> Float[np.ndarray, "p m"]:
        """Flat theta of every point."""
        theta = np.repeat(self._theta[:, None], points.shape[1], axis=1)
        theta[self._rows] = np.exp(points[N_STATE : self.layout.error_start])
        theta[-len(Medium._fields) :] = np.array(medium)[:, None]
        return theta

    def advance(self, points: np.ndarray, drive: Drive, span: float) -> np.ndarray:
        states = _physical(points[:N_STATE])
        carried = self._advance(states, np.array(drive.control), self.theta_columns(points, drive.medium), span)
        return np.concatenate([_logarithms(carried), points[N_STATE:]])

    def advance_jacobian(self, mean: np.ndarray, drive: Drive, span: float) -> tuple[np.ndarray, np.ndarray]:
        theta = self.theta_columns(mean[:, None], drive.medium)[:, 0]
        x, wide = _physical(mean[:N_STATE]), self.moving
        x, sensitivity = advance_tangents()(x, np.array(drive.control), theta, span, *self._seeds(x, theta, wide))
        jacobian = np.eye(mean.size)
        jacobian[:N_STATE, :wide] = np.linalg.solve(_physical_by_logarithms(x), sensitivity)
        return np.concatenate([_logarithms(x), mean[N_STATE:]]), jacobian

    def _seeds(self, x: np.ndarray, theta: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
        """Derivatives of state [13, width] and kinetics [34, width] by the first `width` coordinates."""
        by_state, by_kinetics = np.zeros((N_STATE, width)), np.zeros((N_CELL, width))
        by_state[:, :N_STATE] = _physical_by_logarithms(x)
        by_kinetics[self._rows, N_STATE + np.arange(self._rows.size)] = theta[self._rows]
        return by_state, by_kinetics

    def process_noise(self, belief: Belief, span: float) -> np.ndarray:
        return self._q * span

    def observe(self, points: np.ndarray, channels: Sequence[str], drive: Drive) -> np.ndarray:
        errors = np.zeros((2 * len(self._channels), points.shape[1]))
        errors[self._with_error] = points[self.moving :]
        states, theta = _physical(points[:N_STATE]), self.theta_columns(points, drive.medium)
        return observe_many(self._channels)(states, theta, errors)[[self._place[c] for c in channels]]

    def observe_jacobian(
        self, mean: np.ndarray, channels: Sequence[str], drive: Drive
    ) -> tuple[np.ndarray, np.ndarray]:
        theta, x = self.theta_columns(mean[:, None], drive.medium)[:, 0], _physical(mean[:N_STATE])
        errors = np.zeros(2 * len(self._channels))
        errors[self._with_error] = mean[self.moving :]
        by_errors = np.zeros((2 * len(self._channels), mean.size))
        by_errors[self._with_error, np.arange(self.moving, mean.size)] = 1.0
        seeds = self._seeds(x, theta, mean.size)
        z, gradients = observe_tangents(self._channels)(x, theta, errors, *seeds, by_errors)
        rows = [self._place[c] for c in channels]
        return z[rows], gradients[rows]


def _physical(logarithms: np.ndarray) -> np.ndarray:
    """ln coordinates [13, ...] to states [13, ...]."""
    return np.array(from_coordinates(Coordinates(*np.exp(logarithms))))


def _logarithms(states: np.ndarray) -> np.ndarray:
    """States [13, ...] to ln coordinates [13, ...]."""
    return np.log(np.array(to_coordinates(State(*states))))


def _physical_by_logarithms(x: np.ndarray) -> np.ndarray:
    """Derivative of the state by its ln coordinates, at state `x` [13]."""
    jacobian = np.diag(x)
    positive, negative = x[0], x[1]
    shared = positive * negative / (positive + negative)
    jacobian[:2, :2] = [[positive, shared], [negative, -shared]]
    return jacobian


def initial_belief(process: Process, layout: Layout, parameter_mean: np.ndarray, parameter_cov: np.ndarray) -> Belief:
    """Belief at inoculation: seed state, donor prior with its full covariance, calibrated sensors."""
    n = layout.size
    mean, cov = np.zeros(n), np.zeros((n, n))
    mean[:N_STATE] = _logarithms(np.maximum(np.array(process.initial, dtype=float), np.array(FLOOR)))
    cov[:N_STATE, :N_STATE] = np.diag(np.square(np.array(process.initial_sd, dtype=float)))
    p = slice(N_STATE, layout.error_start)
    mean[p], cov[p, p] = parameter_mean, parameter_cov
    effects = [s.growth for s in process.sensors.values() if s.growth is not None]
    errors = [s.error.sd for s in process.sensors.values() if s.error is not None] + [g.sd for g in effects]
    tail = np.arange(layout.error_start, n)
    cov[tail, tail] = np.square(errors)
    mean[n - len(effects) :] = [g.mean for g in effects]
    return Belief(0.0, mean, cov)
