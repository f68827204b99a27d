"""The fixed-step scheme and the sensors, compiled: many columns at once, and the scheme's CVODES reference.

The step (`twin.integrate.rk4` and its floors) is traced once into a CasADi graph. Where a C compiler is found the graph
becomes vector code, built once and cached under its hash; without one the CasADi virtual machine runs the same graph.
Both round every operation alike, so they give the same bits: `twin.native`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import casadi as ca
import numpy as np
from jaxtyping import Float

from twin.bioreactor import Control, Kinetics, Medium, State, Theta, Vessel, physiology, rates
from twin.integrate import FLOOR, STEP, rk4, substeps
from twin.kinetics import Scalar
from twin.native.columns import Columns
from twin.sensors import reading

ca.GlobalOptions.setNumpyMode(1)  # NumPy ufuncs on CasADi values build CasADi expressions

N_X, N_U = len(State._fields), len(Control._fields)
N_CELL, N_VESSEL, N_MEDIUM = len(Kinetics._fields), len(Vessel._fields), len(Medium._fields)
N_THETA = N_CELL + N_VESSEL + N_MEDIUM

Advance = Callable[[np.ndarray, np.ndarray, np.ndarray, float], np.ndarray]
"""(states [13, m], control [4] or [4, m], theta [53, m], span [d]) -> states [13, m]."""
Tangents = Callable[[np.ndarray, np.ndarray, np.ndarray, float, np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]
"""(state [13], control [4], theta [53], span [d], directions of the state [13, k] and of the kinetics [34, k])
-> (state [13], where the directions lead [13, k])."""
Observe = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
"""(states [13, m], theta [53, m], sensor errors [2 channels, m]: own, then growth effects) -> predicted readings [channels, m] on the compared scale."""
ObserveTangents = Callable[
    [np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]
]
"""(state [13], theta [53], sensor errors [2 channels], directions of the state [13, k], of the kinetics [34, k] and of the
errors [2 channels, k]) -> (readings [channels], where the directions lead [channels, k])."""


class Symbols(NamedTuple):
    """Symbolic arguments of the model and their flat vectors."""

    x: Any
    u: Any
    theta: Any

    def unpack(self) -> tuple[State, Control, Theta]:
        t = ca.vertsplit(self.theta)
        cell, vessel = N_CELL, N_CELL + N_VESSEL
        return (
            State(*ca.vertsplit(self.x)),
            Control(*ca.vertsplit(self.u)),
            Theta(Kinetics(*t[:cell]), Vessel(*t[cell:vessel]), Medium(*t[vessel:])),
        )


def symbols() -> Symbols:
    """Fresh SX symbols for state, control and theta."""
    return Symbols(ca.SX.sym("x", N_X), ca.SX.sym("u", N_U), ca.SX.sym("theta", N_THETA))


def flat(theta: Theta) -> Float[np.ndarray, " p"]:
    """Theta as a flat vector: kinetics, vessel, medium."""
    return np.array([*theta.cell, *theta.vessel, *theta.medium], dtype=float)


def _function(name: str, inputs: dict[str, Any], *outputs: Any) -> Any:
    """CasADi function with named inputs and dense outputs."""
    dense = [ca.densify(out) for out in outputs]
    return ca.Function(name, [*inputs.values()], dense, [*inputs], [f"out{j}" for j in range(len(dense))])


def _inputs(**sizes: int) -> dict[str, Any]:
    return {name: ca.SX.sym(name, n) for name, n in sizes.items()}


@cache
def step_function() -> Any:
    """CasADi function of one floored RK4 step: (x, u, theta, dt) -> x."""
    inputs = _inputs(x=N_X, u=N_U, theta=N_THETA, dt=1)
    *s, dt = inputs.values()
    x, u, theta = Symbols(*s).unpack()
    # not fmax, which would turn NaN into the floor: what is not a number must stay so, for the gates to see
    stepped = [
        ca.if_else(value < floor, floor, value) for value, floor in zip(rk4(x, u, theta, dt), FLOOR, strict=True)
    ]
    return _function("celltwin_step", inputs, ca.vertcat(*stepped))


@cache
def jacobian_function() -> Any:
    """CasADi function of the step with its derivatives: (x, u, theta, dt) -> x, dx/dx, dx/dtheta[cell]."""
    inputs = _inputs(x=N_X, u=N_U, theta=N_THETA, dt=1)
    out = step_function()(*inputs.values())
    by_theta = ca.jacobian(out, inputs["theta"])[:, :N_CELL]
    return _function("celltwin_jacobian", inputs, out, ca.jacobian(out, inputs["x"]), by_theta)


@cache
def tangent_function() -> Any:
    """CasADi function of the step and of one direction through it: (x, u, theta, dt, dx, dcell) -> x, dx.

    `dcell` is the direction in the kinetics theta[cell]; control, vessel and medium are held.
    """
    inputs = _inputs(x=N_X, u=N_U, theta=N_THETA, dt=1, dx=N_X, dcell=N_CELL)
    x, u, theta, dt, dx, dcell = inputs.values()
    out = step_function()(x, u, theta, dt)
    direction = ca.vertcat(dx, dcell, ca.SX.zeros(N_THETA - N_CELL))
    return _function("celltwin_tangent", inputs, out, ca.jtimes(out, ca.vertcat(x, theta), direction))


@cache
def observer_function(channels: tuple[str, ...], read: Callable[..., Scalar] = reading) -> Any:
    """CasADi function (x, theta, errors [2k]) -> readings [k] of `channels`, each on the scale it is compared on.

    The first k errors are the sensors' own, the others their growth effects. `read` may be `twin.sensors.signal`.
    """
    s, k = symbols(), len(channels)
    errors = ca.SX.sym("errors", 2 * k)
    x, _, theta = s.unpack()
    phys = physiology(x, theta)
    readings = [read(c, x, phys, errors[i], errors[k + i]) for i, c in enumerate(channels)]
    return _function("celltwin_observer", {"x": s.x, "theta": s.theta, "errors": errors}, ca.vertcat(*readings))


@cache
def observer_tangent_function(channels: tuple[str, ...]) -> Any:
    """CasADi function of the readings and of one direction through them: (x, theta, errors, dx, dcell, derrors) -> z, dz."""
    k = len(channels)
    inputs = _inputs(x=N_X, theta=N_THETA, errors=2 * k, dx=N_X, dcell=N_CELL, derrors=2 * k)
    x, theta, errors, dx, dcell, derrors = inputs.values()
    z = observer_function(channels)(x, theta, errors)
    direction = ca.vertcat(dx, dcell, ca.SX.zeros(N_THETA - N_CELL), derrors)
    return _function("celltwin_observer_tangent", inputs, z, ca.jtimes(z, ca.vertcat(x, theta, errors), direction))


@cache
def _steps(held: bool, compiled: bool) -> Columns:
    return Columns(step_function(), {1, 3} if held else {3}, {0: 0}, compiled)


@cache
def advance_many(longest: float = STEP, compiled: bool = True) -> Advance:
    """`Advance` in steps no longer than `longest` days; machine code, or with `compiled` False the virtual machine.

    Reads C-ordered states and theta as they are; others are copied.
    """

    def advance(x: np.ndarray, u: np.ndarray, theta: np.ndarray, span: float) -> np.ndarray:
        n, u = substeps(span, longest), np.asarray(u, dtype=float)
        return _steps(u.ndim == 1, compiled)(x, u, theta, span / n, times=n)[0]

    return advance


@cache
def advance_tangents(longest: float = STEP, compiled: bool = True) -> Tangents:
    """`Tangents` in steps no longer than `longest` days: the exact derivative of `advance_many`, all directions at once."""
    columns = Columns(tangent_function(), {0, 1, 2, 3}, {0: 0, 4: 1}, compiled)

    def advance(
        x: np.ndarray, u: np.ndarray, theta: np.ndarray, span: float, dx: np.ndarray, dcell: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        n = substeps(span, longest)
        end, moved = columns(x, u, theta, span / n, dx, dcell, times=n)
        return end, moved

    return advance


@cache
def observe_many(channels: tuple[str, ...], compiled: bool = True) -> Observe:
    """`Observe` of these channels together; the error of a sensor that has none is 0.

    Each tuple of channels is a build of its own (cached): ask for the channels of a process, and pick rows.
    """
    columns = Columns(observer_function(channels), compiled=compiled)

    def observe(x: np.ndarray, theta: np.ndarray, errors: np.ndarray) -> np.ndarray:
        return columns(x, theta, errors)[0]

    return observe


@cache
def observe_tangents(channels: tuple[str, ...], compiled: bool = True) -> ObserveTangents:
    """`ObserveTangents` of these channels together: the exact derivative of `observe_many`, all directions at once."""
    columns = Columns(observer_tangent_function(channels), {0, 1, 2}, compiled=compiled)

    def observe(
        x: np.ndarray, theta: np.ndarray, errors: np.ndarray, dx: np.ndarray, dcell: np.ndarray, derrors: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        z, moved = columns(x, theta, errors, dx, dcell, derrors)
        return z, moved

    return observe


def reference(x: State, u: Control, theta: Theta, span: float, rtol: float = 1e-10, atol: float = 1e-12) -> State:
    """CVODES (BDF, SUNDIALS through CasADi) over `span` days with `u` held: the reference of the tests."""
    s = symbols()
    dae = {"x": s.x, "p": ca.vertcat(s.u, s.theta), "ode": ca.vertcat(*rates(*s.unpack()))}
    options = {"abstol": atol, "reltol": rtol, "max_num_steps": 200_000}
    solver = ca.integrator("reference", "cvodes", dae, 0.0, span, options)
    end = solver(x0=np.array(x, dtype=float), p=np.concatenate([np.array(u, dtype=float), flat(theta)]))["xf"]
    return State(*np.asarray(end).ravel())
