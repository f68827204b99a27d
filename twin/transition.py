"""The fixed-step scheme, compiled: many columns over one span, and its CVODES reference.

The step (`twin.integrate.rk4` and its floors) is traced once into a CasADi graph. Where a C compiler is found the graph
becomes C, built once and cached under its hash; without one the CasADi virtual machine runs the same graph. Both execute
the same operations in the same order (floating-point contraction is off), so they give the same bits.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import casadi as ca
import numpy as np
from jaxtyping import Float

from twin.bioreactor import Control, Kinetics, Medium, State, Theta, Vessel, rates
from twin.integrate import FLOOR, STEP, rk4, substeps

ca.GlobalOptions.setNumpyMode(1)  # NumPy ufuncs on CasADi values build CasADi expressions

N_X, N_U = len(State._fields), len(Control._fields)
N_CELL, N_VESSEL, N_MEDIUM = len(Kinetics._fields), len(Vessel._fields), len(Medium._fields)
N_THETA = N_CELL + N_VESSEL + N_MEDIUM

Advance = Callable[[np.ndarray, np.ndarray, np.ndarray, float], np.ndarray]
"""(states [13, m], control [4] or [4, m], theta [53, m], span [d]) -> states [13, m]."""


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


@cache
def step_function() -> Any:
    """CasADi function of one floored RK4 step: (x, u, theta, dt) -> x."""
    s = symbols()
    dt = ca.SX.sym("dt")
    x, u, theta = s.unpack()
    # not fmax, which would turn NaN into the floor: what is not a number must stay so, for the gates to see
    stepped = [
        ca.if_else(value < floor, floor, value) for value, floor in zip(rk4(x, u, theta, dt), FLOOR, strict=True)
    ]
    return ca.Function("celltwin_step", [*s, dt], [ca.vertcat(*stepped)])


@cache
def jacobian_function() -> Any:
    """CasADi function of the step with its derivatives: (x, u, theta, dt) -> x, dx/dx, dx/dtheta[cell]."""
    args = [ca.SX.sym(n, k) for n, k in (("x", N_X), ("u", N_U), ("theta", N_THETA), ("dt", 1))]
    out = step_function()(*args)
    wrt_theta = ca.densify(ca.jacobian(out, args[2])[:, :N_CELL])
    return ca.Function("step_jacobian", args, [out, ca.densify(ca.jacobian(out, args[0])), wrt_theta])


_LOOP = """
#include <string.h>
int celltwin_advance(const double* x0, const double* u, const double* theta, double dt, int n, int m, double* out) {
  double a[%(nx)d], b[%(nx)d]; casadi_int iw[%(iw)d]; double w[%(w)d];
  for (int j = 0; j < m; ++j) {
    memcpy(a, x0 + (size_t)j * %(nx)d, sizeof a);
    const double* p = theta + (size_t)j * %(np)d;
    const double* v = u + (size_t)j * %(nu)d;
    for (int k = 0; k < n; ++k) {
      const double* arg[%(arg)d] = {a, v, p, &dt};
      double* res[%(res)d] = {b};
      if (celltwin_step(arg, res, iw, w, 0)) return 1;
      memcpy(a, b, sizeof a);
    }
    memcpy(out + (size_t)j * %(nx)d, a, sizeof a);
  }
  return 0;
}
"""


def _source() -> str:
    f = step_function()
    sizes = {"nx": N_X, "nu": N_U, "np": N_THETA, "arg": f.sz_arg(), "res": f.sz_res(), "iw": f.sz_iw() + 1, "w": f.sz_w() + 1}  # fmt: skip
    generator = ca.CodeGenerator("step.c")
    generator.add(f)
    return str(generator.dump()) + _LOOP % sizes


def cache_dir() -> Path:
    """Where compiled transitions are kept: CELLTWIN_CACHE, else the user's cache folder."""
    base = os.environ.get("CELLTWIN_CACHE") or os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "celltwin"


@cache
def compiled_library() -> Any | None:
    """The C build of the step as a ctypes library, or None where no compiler works (or CELLTWIN_COMPILER=none)."""
    compiler = os.environ.get("CELLTWIN_COMPILER") or shutil.which("gcc") or shutil.which("cc") or shutil.which("clang")
    if not compiler or compiler == "none":
        return None
    source = _source()
    flags = ["-O2", "-ffp-contract=off", "-fPIC", "-shared"]
    key = hashlib.sha256("\n".join([source, compiler, *flags]).encode()).hexdigest()[:24]
    target = cache_dir() / f"step-{key}.so"
    try:
        if not target.is_file():
            target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
                code, built = Path(scratch) / "step.c", Path(scratch) / "step.so"
                code.write_text(source)
                subprocess.run(
                    [compiler, *flags, "-o", built, code, "-lm"], check=True, capture_output=True, timeout=120
                )
                built.replace(target)  # atomic: two processes may build at once
        library = ctypes.CDLL(str(target))
    except (OSError, subprocess.SubprocessError):
        return None
    double = ctypes.POINTER(ctypes.c_double)
    library.celltwin_advance.argtypes = [double, double, double, ctypes.c_double, ctypes.c_int, ctypes.c_int, double]
    library.celltwin_advance.restype = ctypes.c_int
    return library


def _per_column(u: np.ndarray, m: int) -> np.ndarray:
    """Controls [4, m] from [4] or [4, m]."""
    control = np.asarray(u, dtype=float)
    return np.broadcast_to(control[:, None] if control.ndim == 1 else control, (N_U, m))


def _columns(values: np.ndarray) -> np.ndarray:
    """Column-major copy: one column contiguous, as the C loop reads it."""
    return np.ascontiguousarray(np.asarray(values, dtype=float).T)


def advance_compiled(library: Any, longest: float = STEP) -> Advance:
    """`Advance` through the C build."""
    pointer = ctypes.POINTER(ctypes.c_double)

    def advance(x: np.ndarray, u: np.ndarray, theta: np.ndarray, span: float) -> np.ndarray:
        states, parameters, control = _columns(x), _columns(theta), _columns(_per_column(u, x.shape[1]))
        if states.shape[1] != N_X or parameters.shape != (states.shape[0], N_THETA):
            raise ValueError(f"expected x [{N_X}, m] and theta [{N_THETA}, m]; got {x.shape} and {theta.shape}")
        out, n = np.empty_like(states), substeps(span, longest)
        library.celltwin_advance(
            *(a.ctypes.data_as(pointer) for a in (states, control, parameters)),
            span / n, n, states.shape[0], out.ctypes.data_as(pointer),
        )  # fmt: skip
        return out.T

    return advance


def advance_interpreted(longest: float = STEP) -> Advance:
    """`Advance` through the CasADi virtual machine."""

    def advance(x: np.ndarray, u: np.ndarray, theta: np.ndarray, span: float) -> np.ndarray:
        n, mapped, u = substeps(span, longest), _mapped(x.shape[1]), _per_column(u, x.shape[1])
        for _ in range(n):
            x = np.asarray(mapped(x, u, theta, span / n))
        return x

    return advance


@cache
def _mapped(m: int) -> Any:
    return step_function().map(m)


@cache
def advance_many(longest: float = STEP) -> Advance:
    """The fastest `Advance` this machine offers, with steps no longer than `longest` days."""
    library = compiled_library()
    return advance_interpreted(longest) if library is None else advance_compiled(library, longest)


def reference(x: State, u: Control, theta: Theta, span: float, rtol: float = 1e-10, atol: float = 1e-12) -> State:
    """CVODES (BDF, SUNDIALS through CasADi) over `span` days with `u` held: the reference of the tests."""
    s = symbols()
    dae = {"x": s.x, "p": ca.vertcat(s.u, s.theta), "ode": ca.vertcat(*rates(*s.unpack()))}
    options = {"abstol": atol, "reltol": rtol, "max_num_steps": 200_000}
    solver = ca.integrator("reference", "cvodes", dae, 0.0, span, options)
    end = solver(x0=np.array(x, dtype=float), p=np.concatenate([np.array(u, dtype=float), flat(theta)]))["xf"]
    return State(*np.asarray(end).ravel())
