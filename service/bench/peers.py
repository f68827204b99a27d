"""The same filter as users of filterpy write it: a function of one sigma point, called for each.

Each is given the belief, the drive and the readings of a `Problem` and answers with its posterior. All use the sigma
points of `twin.estimation.filters.ukf` (alpha 1, beta 2, kappa 3-n), the process noise and the measurement noise of the
problem, and take all readings of an instant in one vector update.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from filterpy.kalman import MerweScaledSigmaPoints, UnscentedKalmanFilter
from scipy.integrate import solve_ivp

from service.bench.problem import PROBES, QUARTER, Problem
from service.bench.timing import Posterior
from twin.bioreactor import State, rates, to_coordinates
from twin.estimation.belief import N_STATE, Belief, split
from twin.inputs import Drive
from twin.integrate import advance

Carry = Callable[[Problem, np.ndarray, Drive, float], np.ndarray]
"""(problem, coordinates [n], drive, span [d]) -> coordinates [n]."""


def by_solver(method: str, rtol: float = 1e-3) -> Carry:
    """SciPy's `solve_ivp` on `rates`, one sigma point at a time."""

    def carry(problem: Problem, point: np.ndarray, drive: Drive, span: float) -> np.ndarray:
        state, cell, _ = split(point, problem.layout, problem.process.theta.cell)
        theta = problem.process.theta._replace(cell=cell, medium=drive.medium)
        solved = solve_ivp(
            lambda _, x: rates(State(*x), drive.control, theta), (0.0, span), np.array(state), method=method, rtol=rtol
        )
        return np.concatenate([np.log(to_coordinates(State(*solved.y[:, -1]))), point[N_STATE:]])

    return carry


def by_rk4(problem: Problem, point: np.ndarray, drive: Drive, span: float) -> np.ndarray:
    """The fixed steps of `twin.integrate` in NumPy, on one sigma point or on many in columns."""
    state, cell, _ = split(point, problem.layout, problem.process.theta.cell)
    theta = problem.process.theta._replace(cell=cell, medium=drive.medium)
    moved = to_coordinates(advance(state, drive.control, theta, span))
    return np.concatenate([np.log(moved), point[N_STATE:]])


class FilterPy:
    """filterpy's unscented filter of one reactor of the problem, from its belief on."""

    def __init__(self, problem: Problem, carry: Carry, belief: Belief, drive: Drive) -> None:
        n = problem.layout.size
        self._sigma = MerweScaledSigmaPoints(n, alpha=1.0, beta=2.0, kappa=3.0 - n)
        self._observe = lambda point, channels: problem.model.observe(point[:, None], channels, drive)[:, 0]
        self._filter = UnscentedKalmanFilter(
            dim_x=n, dim_z=len(PROBES), dt=QUARTER, points=self._sigma,
            fx=lambda x, dt: carry(problem, x, drive, dt), hx=partial(self._observe, channels=PROBES),
        )  # fmt: skip
        self._filter.x, self._filter.P = belief.mean.copy(), belief.cov.copy()
        self._filter.Q, self._filter.R = problem.noise, np.diag(problem.r)

    def step(self, readings: np.ndarray) -> None:
        """A quarter of an hour on, then all probes in one update."""
        self._filter.predict()
        self.update(readings)

    def update(self, readings: np.ndarray, **other: Any) -> None:
        """Sigma points are drawn afresh: `update` would take those of the prediction, or of an update before."""
        self._filter.sigmas_f = self._sigma.sigma_points(self._filter.x, self._filter.P)
        self._filter.update(readings, **other)
        self._filter.P = (self._filter.P + self._filter.P.T) / 2.0

    def count(self, y: float, r: float) -> None:
        """A viable cell density from the laboratory."""
        self.update(np.array([y]), R=np.array([[r]]), hx=partial(self._observe, channels=("viable_density",)))

    @property
    def posterior(self) -> Posterior:
        """What it believes."""
        return Posterior(self._filter.x.copy(), self._filter.P.copy())


def one_step(problem: Problem, carry: Carry, reactor: int = 0) -> Posterior:
    """filterpy: one quarter of an hour of one reactor."""
    peer = FilterPy(problem, carry, problem.beliefs[reactor], problem.drives[reactor])
    peer.step(problem.readings[reactor])
    return peer.posterior


def loop(problem: Problem, carry: Carry, reactors: int) -> Posterior:
    """filterpy: the same of the first so many reactors, one after the other."""
    each = [one_step(problem, carry, i) for i in range(reactors)]
    return Posterior(np.array([p.mean for p in each]), np.array([p.cov for p in each]))


def day_again(problem: Problem, carry: Carry) -> Posterior:
    """filterpy: the late count, then the day after it."""
    belief, rows = problem.day
    peer = FilterPy(problem, carry, belief, problem.drives[0])
    peer.count(problem.late, problem.process.sensors["viable_density"].sd ** 2)
    for row in rows:
        peer.step(row)
    return peer.posterior
