"""Trajectories of many columns and their exact discrete adjoint, in C where a compiler is found.

The step is `twin.transition.step_function`: RK4 of `twin.bioreactor.rates` with its floors, the one the filter uses, on
a coarser grid. CasADi differentiates it in reverse, so that one sweep back gives the gradient of any function of the
whole trajectory with respect to initial state and learnt kinetics, exact for the scheme (not for the differential equation).
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
from twin.transition import N_THETA, N_U, N_X, step_function

Forward = Callable[[np.ndarray, np.ndarray, np.ndarray, float], np.ndarray]
"""(x0 [d, 13], controls [steps, d, 4], theta [d, 53], span [d]) -> path [steps + 1, d, 13]."""
Backward = Callable[[np.ndarray, np.ndarray, np.ndarray, float, np.ndarray], tuple[np.ndarray, np.ndarray]]
"""(path, controls, theta, span, d cost/d path) -> (d cost/d x0 [d, 13], d cost/d learnt kinetics [d, p])."""


class Sweeps(NamedTuple):
    """The two directions, and the C library behind them (None: CasADi's virtual machine)."""

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


_LOOPS = """
#include <string.h>
void celltwin_forward(const double* x0, const double* u, const double* theta, double dt, long long n, long long m, double* path) {
  long long iw[%(iw)d]; double w[%(w)d];
  memcpy(path, x0, sizeof(double) * m * %(nx)d);
  for (long long k = 0; k < n; ++k) for (long long j = 0; j < m; ++j) {
    const double* arg[%(arg)d] = {path + (k * m + j) * %(nx)d, u + (k * m + j) * %(nu)d, theta + j * %(np)d, &dt};
    double* res[%(res)d] = {path + ((k + 1) * m + j) * %(nx)d};
    %(forward)s(arg, res, iw, w, 0);
  }
}
void celltwin_backward(const double* path, const double* u, const double* theta, double dt, long long n, long long m,
                       const double* weight, double* gx, double* gp) {
  long long iw[%(iw)d]; double w[%(w)d], back[%(nx)d], share[%(nl)d];
  memcpy(gx, weight + n * m * %(nx)d, sizeof(double) * m * %(nx)d);
  memset(gp, 0, sizeof(double) * m * %(nl)d);
  for (long long k = n - 1; k >= 0; --k) for (long long j = 0; j < m; ++j) {
    const double* arg[%(arg)d] = {path + (k * m + j) * %(nx)d, u + (k * m + j) * %(nu)d, theta + j * %(np)d, &dt, gx + j * %(nx)d};
    double* res[%(res)d] = {back, share};
    %(backward)s(arg, res, iw, w, 0);
    for (int i = 0; i < %(nx)d; ++i) gx[j * %(nx)d + i] = back[i] + weight[(k * m + j) * %(nx)d + i];
    for (int i = 0; i < %(nl)d; ++i) gp[j * %(nl)d + i] += share[i];
  }
}
"""


def _source(names: tuple[str, ...]) -> str:
    functions = (step_function(), adjoint_function(names))
    sizes = {k: max(getattr(f, f"sz_{k}")() for f in functions) + 1 for k in ("arg", "res", "iw", "w")}
    generator = ca.CodeGenerator("sweeps.c")
    for f in functions:
        generator.add(f)
    called = {"forward": functions[0].name(), "backward": functions[1].name()}
    return str(generator.dump()) + _LOOPS % {**sizes, **called, "nx": N_X, "nu": N_U, "np": N_THETA, "nl": len(names)}


@cache
def _library(names: tuple[str, ...]) -> Any | None:
    """The C build with its signatures; None where no compiler works."""
    library = build.load("sweeps", _source(names))
    if library is None:
        return None
    data, count, real = ctypes.c_void_p, ctypes.c_longlong, ctypes.c_double
    library.celltwin_forward.argtypes = [data, data, data, real, count, count, data]
    library.celltwin_backward.argtypes = [data, data, data, real, count, count, data, data, data]
    library.celltwin_forward.restype = library.celltwin_backward.restype = None
    return library


@cache
def sweeps(names: tuple[str, ...], compiled: bool = True) -> Sweeps:
    """Both sweeps for learnt kinetics `names`; with `compiled` False (or no compiler) on CasADi's virtual machine."""
    library = _library(names) if compiled else None
    return _interpreted(names) if library is None else _compiled(library, len(names))


def _compiled(library: Any, learnt: int) -> Sweeps:
    def forward(x0: np.ndarray, controls: np.ndarray, theta: np.ndarray, span: float) -> np.ndarray:
        x0, controls, theta = _checked(x0, controls, theta)
        n, m = controls.shape[:2]
        path = np.empty((n + 1, m, N_X))
        library.celltwin_forward(x0.ctypes.data, controls.ctypes.data, theta.ctypes.data, span, n, m, path.ctypes.data)
        return path

    def backward(
        path: np.ndarray, controls: np.ndarray, theta: np.ndarray, span: float, weight: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        _, controls, theta = _checked(path[0], controls, theta)
        path, weight = (np.ascontiguousarray(a, dtype=float) for a in (path, weight))
        n, m = controls.shape[:2]
        gx, gp = np.empty((m, N_X)), np.empty((m, learnt))
        given = (path.ctypes.data, controls.ctypes.data, theta.ctypes.data, span, n, m)
        library.celltwin_backward(*given, weight.ctypes.data, gx.ctypes.data, gp.ctypes.data)
        return gx, gp

    return Sweeps(forward, backward, library)


def _interpreted(names: tuple[str, ...]) -> Sweeps:
    @cache
    def mapped(m: int) -> tuple[Any, Any]:
        return step_function().map(m), adjoint_function(names).map(m)

    def forward(x0: np.ndarray, controls: np.ndarray, theta: np.ndarray, span: float) -> np.ndarray:
        x0, controls, theta = _checked(x0, controls, theta)
        path = np.empty((len(controls) + 1, *x0.shape))
        path[0] = x0
        step, _ = mapped(len(x0))
        for k, u in enumerate(controls):
            path[k + 1] = np.asarray(step(path[k].T, u.T, theta.T, span)).T
        return path

    def backward(
        path: np.ndarray, controls: np.ndarray, theta: np.ndarray, span: float, weight: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        _, controls, theta = _checked(path[0], controls, theta)
        gx, gp = weight[-1].copy(), np.zeros((len(theta), len(names)))
        _, adjoint = mapped(len(theta))
        for k in range(len(controls) - 1, -1, -1):
            back, share = adjoint(path[k].T, controls[k].T, theta.T, span, gx.T)
            gx = np.asarray(back).T + weight[k]
            gp += np.asarray(share).T
        return gx, gp

    return Sweeps(forward, backward, None)


def _checked(x0: np.ndarray, controls: np.ndarray, theta: np.ndarray) -> tuple[np.ndarray, ...]:
    """Contiguous float copies; ValueError where shapes do not belong together (C would read past the end)."""
    m = len(x0)
    if x0.shape != (m, N_X) or controls.shape[1:] != (m, N_U) or theta.shape != (m, N_THETA):
        raise ValueError(f"expected x0 [d, {N_X}], controls [steps, d, {N_U}], theta [d, {N_THETA}]; "
                         f"got {x0.shape}, {controls.shape}, {theta.shape}")  # fmt: skip
    return tuple(np.ascontiguousarray(a, dtype=float) for a in (x0, controls, theta))
