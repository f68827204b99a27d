"""Trajectories of many columns and their exact discrete adjoint, in vector code where a compiler is found.

The step is `twin.transition.step_function`: RK4 of `twin.bioreactor.rates` with its floors, the one the filter uses, on
a coarser grid (transcendental functions by the C library's vector versions). CasADi differentiates it in reverse, so that one
sweep back gives the gradient of any function of the whole trajectory with respect to initial state and learnt kinetics, exact
for the scheme (not for the differential equation).
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import casadi as ca
import numpy as np

from twin.bioreactor import Kinetics
from twin.native import build
from twin.native.columns import Columns
from twin.transition import N_THETA, N_U, N_X, step_function

Forward = Callable[[np.ndarray, np.ndarray, np.ndarray, float], np.ndarray]
"""(x0 [13, d], controls [steps, 4, d], theta [53, d], span [d]) -> path [steps + 1, 13, d]."""
Backward = Callable[[np.ndarray, np.ndarray, np.ndarray, float, np.ndarray], tuple[np.ndarray, np.ndarray]]
"""(path, controls, theta, span, d cost/d path) -> (d cost/d x0 [13, d], d cost/d learnt kinetics [p, d])."""


class Sweeps(NamedTuple):
    """The two directions, and the C library that drives them (None: CasADi's virtual machine)."""

    forward: Forward
    backward: Backward
    library: Any | None


@cache
def adjoint_function(names: tuple[str, ...]) -> Any:
    """CasADi function of one step's vector-Jacobian product: (x, u, theta, dt, w) -> w dx+/dx, w dx+/d kinetics[names]."""
    x, u, theta, dt, w = (
        ca.SX.sym(n, k) for n, k in (("x", N_X), ("u", N_U), ("theta", N_THETA), ("dt", 1), ("w", N_X))
    )
    out = step_function()(x, u, theta, dt)
    product = ca.jtimes(out, ca.vertcat(x, theta), w, True)
    rows = [N_X + Kinetics._fields.index(n) for n in names]
    return ca.Function(
        "celltwin_step_adjoint", [x, u, theta, dt, w], [ca.densify(product[:N_X]), ca.densify(product[rows])]
    )


_LOOPS = f"""
#include <string.h>
typedef void step_t(const double*, const double*, const double*, double, double*, long, long);
typedef void adjoint_t(const double*, const double*, const double*, double, const double*, double*, double*, long, long);
void celltwin_forward(step_t step, const double* u, const double* theta, double dt, long n, long m, double* path) {{
  for (long k = 0; k < n; ++k) step(path + k * m * {N_X}, u + k * m * {N_U}, theta, dt, path + (k + 1) * m * {N_X}, 1, m);
}}
void celltwin_backward(adjoint_t adjoint, const double* path, const double* u, const double* theta, double dt, long n, long m,
                       long learnt, const double* weight, double* gx, double* gp, double* back, double* share) {{
  memcpy(gx, weight + n * m * {N_X}, sizeof(double) * m * {N_X});
  memset(gp, 0, sizeof(double) * m * learnt);
  for (long k = n - 1; k >= 0; --k) {{
    adjoint(path + k * m * {N_X}, u + k * m * {N_U}, theta, dt, gx, back, share, 1, m);
    for (long i = 0; i < m * {N_X}; ++i) gx[i] = back[i] + weight[k * m * {N_X} + i];
    for (long i = 0; i < m * learnt; ++i) gp[i] += share[i];
  }}
}}
"""


@cache
def _loops() -> Any | None:
    """The loops over time with their signatures; None where no compiler works."""
    library = build.load("sweeps", _LOOPS)
    if library is None:
        return None
    data, count, real = ctypes.c_void_p, ctypes.c_long, ctypes.c_double
    library.celltwin_forward.argtypes = [data, data, data, real, count, count, data]
    library.celltwin_backward.argtypes = [data, data, data, data, real, count, count, count, *[data] * 5]
    library.celltwin_forward.restype = library.celltwin_backward.restype = None
    return library


@cache
def sweeps(names: tuple[str, ...], compiled: bool = True) -> Sweeps:
    """Both sweeps for learnt kinetics `names`; with `compiled` False (or no compiler) on CasADi's virtual machine."""
    step = Columns(step_function(), {3}, compiled=compiled, loose=True)
    adjoint = Columns(adjoint_function(names), {3}, compiled=compiled, loose=True)
    loops = _loops() if compiled and step.compiled and adjoint.compiled else None
    return _interpreted(step, adjoint) if loops is None else _compiled(loops, step, adjoint, len(names))


def _compiled(loops: Any, step: Columns, adjoint: Columns, learnt: int) -> Sweeps:
    stepping, returning = step.pointer, adjoint.pointer

    def forward(x0: np.ndarray, controls: np.ndarray, theta: np.ndarray, span: float) -> np.ndarray:
        x0, controls, theta = _checked(x0, controls, theta)
        n, m = len(controls), x0.shape[1]
        path = np.empty((n + 1, N_X, m))
        path[0] = x0
        loops.celltwin_forward(stepping, controls.ctypes.data, theta.ctypes.data, span, n, m, path.ctypes.data)
        return path

    def backward(
        path: np.ndarray, controls: np.ndarray, theta: np.ndarray, span: float, weight: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        _, controls, theta = _checked(path[0], controls, theta)
        path, weight = (np.ascontiguousarray(a, dtype=float) for a in (path, weight))
        n, m = len(controls), path.shape[2]
        gx, gp, back, share = (np.empty((k, m)) for k in (N_X, learnt, N_X, learnt))
        given = (path.ctypes.data, controls.ctypes.data, theta.ctypes.data, span, n, m, learnt)
        loops.celltwin_backward(returning, *given, *(a.ctypes.data for a in (weight, gx, gp, back, share)))
        return gx, gp

    return Sweeps(forward, backward, loops)


def _interpreted(step: Columns, adjoint: Columns) -> Sweeps:
    def forward(x0: np.ndarray, controls: np.ndarray, theta: np.ndarray, span: float) -> np.ndarray:
        x0, controls, theta = _checked(x0, controls, theta)
        path = np.empty((len(controls) + 1, *x0.shape))
        path[0] = x0
        for k, u in enumerate(controls):
            path[k + 1] = step(path[k], u, theta, span)[0]
        return path

    def backward(
        path: np.ndarray, controls: np.ndarray, theta: np.ndarray, span: float, weight: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        _, controls, theta = _checked(path[0], controls, theta)
        gx, gp = weight[-1].copy(), 0.0
        for k in range(len(controls) - 1, -1, -1):
            back, share = adjoint(path[k], controls[k], theta, span, gx)
            gx, gp = back + weight[k], gp + share
        return gx, np.asarray(gp)

    return Sweeps(forward, backward, None)


def _checked(x0: np.ndarray, controls: np.ndarray, theta: np.ndarray) -> tuple[np.ndarray, ...]:
    """Contiguous float copies; ValueError where shapes do not belong together (C would read past the end)."""
    m = x0.shape[-1]
    if x0.shape != (N_X, m) or controls.shape[1:] != (N_U, m) or theta.shape != (N_THETA, m):
        raise ValueError(f"expected x0 [{N_X}, d], controls [steps, {N_U}, d], theta [{N_THETA}, d]; "
                         f"got {x0.shape}, {controls.shape}, {theta.shape}")  # fmt: skip
    return tuple(np.ascontiguousarray(a, dtype=float) for a in (x0, controls, theta))
