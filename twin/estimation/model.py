"""The bioreactor as the filter sees it: `rates` in log coordinates, learnt parameters and sensor errors as random walks."""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import casadi as ca
import numpy as np
from jaxtyping import Float

from twin.bioreactor import (
    Control,
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
from twin.integrate import FLOOR, STEP, substeps
from twin.process import Process
from twin.sensors import CHANNELS, compared
from twin.transition import N_CELL, advance_many, flat, jacobian_function, symbols

GAS_CHANNELS = frozenset({"ph", "do", "oxygen_uptake"})


class Drive(NamedTuple):
    """The inputs in force over a span: what the pumps do, and what the medium bag holds."""

    control: Control
    medium: Medium


def make_layout(process: Process, parameters: tuple[str, ...]) -> Layout:
    """Coordinates for a process: the given donor parameters and the errors of the sensors that have one."""
    return Layout(parameters, tuple(s.error.name for s in process.sensors.values() if s.error is not None))


class BioreactorModel:
    """`twin.estimation.filters.StateSpace` of a process; immutable after construction."""

    def __init__(self, process: Process, layout: Layout) -> None:
        self.process, self.layout = process, layout
        self._advance = advance_many()
        self._theta = flat(process.theta)
        self._rows = np.array([Kinetics._fields.index(n) for n in layout.parameters], dtype=int)
        self._error = {
            s.channel: layout.index(s.error.name) for s in process.sensors.values() if s.error is not None
        }  # fmt: skip
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

    def doubted(self, channel: str) -> np.ndarray:
        """A probe with an error of its own puts that in doubt; a laboratory method the state; neither the donor's parameters.

        A probe that disagrees persistently has drifted further, or failed: its error is let go, so that no single probe can
        carry the culture away. A laboratory method that disagrees says that the culture is elsewhere.
        """
        mask = np.zeros(self.layout.size)
        index = self._error.get(channel)
        mask[slice(N_STATE) if index is None else index] = 1.0
        return mask

    def observe(self, points: np.ndarray, channel: str, drive: Drive) -> np.ndarray:
        state, cell, _ = split(points, self.layout, self.process.theta.cell)
        index = self._error.get(channel)
        error = 0.0 if index is None else points[index]
        phys: Any = None
        if channel in GAS_CHANNELS:
            phys = physiology(state, Theta(cell, self.process.theta.vessel, drive.medium))
        return compared(channel, CHANNELS[channel].observe(state, phys, error))

    def observe_jacobian(self, mean: np.ndarray, channel: str, drive: Drive) -> tuple[float, np.ndarray]:
        theta = self.theta_columns(mean[:, None], drive.medium)[:, 0]
        index = self._error.get(channel)
        error = 0.0 if index is None else float(mean[index])
        x = _physical(mean[:N_STATE])
        value, by_x, by_theta, by_error = (np.asarray(a) for a in _observer(channel)(x, theta, error))
        gradient = np.zeros(mean.size)
        gradient[:N_STATE] = by_x.ravel() @ _physical_by_logarithms(x)
        gradient[N_STATE : self.layout.error_start] = by_theta.ravel()[self._rows] * theta[:N_CELL][self._rows]
        if index is not None:
            gradient[index] = float(by_error.ravel()[0])
        return float(value.ravel()[0]), gradient


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
