"""The bioreactor as the filter sees it: `rates` in log coordinates, learnt parameters and sensor errors as random walks."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import casadi as ca
import numpy as np
from jaxtyping import Float

from twin.bioreactor import (
    Coordinates,
    Kinetics,
    Medium,
    State,
    Theta,
    from_coordinates,
    physiology,
    to_coordinates,
)
from twin.estimation.belief import N_STATE, Belief, Layout, split
from twin.inputs import Drive
from twin.integrate import FLOOR, STEP, substeps
from twin.process import Process
from twin.sensors import CHANNELS, compared
from twin.transition import N_CELL, advance_many, flat, jacobian_function, symbols

GAS_CHANNELS = frozenset({"ph", "do", "oxygen_uptake"})


def make_layout(process: Process, parameters: tuple[str, ...]) -> Layout:
    """Coordinates for a process: the given donor parameters and the errors of the sensors that have one."""
    return Layout(parameters, tuple(s.error.name for s in process.sensors.values() if s.error is not None))


class BioreactorModel:
    """`twin.estimation.filters.StateSpace` of a process; immutable after construction."""

    def __init__(self, process: Process, layout: Layout) -> None:
        self.process, self.layout = process, layout
        self.moving = layout.error_start
        self._advance = advance_many()
        self._theta = flat(process.theta)
        self._rows = np.array([Kinetics._fields.index(n) for n in layout.parameters], dtype=int)
        with_error = [s for s in process.sensors.values() if s.error is not None]
        self._error = {s.channel: layout.errors.index(s.error.name) for s in with_error if s.error is not None}
        walks = [s.error.walk for s in process.sensors.values() if s.error is not None]
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
        n, step = substeps(span, STEP), jacobian_function()
        theta = self.theta_columns(mean[:, None], drive.medium)[:, 0]
        x = _physical(mean[:N_STATE])
        wide = N_STATE + self._rows.size
        sensitivity = np.zeros((N_STATE, wide))  # d state / d (coordinates, ln parameters)
        sensitivity[:, :N_STATE] = _physical_by_logarithms(x)
        direct = np.diag(theta[:N_CELL][self._rows])  # d theta / d ln theta
        for _ in range(n):
            new, by_x, by_theta = (np.asarray(a) for a in step(x, np.array(drive.control), theta, span / n))
            sensitivity = by_x @ sensitivity
            sensitivity[:, N_STATE:] += by_theta[:, self._rows] @ direct
            x = new.ravel()
        jacobian = np.eye(mean.size)
        jacobian[:N_STATE, :wide] = np.linalg.solve(_physical_by_logarithms(x), sensitivity)
        return np.concatenate([_logarithms(x), mean[N_STATE:]]), jacobian

    def process_noise(self, belief: Belief, span: float) -> np.ndarray:
        return self._q * span

    def observe(self, points: np.ndarray, channels: Sequence[str], drive: Drive) -> np.ndarray:
        state, cell, errors = split(points, self.layout, self.process.theta.cell)
        phys: Any = None
        if not GAS_CHANNELS.isdisjoint(channels):
            phys = physiology(state, Theta(cell, self.process.theta.vessel, drive.medium))
        z = np.empty((len(channels), points.shape[1]))
        for row, channel in enumerate(channels):
            error = errors[self._error[channel]] if channel in self._error else 0.0
            z[row] = compared(channel, CHANNELS[channel].observe(state, phys, error))
        return z

    def observe_jacobian(
        self, mean: np.ndarray, channels: Sequence[str], drive: Drive
    ) -> tuple[np.ndarray, np.ndarray]:
        theta = self.theta_columns(mean[:, None], drive.medium)[:, 0]
        x = _physical(mean[:N_STATE])
        by_logarithms = _physical_by_logarithms(x)
        parameters, start = theta[:N_CELL][self._rows], self.layout.error_start
        z, gradients = np.empty(len(channels)), np.zeros((len(channels), mean.size))
        for row, channel in enumerate(channels):
            index = start + self._error[channel] if channel in self._error else None
            error = 0.0 if index is None else float(mean[index])
            value, by_x, by_theta, by_error = (np.asarray(a).ravel() for a in _observer(channel)(x, theta, error))
            z[row] = value[0]
            gradients[row, :N_STATE] = by_x @ by_logarithms
            gradients[row, N_STATE:start] = by_theta[self._rows] * parameters
            if index is not None:
                gradients[row, index] = by_error[0]
        return z, gradients


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


@cache
def _observer(channel: str) -> Any:
    """CasADi function (x, theta, error) -> reading on the compared scale and its derivatives."""
    s, error = symbols(), ca.SX.sym("error")
    x, _, theta = s.unpack()
    y = compared(channel, CHANNELS[channel].observe(x, physiology(x, theta), error))
    gradients = [
        ca.densify(ca.jacobian(y, s.x)),
        ca.densify(ca.jacobian(y, s.theta)[:, :N_CELL]),
        ca.densify(ca.jacobian(y, error)),
    ]
    return ca.Function(f"observe_{channel}", [s.x, s.theta, error], [y, *gradients])


def initial_belief(process: Process, layout: Layout, parameter_mean: np.ndarray, parameter_cov: np.ndarray) -> Belief:
    """Belief at inoculation: seed state, donor prior with its full covariance, calibrated sensors."""
    n = layout.size
    mean, cov = np.zeros(n), np.zeros((n, n))
    mean[:N_STATE] = _logarithms(np.maximum(np.array(process.initial, dtype=float), np.array(FLOOR)))
    cov[:N_STATE, :N_STATE] = np.diag(np.square(np.array(process.initial_sd, dtype=float)))
    p = slice(N_STATE, layout.error_start)
    mean[p], cov[p, p] = parameter_mean, parameter_cov
    errors = [s.error.sd for s in process.sensors.values() if s.error is not None]
    tail = np.arange(layout.error_start, n)
    cov[tail, tail] = np.square(errors)
    return Belief(0.0, mean, cov)
