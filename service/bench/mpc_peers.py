"""The same control problem by do-mpc, as its documentation has it and tuned, and by lean collocation with IPOPT."""

from __future__ import annotations

import warnings
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import casadi as ca
import numpy as np

from controllers.mpc.objective import N_PATH, PATH_SCALE, Economy, path_prices, path_violations, running_cost
from controllers.mpc.solver import Compiled, compiled, solve
from controllers.mpc.transcription import MOVE_SCALE, N_MOVE, SCALE, STAGE, pack, unpack
from service.bench.mpc_problem import (
    CELLS,
    FACTORS,
    KINDS,
    LENGTH,
    PRICES,
    STAGES,
    VARIED,
    Case,
    cold,
    problem,
    shifted,
    tops,
)
from twin.bioreactor import Control, State, Theta, physiology, rates
from twin.process import Process
from twin.transition import flat

LONGEST = 60.0
"""CPU time after which a peer's solve is given up [s]; its row then has this time and no objective."""

MOVES = ("perfusion", "feed", "cytokine_dose")


@contextmanager
def usual_casadi() -> Generator[None]:
    """CasADi as others expect it: NumPy functions of its values are not expressions."""
    ca.GlobalOptions.setNumpyMode(-1)
    try:
        yield
    finally:
        ca.GlobalOptions.setNumpyMode(1)


def installed() -> bool:
    return find_spec("do_mpc") is not None


class DoMpc:
    """do-mpc on the problem; `tuned`: scaled, expanded, without the outputs, with an adaptive barrier."""

    def __init__(self, process: Process, scenarios: int = 1, tuned: bool = False) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it warns of the optional parts that it was installed without
            do_mpc: Any = import_module("do_mpc")

        self._process = process
        model = do_mpc.model.Model("continuous", "SX")
        names = [name for name in State._fields if name != "volume"]
        x = State(**{n: model.set_variable("_x", n) for n in names}, volume=float(process.initial.volume))
        u = Control(**{n: model.set_variable("_u", n) for n in MOVES})
        cell = process.theta.cell
        varied = {n: model.set_variable("_p", n) for n in VARIED}
        theta: Theta = process.theta._replace(cell=cell._replace(**varied))
        for name, slope in zip(State._fields, rates(x, u, theta), strict=True):
            if name != "volume":
                model.set_rhs(name, ca.vertcat(slope))
        model.setup()
        mpc = do_mpc.controller.MPC(model)
        mpc.set_param(
            n_horizon=STAGES, t_step=LENGTH, state_discretization="collocation", collocation_type="radau", collocation_deg=2,
            collocation_ni=1, n_robust=1 if scenarios > 1 else 0, store_full_solution=False, cons_check_colloc_points=False,
            nl_cons_check_colloc_points=False, store_solver_stats=[],
        )  # fmt: skip
        quiet = {"ipopt.print_level": 0, "ipopt.sb": "yes", "print_time": 0, "ipopt.max_cpu_time": LONGEST}
        fast = {"expand": True, "ipopt.mu_strategy": "adaptive", "ipopt.tol": 1e-6, "ipopt.linear_solver": "mumps"}
        mpc.set_param(nlpsol_opts={**quiet, **(fast if tuned else {})})
        scale = MOVE_SCALE if tuned else np.ones(N_MOVE)
        if tuned:
            for name, value in zip(State._fields, SCALE, strict=True):
                if name != "volume":
                    mpc.scaling["_x", name] = value
            for name, value in zip(MOVES, MOVE_SCALE, strict=True):
                mpc.scaling["_u", name] = value
        limits = [float(v) for v in problem(process, Case(np.zeros(13), np.zeros(3))).limits]
        economy = Economy(PRICES, limits)
        have = (x.car_positive + x.car_negative) * float(process.initial.volume)
        mpc.set_objective(
            mterm=ca.vertcat(PRICES.target_ln * np.log(CELLS / have)),
            lterm=ca.vertcat(LENGTH * running_cost(u, economy)),
        )
        move = np.array([PRICES.move_perfusion, PRICES.move_dose, PRICES.move_dose]) / MOVE_SCALE**2 * scale**2
        mpc.set_rterm(**{n: float(v) for n, v in zip(MOVES, move, strict=True)})
        prices = path_prices(PRICES)
        for i, beyond in enumerate(path_violations(x, physiology(x, theta), economy)):
            # do-mpc counts slacks of all scenarios in full
            penalty = (LENGTH * prices[i] + 1e-6) * PATH_SCALE[i] / scenarios
            mpc.set_nl_cons(f"limit_{i}", ca.vertcat(beyond), ub=0.0, soft_constraint=True, penalty_term_cons=penalty)
        for name in names:
            mpc.bounds["lower", "_x", name] = 0.0
        for name, top in zip(MOVES, tops(process), strict=True):
            mpc.bounds["lower", "_u", name] = 0.0
            mpc.bounds["upper", "_u", name] = top
        factors = FACTORS if scenarios > 1 else (1.0,)
        with usual_casadi():
            mpc.set_uncertainty_values(**{n: np.array([getattr(cell, n) * f for f in factors]) for n in VARIED})
            mpc.setup()
        self._mpc = mpc
        self._cost = ca.Function("cost", [mpc.nlp["x"], mpc.nlp["p"]], [mpc.nlp["f"]])

    def in_turn(self, cases: Sequence[Case]) -> np.ndarray:
        """Objectives along the cases; the first cold, every other from the last solution, as do-mpc does it. NaN: failed."""
        with usual_casadi():
            return self._in_turn(cases)

    def _in_turn(self, cases: Sequence[Case]) -> np.ndarray:
        mpc, costs = self._mpc, list[float]()
        mpc.reset_history()
        for k, case in enumerate(cases):
            mpc.u0 = case.before
            if k == 0:
                mpc.x0 = case.x0[:-1]
                mpc.set_initial_guess()
            mpc.make_step(case.x0[:-1])
            good = bool(mpc.solver_stats["success"])
            costs.append(float(self._cost(mpc.opt_x_num, mpc.opt_p_num)) if good else np.nan)
        return np.array(costs)


class Lean:
    """The collocation programme of `controllers.mpc` with IPOPT."""

    def __init__(self, process: Process) -> None:
        self._process = process
        c = compiled(STAGES, KINDS, 200)
        ubg = c.programme.ubg.copy()
        per_stage = (ubg.size - len(KINDS) - 3) // STAGES
        last = (STAGES - 1) * per_stage + per_stage - 2 - N_PATH
        ubg[last : last + N_PATH] = np.inf  # node 24 has no path limits
        self._c = Compiled(replace(c.programme, ubg=ubg), c.solver)

    def in_turn(self, cases: Sequence[Case]) -> np.ndarray:
        """Objectives along the cases; the first cold, every other from the last solution, shifted. NaN: failed."""
        costs, start = [], None
        for case in cases:
            p = problem(self._process, case)
            at = cold(p) if start is None else start
            missed = len(KINDS) + 3
            guess = pack(at.moves[0], at.middles[0], at.ends[0], np.zeros((STAGES, N_PATH)), np.zeros(missed))
            given = np.concatenate([
                case.x0, flat(self._process.theta), np.full(STAGES, LENGTH), case.before / MOVE_SCALE, p.limits, p.values[0], [p.left],
                PRICES,
            ])  # fmt: skip
            low, high = np.zeros((STAGES, STAGE)), np.full((STAGES, STAGE), np.inf)
            high[:, :N_MOVE] = p.high / MOVE_SCALE
            low, high = np.append(low.ravel(), np.zeros(missed)), np.append(high.ravel(), np.full(missed, np.inf))
            found = solve(self._c, guess, given, low, high)
            costs.append(found.cost if found.status == "solved" else np.nan)
            if found.status == "solved":
                moves, middles, ends, *_ = unpack(found.w, STAGES)
                start = shifted(type(at)(moves[None], middles[None], ends[None]))
        return np.array(costs)


__all__ = ["DoMpc", "Lean", "installed"]
