"""The control problem that `celltwin bench mpc` gives to everyone: 24 moves of 6 h, three inputs, soft limits, along one batch.

States are recorded along a closed loop whose plant is another donor than the model's. The objective is economic: medium, feed,
cytokine and moves on one side, ln of the viable cells at the end on the other. The soft limits are linear penalties at
the nodes 0 to 23, as do-mpc places them; its own volume is constant, so do-mpc is given the other 12 states.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from controllers.mpc.objective import N_PATH, limit_vector
from controllers.mpc.settings import Prices
from controllers.mpc.sqp import Found, Iterate, Problem, carried, solve_sqp
from twin.bioreactor import Control
from twin.process import Process
from twin.transition import N_CELL, advance_many, flat

STAGES = 24
LENGTH = 0.25  # d
PRICES = Prices()._replace(quadratic=0.0, target_ln=12.0, end_lactate=1e-8, end_ammonia=1e-8, day=0.0)
KINDS = (("viable_cells", "at_least"),)
CELLS = 1000.0
"""More than any batch grows to [1e9]: the shortfall is never 0, its price a smooth reward of ln cells."""

VARIED = ("mu_max", "Y_LG")
FACTORS = (0.9, 1.0, 1.1)
"""The nine scenarios: these donor parameters times these factors."""

FREE = 1e3  # VVD; do-mpc has no limit of a move's change


@dataclass(frozen=True, slots=True, eq=False)
class Case:
    """One instant at which a plan is wanted."""

    x0: np.ndarray  # [13]
    before: np.ndarray  # [3] moves in force


def tops(process: Process) -> np.ndarray:
    """Largest moves [3]."""
    lim = process.limits
    return np.array([lim.perfusion_max, max(lim.feed_max, 1e-6), lim.cytokine_dose_max])


def thetas(process: Process, scenarios: int) -> np.ndarray:
    """theta [S, 53], the medians alone or the nine combinations."""
    base = flat(process.theta)
    if scenarios == 1:
        return base[None]
    places = [process.theta.cell._fields.index(name) for name in VARIED]
    out = np.tile(base, (len(FACTORS) ** 2, 1))
    for row, pair in zip(out, itertools.product(FACTORS, repeat=2), strict=True):
        row[places] *= pair
    return out


def problem(process: Process, case: Case, scenarios: int = 1) -> Problem:
    """The case as our solver takes it."""
    theta = thetas(process, scenarios)
    s = len(theta)
    limits = limit_vector(replace(process.limits, perfusion_step=FREE), 0.05)
    tightened = np.zeros((s, STAGES, N_PATH))
    tightened[:, -1] = -FREE  # node 24 has no path limits
    return Problem(
        x0=np.tile(case.x0, (s, 1)), theta=theta, weights=np.full(s, 1.0 / s), kinds=KINDS, values=np.full((s, 1), CELLS),
        prices=PRICES, limits=limits, before=case.before, low=np.zeros((STAGES, 3)), high=np.tile(tops(process), (STAGES, 1)),
        left=FREE, length=LENGTH, shared=1, tightened=tightened,
    )  # fmt: skip


def cold(p: Problem, move: Sequence[float] = (0.5, 0.0, 300.0)) -> Iterate:
    """Every scenario simulated under one constant move."""
    advance, x, theta = advance_many(), p.x0.T, np.ascontiguousarray(p.theta.T)
    u = np.array(Control(move[0], move[1], 0.0, move[2]))
    middles, ends = [], []
    for _ in range(p.stages):
        middles.append(advance(x, u, theta, p.length / 3.0))
        ends.append(x := advance(middles[-1], u, theta, p.length * 2.0 / 3.0))
    moves = np.tile(np.asarray(move, float), (p.scenarios, p.stages, 1))
    return Iterate(moves, *(np.stack(rows).transpose(2, 0, 1) for rows in (middles, ends)))


def shifted(at: Iterate) -> Iterate:
    """A solution one move later."""
    return Iterate(*(np.concatenate([a[:, 1:], a[:, -1:]], axis=1) for a in at))


def recorded(process: Process, seed: int, n: int) -> list[Case]:
    """`n` instants from day 4 on, 6 h apart, in closed loop with another donor."""
    rng = np.random.default_rng([seed, 5])
    theta = flat(process.theta)[:, None].copy()
    plant = theta.copy()
    plant[:N_CELL, 0] *= np.exp(0.1 * rng.standard_normal(N_CELL))
    plant[process.theta.cell._fields.index("pH_opt")] = process.theta.cell.pH_opt
    x, advance = np.array(process.initial, float)[:, None], advance_many()
    x = advance(x, np.array(Control(0.3, 0.0, 0.0, 300.0)), theta, 4.0)
    case = Case(x[:, 0], np.array([0.3, 0.0, 300.0]))
    cases, start = [case], None
    while len(cases) < n:
        p = problem(process, case)
        found = solve_sqp(p, cold(p) if start is None else start, warm=start is not None)
        if found.at is None:
            raise RuntimeError(f"bench mpc: the closed loop that records states stopped: {found.detail}")
        move = found.at.moves[0, 0]
        after = advance(case.x0[:, None], np.array(Control(move[0], move[1], 0.0, move[2])), plant, LENGTH)[:, 0]
        noisy = after * np.exp(0.02 * rng.standard_normal(after.size))
        noisy[9:] = after[9:]
        case, start = Case(noisy, move), shifted(found.at)
        cases.append(case)
    return cases


def in_turn(
    process: Process, cases: Sequence[Case], scenarios: int = 1, once: bool = False, first: Found | None = None
) -> list[Found]:
    """Our solver along the cases: every one from the last solution, shifted; the first from `first`, else cold."""
    found: list[Found] = []
    last = first
    for case in cases:
        p = problem(process, case, scenarios)
        memory = None if last is None else carried(last.memory, p.stages, 1)
        begin = cold(p) if last is None or last.at is None else shifted(last.at)
        one = solve_sqp(p, begin, once=once and last is not None, warm=last is not None, memory=memory)
        if one.at is None:
            raise RuntimeError(f"bench mpc: ours failed: {one.detail}")
        found.append(one)
        last = one
    return found
