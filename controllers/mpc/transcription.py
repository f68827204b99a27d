"""From optimal control to nonlinear programme: direct collocation on Radau points, all in SX.

One stage is one held move. On it the state is a polynomial through the stage's start and two Radau IIA points (order 3,
L-stable, so that a glutamine or glucose pool that turns over in minutes does no harm at 6 h steps); the second point is
the stage's end, so that no continuity equation is needed. With x = scale * z and stage length h:

    sum_j D[j, i] x_j  =  h * rates(x_i, u, theta)          i = 1, 2

`h` is a parameter for every stage. A stage of length 0 holds the state and costs nothing: one compiled programme of N
stages serves every shorter horizon, and the horizon shrinks towards the harvest without rebuilding anything.
"""

from __future__ import annotations

from dataclasses import dataclass
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
    running_cost,
    slack_cost,
    target_shortfall,
)
from controllers.mpc.settings import Prices
from twin.bioreactor import Control, State, physiology, rates
from twin.transition import N_THETA, N_X, Symbols

ca.GlobalOptions.setNumpyMode(1)  # NumPy ufuncs in `rates` build CasADi expressions

DEGREE = 2
N_MOVE = 3  # perfusion, feed, cytokine_dose: bleed stays at 0

SCALE = np.array([5.0, 5.0, 2.0, 10.0, 10.0, 3.0, 2.0, 100.0, 10.0, 0.2, 30.0, 1.0, 1.0])
"""Typical size of every state: the programme's variables are states over this."""

MOVE_SCALE = np.array([1.0, 0.05, 300.0])
"""Typical size of every move [VVD, VVD, IU/mL/d]."""

STAGE = N_MOVE + DEGREE * N_X + N_PATH
"""Variables of a stage: moves, states at the Radau points, slacks of the path limits."""


class Blocks(NamedTuple):
    """Where the parts of the parameter vector go, in order."""

    x0: Any  # [13]
    theta: Any  # [53]
    lengths: Any  # [N] stage lengths [d]
    before: Any  # [3] moves in force
    limits: Any  # path limits, see `objective.path_violations`
    targets: Any  # target values with their margins
    budget: Any  # [1] medium left [vessel volumes]
    prices: Any  # `Prices`


@dataclass(frozen=True, slots=True)
class Programme:
    """The nonlinear programme of N stages, symbolically and with its constant bounds."""

    stages: int
    x: Any
    f: Any
    g: Any
    p: Any
    lbg: np.ndarray
    ubg: np.ndarray


def radau(degree: int) -> np.ndarray:
    """Differentiation matrix D[j, i] = l_j'(tau_i) of the Lagrange basis on 0 and the Radau points."""
    tau = np.array([0.0, *ca.collocation_points(degree, "radau")])
    d = np.zeros((degree + 1, degree + 1))
    for j in range(degree + 1):
        basis = np.poly1d([1.0])
        for r in range(degree + 1):
            if r != j:
                basis *= np.poly1d([1.0, -tau[r]]) / (tau[j] - tau[r])
        d[j] = np.polyder(basis)(tau)
    return d


def control_of(move: Any) -> Control:
    """Scaled moves (3 symbols or numbers) to a Control."""
    return Control(move[0] * MOVE_SCALE[0], move[1] * MOVE_SCALE[1], 0.0, move[2] * MOVE_SCALE[2])


def transcribe(stages: int, targets: tuple[tuple[str, str], ...]) -> Programme:
    """The programme of `stages` moves; `targets` are (cqa, sense), their values are parameters."""
    sx = ca.SX.sym
    p = Blocks(
        sx("x0", N_X), sx("theta", N_THETA), sx("h", stages), sx("before", N_MOVE), sx("limits", N_PATH_LIMITS),
        sx("targets", len(targets)), sx("budget"), sx("prices", len(Prices._fields)),
    )  # fmt: skip
    theta = Symbols(p.x0, ca.SX(4, 1), p.theta).unpack()[2]
    economy = Economy(Prices(*ca.vertsplit(p.prices)), ca.vertsplit(p.limits))
    d = radau(DEGREE)
    w: list[Any] = []
    g: list[Any] = []
    low: list[np.ndarray] = []
    cost, spent = ca.SX(0.0), ca.SX(0.0)
    start, before = p.x0, p.before
    step_limit = economy.limits[-1]
    for k in range(stages):
        h = p.lengths[k]
        move, slack = sx(f"u{k}", N_MOVE), sx(f"s{k}", N_PATH)
        z = [sx(f"x{k}_{i}", N_X) for i in range(1, DEGREE + 1)]
        w += [move, *z, slack]
        u = control_of(ca.vertsplit(move))
        points = [start, *(v * SCALE for v in z)]
        for i in range(1, DEGREE + 1):
            x = State(*ca.vertsplit(points[i]))
            slope = sum(float(d[j, i]) * points[j] for j in range(DEGREE + 1))
            g.append((slope - h * ca.vertcat(*rates(x, u, theta))) / SCALE)
            low.append(np.zeros(N_X))
        end = State(*ca.vertsplit(points[-1]))
        g.append(ca.vertcat(*path_violations(end, physiology(end, theta), economy)) - slack)
        low.append(np.full(N_PATH, -np.inf))
        change = move - before
        g += [change[0] - step_limit, -change[0] - step_limit]
        low.append(np.full(2, -np.inf))
        cost += h * running_cost(u, economy) + slack_cost(ca.vertsplit(slack), h, economy)
        cost += economy.prices.move_perfusion * change[0] ** 2
        cost += economy.prices.move_dose * (change[1] ** 2 + change[2] ** 2)
        spent += h * u.perfusion
        start, before = points[-1], move
    end = State(*ca.vertsplit(start))
    missed = sx("missed", len(targets) + N_CLOSING)
    w.append(missed)
    for i, (cqa, sense) in enumerate(targets):
        shortfall, logarithmic = target_shortfall(cqa, sense, end, p.targets[i])
        g.append(shortfall - missed[i])
        cost += (economy.prices.target_ln if logarithmic else economy.prices.target) * missed[i]
    for i, (excess, price) in enumerate(closing_terms(end, spent, p.budget, economy), start=len(targets)):
        g.append(excess - missed[i])
        cost += price * missed[i]
    low.append(np.full(len(targets) + N_CLOSING, -np.inf))
    lbg = np.concatenate(low)
    return Programme(stages, ca.vertcat(*w), cost, ca.vertcat(*g), ca.vertcat(*p), lbg, np.zeros(lbg.size))


def pack(
    controls: np.ndarray, middles: np.ndarray, ends: np.ndarray, slacks: np.ndarray, missed: np.ndarray
) -> np.ndarray:
    """Variables from moves [N, 3], states at the first Radau point and at the end [N, 13], slacks [N, 9], misses."""
    rows = np.hstack([controls / MOVE_SCALE, middles / SCALE, ends / SCALE, slacks])
    return np.concatenate([rows.ravel(), missed])


def unpack(w: np.ndarray, stages: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The inverse of `pack`."""
    rows, missed = w[: stages * STAGE].reshape(stages, STAGE), w[stages * STAGE :]
    a, b = N_MOVE + N_X, N_MOVE + DEGREE * N_X
    return rows[:, :N_MOVE] * MOVE_SCALE, rows[:, N_MOVE:a] * SCALE, rows[:, a:b] * SCALE, rows[:, b:], missed
