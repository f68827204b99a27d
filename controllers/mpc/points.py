"""The model at collocation points, with its derivatives: kernels over many points at once, all in scaled variables.

A point is a state over `SCALE` with the move over `MOVE_SCALE` that holds there. The kernels run as machine code where a
compiler is found (`twin.native`), else on CasADi's virtual machine; both give the same bits.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import casadi as ca
import numpy as np

from controllers.mpc.objective import (
    N_CLOSING,
    N_PATH,
    N_PATH_LIMITS,
    Economy,
    closing_terms,
    path_violations,
    target_shortfall,
)
from controllers.mpc.settings import Prices
from controllers.mpc.transcription import MOVE_SCALE, N_MOVE, SCALE, control_of
from twin.bioreactor import State, physiology, rates
from twin.native.columns import Columns
from twin.transition import N_THETA, N_X, Symbols

N_POINT = N_X + N_MOVE
"""Directions at a point: scaled state, then scaled move."""

SPENT = 0
"""Which of the closing terms is the medium spent; it alone depends on more than the last state."""


class Slopes(NamedTuple):
    """The model at m points."""

    rates: np.ndarray  # [m, 13] scaled [1/d]
    by: np.ndarray  # [m, 13, 16] d rates / d (state, move)
    beyond: np.ndarray  # [m, 9] violations of the path limits, in units of `objective.PATH_SCALE`
    beyond_by: np.ndarray  # [m, 9, 13]


class Closing(NamedTuple):
    """Targets and closing terms at the last state of S scenarios; the medium spent is left out of its row."""

    rows: np.ndarray  # [S, T + 3]
    by: np.ndarray  # [S, T + 3, 13]


class Sparse(NamedTuple):
    """Columns whose last outputs are the elements that a Jacobian or Hessian has at all, and where they stand."""

    columns: Columns
    places: tuple[np.ndarray, ...]
    shapes: tuple[tuple[int, ...], ...]

    def dense(self, values: np.ndarray, which: int = 0) -> np.ndarray:
        """[m, *shape] from [elements, m]."""
        out = np.zeros((values.shape[1], int(np.prod(self.shapes[which]))))
        out[:, self.places[which]] = values.T
        return out.reshape(-1, *self.shapes[which])


def _places(matrix: Any) -> tuple[Any, np.ndarray]:
    """The elements that are there, and their places in row-major order."""
    rows, cols = matrix.sparsity().get_triplet()
    return ca.vertcat(*matrix.nonzeros()), np.array(rows) * matrix.shape[1] + np.array(cols)


class _Symbols(NamedTuple):
    z: Any
    v: Any
    theta: Any
    limits: Any

    def model(self) -> tuple[Any, Any]:
        """Scaled rates and path violations."""
        x, _, theta = Symbols(self.z * SCALE, ca.SX(4, 1), self.theta).unpack()
        u = control_of(ca.vertsplit(self.v))
        economy = Economy(Prices(), ca.vertsplit(self.limits))
        return ca.vertcat(*rates(x, u, theta)) / SCALE, ca.vertcat(*path_violations(x, physiology(x, theta), economy))


def _symbols() -> _Symbols:
    sx = ca.SX.sym
    return _Symbols(sx("z", N_X), sx("v", N_MOVE), sx("theta", N_THETA), sx("limits", N_PATH_LIMITS))


@cache
def _values() -> Columns:
    s = _symbols()
    return Columns(ca.Function("celltwin_mpc_values", [*s], [*s.model()]), {3})


@cache
def _slopes() -> Sparse:
    s = _symbols()
    f, g = s.model()
    (by, at), (g_by, g_at) = _places(ca.jacobian(f, ca.vertcat(s.z, s.v))), _places(ca.jacobian(g, s.z))
    columns = Columns(ca.Function("celltwin_mpc_slopes", [*s], [f, by, g, g_by]), {3})
    return Sparse(columns, (at, g_at), ((N_X, N_POINT), (N_PATH, N_X)))


@cache
def _curvature() -> Sparse:
    s = _symbols()
    nu, pi = ca.SX.sym("nu", N_X), ca.SX.sym("pi", N_PATH)
    f, g = s.model()
    hessian, _ = ca.hessian(ca.dot(nu, f) + ca.dot(pi, g), ca.vertcat(s.z, s.v))
    values, at = _places(hessian)
    return Sparse(
        Columns(ca.Function("celltwin_mpc_curvature", [*s, nu, pi], [values]), {3}), (at,), ((N_POINT, N_POINT),)
    )


@cache
def _closing(kinds: tuple[tuple[str, str], ...]) -> tuple[Sparse, Sparse]:
    z, values, limits = ca.SX.sym("z", N_X), ca.SX.sym("values", len(kinds)), ca.SX.sym("limits", N_PATH_LIMITS)
    zeta = ca.SX.sym("zeta", len(kinds) + N_CLOSING)
    x, economy = State(*ca.vertsplit(z * SCALE)), Economy(Prices(), ca.vertsplit(limits))
    rows = [target_shortfall(cqa, sense, x, values[i])[0] for i, (cqa, sense) in enumerate(kinds)]
    rows += [excess for excess, _ in closing_terms(x, ca.SX(0.0), ca.SX(0.0), economy)]
    t = ca.densify(ca.vertcat(*rows))
    by, at = _places(ca.jacobian(t, z))
    hessian, at2 = _places(ca.hessian(ca.dot(zeta, t), z)[0])
    name = "celltwin_mpc_closing"
    first = Columns(ca.Function(name, [z, values, limits], [t, by]), {2})
    second = Columns(ca.Function(f"{name}_curvature", [z, values, limits, zeta], [hessian]), {2})
    return Sparse(first, (at,), ((t.numel(), N_X),)), Sparse(second, (at2,), ((N_X, N_X),))


def values_at(z: np.ndarray, v: np.ndarray, theta: np.ndarray, limits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scaled rates [m, 13] and path violations [m, 9] at states z [m, 13] and moves v [m, 3]; theta [53, m]."""
    f, g = _values()(z.T, v.T, theta, limits)
    return f.T, g.T


def slopes_at(z: np.ndarray, v: np.ndarray, theta: np.ndarray, limits: np.ndarray) -> Slopes:
    """The same with their derivatives."""
    kernel = _slopes()
    f, by, g, g_by = kernel.columns(z.T, v.T, theta, limits)
    return Slopes(f.T, kernel.dense(by), g.T, kernel.dense(g_by, 1))


def curvature_at(
    z: np.ndarray, v: np.ndarray, theta: np.ndarray, limits: np.ndarray, nu: np.ndarray, pi: np.ndarray
) -> np.ndarray:
    """Hessians [m, 16, 16] of nu'rates + pi'violations, with multipliers nu [m, 13] and pi [m, 9]."""
    kernel = _curvature()
    return kernel.dense(kernel.columns(z.T, v.T, theta, limits, nu.T, pi.T)[0])


def closing_at(kinds: tuple[tuple[str, str], ...], z: np.ndarray, values: np.ndarray, limits: np.ndarray) -> Closing:
    """Targets of these kinds, missed by so much at z [S, 13], and the closing terms; values [S, T]."""
    kernel = _closing(kinds)[0]
    rows, by = kernel.columns(z.T, values.T, limits)
    return Closing(rows.T, kernel.dense(by))


def closing_curvature(
    kinds: tuple[tuple[str, str], ...], z: np.ndarray, values: np.ndarray, limits: np.ndarray, zeta: np.ndarray
) -> np.ndarray:
    """Hessians [S, 13, 13] of zeta'rows, zeta [S, T + 3]."""
    kernel = _closing(kinds)[1]
    return kernel.dense(kernel.columns(z.T, values.T, limits, zeta.T)[0])


__all__ = [
    "MOVE_SCALE", "SPENT", "Closing", "Slopes", "closing_at", "closing_curvature", "curvature_at", "slopes_at", "values_at",
]  # fmt: skip
