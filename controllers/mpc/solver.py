"""The compiled programme and its solution, with a typed status. Deterministic: iterations are limited, time is not."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import casadi as ca
import numpy as np

from controllers.mpc.transcription import Programme, transcribe, unpack

SIZES = (8, 16, 24, 36, 48, 56)
"""Stages of the programmes that are built; a horizon uses the smallest that holds it."""

GOOD = ("Solve_Succeeded", "Solved_To_Acceptable_Level")
"""Statuses of IPOPT that are a solution; everything else is a failure, whatever numbers came back."""

SolveStatus = Literal["solved", "iteration_limit", "infeasible", "diverged", "not_finite", "error"]


@dataclass(frozen=True, slots=True)
class Solution:
    """What the solver found: only "solved" may be used, for anything."""

    status: SolveStatus
    detail: str  # the solver's own words and its iterations
    cost: float
    w: np.ndarray  # variables, see `transcription.unpack`

    def blocks(self, stages: int) -> tuple[np.ndarray, ...]:
        return unpack(self.w, stages)


@dataclass(frozen=True, slots=True)
class Compiled:
    """A programme with its solver."""

    programme: Programme
    solver: Any


def size_for(stages: int) -> int:
    """The smallest built size that holds `stages` moves; ValueError beyond the largest."""
    for size in SIZES:
        if stages <= size:
            return size
    raise ValueError(f"a horizon of {stages} moves is too long (at most {SIZES[-1]})")


@cache
def compiled(stages: int, targets: tuple[tuple[str, str], ...], max_iter: int, patient: bool = False) -> Compiled:
    """Build (once per process and size) the programme of `stages` moves.

    The usual solver lowers its barrier adaptively (12 iterations where the monotone strategy takes 20); `patient` is the
    monotone one, the last rung of the ladder.
    """
    programme = compiled(stages, targets, max_iter).programme if patient else transcribe(stages, targets)
    options = {
        "print_time": False, "error_on_fail": False, "ipopt.print_level": 0, "ipopt.sb": "yes",
        "ipopt.max_iter": 3 * max_iter if patient else max_iter, "ipopt.tol": 1e-6, "ipopt.constr_viol_tol": 1e-6,
        "ipopt.acceptable_tol": 1e-4, "ipopt.acceptable_constr_viol_tol": 1e-6, "ipopt.acceptable_iter": 4,
        "ipopt.linear_solver": "mumps", "ipopt.mumps_pivot_order": 0, "ipopt.mumps_permuting_scaling": 0,
        "ipopt.mumps_scaling": 0, "ipopt.mu_strategy": "monotone" if patient else "adaptive",
    }  # fmt: skip
    nlp = {"x": programme.x, "f": programme.f, "g": programme.g, "p": programme.p}
    return Compiled(programme, ca.nlpsol("mpc", "ipopt", nlp, options))


def solve(c: Compiled, guess: np.ndarray, p: np.ndarray, lbx: np.ndarray, ubx: np.ndarray) -> Solution:
    """Solve from `guess`; every way to fail becomes a status."""
    nothing = np.full(guess.size, np.nan)
    if not (np.isfinite(guess).all() and np.isfinite(p).all()):
        return Solution("not_finite", "guess or parameters are not finite", float("nan"), nothing)
    try:
        result = c.solver(x0=np.clip(guess, lbx, ubx), p=p, lbx=lbx, ubx=ubx, lbg=c.programme.lbg, ubg=c.programme.ubg)
    except RuntimeError as error:
        return Solution("error", str(error).splitlines()[0], float("nan"), nothing)
    stats = c.solver.stats()
    detail = f"IPOPT {stats['return_status']}, {stats['iter_count']} iterations"
    w, cost = np.asarray(result["x"]).ravel(), float(result["f"])
    status = _status(str(stats["return_status"]), w, cost)
    return Solution(status, detail, cost, w)


def _status(said: str, w: np.ndarray, cost: float) -> SolveStatus:
    if not (np.isfinite(w).all() and np.isfinite(cost)):
        return "not_finite"
    if said in GOOD:
        return "solved"
    if said == "Maximum_Iterations_Exceeded":
        return "iteration_limit"
    return "infeasible" if "Infeasible" in said else "diverged"
