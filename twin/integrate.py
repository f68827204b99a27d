"""Stepping: the fixed-step scheme that everything uses, and the stiff reference it is held to.

`rk4` never looks inside its operands, so the same step serves NumPy ensembles, CasADi graphs and PyTensor scans.
`Transition` is that step compiled: one CasADi function mapped over many columns, built to C where a compiler is found.
"""

from __future__ import annotations

from collections.abc import Callable
from math import ceil
from typing import TypeVar

import numpy as np

from twin.bioreactor import Control, State, Theta, rates
from twin.kinetics import Scalar

Rates = Callable[[State, Control, Theta], State]
T = TypeVar("T")

STEP = 1.0 / 96.0
"""Longest integration step [d]: 15 min. RK4 is stable at it down to time constants of 1/260 d; see tests for its error."""

FLOOR = State(
    car_positive=1e-9, car_negative=1e-9, dead=1e-9, glucose=1e-6, lactate=1e-6, glutamine=1e-6, ammonia=1e-6,
    cytokine=1e-6, doublings=1e-6, exhausted=1e-9, strong_ion=1e-3, activation=1e-6, volume=1e-6,
)  # fmt: skip
"""Detection floor of every state, applied after each step (not inside `rates`): keeps logarithms finite."""


def rk4(x: State, u: Control, theta: Theta, dt: Scalar, f: Rates = rates) -> State:
    """One classical Runge-Kutta step of `dt` days with `u` held."""

    def nudge(k: State, h: Scalar) -> State:
        return State(*(a + h * b for a, b in zip(x, k, strict=True)))

    k1 = f(x, u, theta)
    k2 = f(nudge(k1, dt / 2), u, theta)
    k3 = f(nudge(k2, dt / 2), u, theta)
    k4 = f(nudge(k3, dt), u, theta)
    return State(*(a + dt / 6 * (b + 2 * c + 2 * d + e) for a, b, c, d, e in zip(x, k1, k2, k3, k4, strict=True)))


def substeps(span: float, longest: float = STEP) -> int:
    """Number of equal steps that cover `span` days with none longer than `longest`."""
    return max(1, ceil(span / longest - 1e-9))


def advance(x: State, u: Control, theta: Theta, span: float, f: Rates = rates, longest: float = STEP) -> State:
    """Carry `x` over `span` days with `u` held, in NumPy (float or arrays of one shape), floors applied."""
    n = substeps(span, longest)
    for _ in range(n):
        x = State(*(np.maximum(a, low) for a, low in zip(rk4(x, u, theta, span / n, f), FLOOR, strict=True)))
    return x
