"""The bioreactor as the filter sees it: `rates` in log coordinates, learnt parameters and sensor errors as random walks."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, lru_cache
from typing import Any

import casadi as ca
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
from twin.integrate import FLOOR, substeps
from twin.native.columns import Columns
from twin.process import Process
from twin.sensors import CHANNELS, signal
from twin.transition import (
    N_CELL,
    N_THETA,
    N_U,
    advance_many,
    advance_tangents,
    flat,
    observe_tangents,
    observer_function,
    step_function,
)


def make_layout(process: Process, parameters: tuple[str, ...]) -> Layout:
    """Coordinates for a process: the given donor parameters and the errors of the sensors that have one."""
    own = tuple(s.error.name for s in process.sensors.values() if s.error is not None)
    return Layout(parameters, own + tuple(s.growth.name for s in process.sensors.values() if s.growth is not None))


class BioreactorModel:
    """`twin.estimation.filters.StateSpace` of a process; immutable after construction."""

    def __init__(self, process: Process, layout: Layout) -> None:
        self.process, self.layout = process, layout
        self.changing, self.moving = N_STATE, layout.error_start
        self._advance = advance_many()
        self._theta = flat(process.theta)
        self._rows = np.array([Kinetics._fields.index(n) for n in layout.parameters], dtype=int)
        self._channels = tuple(process.sensors)
        self._place = {c: row for row, c in enumerate(self._channels)}
        sensors = process.sensors.values()
        grown = [len(self._channels) + self._place[s.channel] for s in sensors if s.growth is not None]
        self._with_error = [self._place[s.channel] for s in sensors if s.error is not None] + grown
        walks = [s.error.walk for s in sensors if s.error is not None] + [0.0] * len(grown)
        wander = [process.restless.get(name, process.parameter_walk) for name in layout.parameters]
        rates_of_spread = [*process.noise, *wander, *walks]
        self._step = _stepper(layout.parameters)
        self._observe = _observer(layout.parameters, self._channels, tuple(self._with_error))
        self._q = np.diag(np.square(np.array(rates_of_spread, dtype=float)))
        self._held, self._asked = lru_cache(16)(self._held_of), lru_cache(64)(self._asked_of)

    def theta_columns(self, points: Float[np.ndarray, "n m"], medium: Medium) -> Float[np.ndarray, "p m"]:
        """Flat theta of every point."""
        theta = np.repeat(self._theta[:, None], points.shape[1], axis=1)
        theta[self._rows] = np.exp(points[N_STATE : self.layout.error_start])
        theta[-len(Medium._fields) :] = np.array(medium)[:, None]
        return theta

    def _held_of(self, drive: Drive) -> tuple[np.ndarray, np.ndarray]:
        """Control [4] and flat theta [p] of a drive."""
        theta = self._theta.copy()
        theta[-len(drive.medium) :] = drive.medium
        return np.array(drive.control, dtype=float), theta

    def _asked_of(self, channels: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
        """Rows [k] of channels among all, and which of them are read on the log scale [k, 1]."""
        rows = np.array([self._place[c] for c in channels], dtype=int)
        return rows, np.array([[CHANNELS[c].scale == "log"] for c in channels], dtype=bool).reshape(-1, 1)

    def advance(self, points: np.ndarray, drive: Drive, span: float) -> np.ndarray:
        moved, (control, theta) = points.copy(), self._held(drive)
        if substeps(span) == 1:
            grown = self._step(np.exp(points[: self.moving]), control, theta, span)[0]
            np.log(grown, out=moved[:N_STATE])
            return moved
        states, columns = _physical(points[:N_STATE]), self.theta_columns(points, drive.medium)
        moved[:N_STATE] = _logarithms(self._advance(states, control, columns, span))
        return moved

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
        grown, errors = np.exp(points[: self.moving]), points[self.moving :]
        rows, logarithmic = self._asked(tuple(channels))
        z = self._observe(grown, errors, self._held(drive)[1])[0].take(rows, axis=0)
        return np.log(z, out=z, where=logarithmic)

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


@cache
def _stepper(parameters: tuple[str, ...]) -> Columns:
    """(exp of coordinates and ln parameters [moving, m], control, theta, span) -> exp of coordinates [13, m] after a step."""
    grown, u = ca.SX.sym("grown", N_STATE + len(parameters)), ca.SX.sym("u", N_U)
    theta, dt = ca.SX.sym("theta", N_THETA), ca.SX.sym("dt")
    end = State(*ca.vertsplit(step_function()(*_unpacked(grown, u, parameters, theta), dt)))
    moved = ca.vertcat(*to_coordinates(end))
    return Columns(ca.Function("celltwin_pushed", [grown, u, theta, dt], [moved]), {1, 2, 3})


@cache
def _observer(parameters: tuple[str, ...], channels: tuple[str, ...], with_error: tuple[int, ...]) -> Columns:
    """(exp of coordinates and ln parameters [moving, m], errors [.., m], theta) -> signals [channels, m]."""
    grown, own = ca.SX.sym("grown", N_STATE + len(parameters)), ca.SX.sym("own", len(with_error))
    theta, errors = ca.SX.sym("theta", N_THETA), ca.SX.zeros(2 * len(channels))
    errors[list(with_error)] = own  # where no sensor has one, it folds away
    x, _, learnt = _unpacked(grown, None, parameters, theta)
    z = observer_function(channels, signal)(x, learnt, errors)
    return Columns(ca.Function("celltwin_looked", [grown, own, theta], [z]), {2})


def _unpacked(grown: Any, u: Any, parameters: tuple[str, ...], theta: Any) -> tuple[Any, Any, Any]:
    """Symbolic state, control and theta where the coordinates and learnt parameters are `grown`."""
    known, values = ca.vertsplit(theta), ca.vertsplit(grown)
    for name, value in zip(parameters, values[N_STATE:], strict=True):
        known[Kinetics._fields.index(name)] = value
    return ca.vertcat(*from_coordinates(Coordinates(*values[:N_STATE]))), u, ca.vertcat(*known)


def _physical(logarithms: np.ndarray) -> np.ndarray:
    """ln coordinates [13, ...] to states [13, ...]."""
    return _in_place(np.exp(logarithms))


def _in_place(coordinates: np.ndarray) -> np.ndarray:
    """Coordinates [13, ...] to states: only the first two differ."""
    coordinates[:2] = from_coordinates(Coordinates(*coordinates))[:2]
    return coordinates


def _logarithms(states: np.ndarray) -> np.ndarray:
    """States [13, ...] to ln coordinates [13, ...]."""
    coordinates = states.copy()
    coordinates[:2] = to_coordinates(State(*states))[:2]
    return np.log(coordinates, out=coordinates)


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
