"""The quadratic programme of one iteration, for PIQP's multistage solver: a chain of stages, scenarios as an arrow.

Variables of a scenario, stage after stage: change of the move [3], change of the next node [13], medium spent by then [1],
slacks of the path limits [9]; then what is missed of targets and closing terms [T + 3]. Where several scenarios share their
first R moves, 3 R common moves come last and equations tie the scenarios' own to them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import piqp
import scipy.sparse as sp

from controllers.mpc.convex import N_STAGE
from controllers.mpc.objective import N_CLOSING, N_PATH
from controllers.mpc.transcription import N_MOVE
from twin.transition import N_X

BLOCK = N_MOVE + N_X + 1 + N_PATH
"""Variables of a stage."""

TOLERANCE = 1e-8

SLOPPY = 1e-6
"""Residual of the equations with which a step is still used where the last digits do not come; the merit judges it."""

NEARBY, FAR = 0.5, 2.0
"""How far from its limit a path limit is looked at, in units of `objective.PATH_SCALE`; one that a step would cross is added."""

HELD = 1e-6
"""Multiplier from which a move counts as kept at its bound."""


class Data(NamedTuple):
    """Numbers of the programme, S scenarios of N stages; moves and nodes as changes, the rest as they are."""

    hessians: np.ndarray  # [S, N, 19, 19] over (u_{k-1}, x_k, u_k), convex
    gradients: np.ndarray  # [S, N, 19]
    by: np.ndarray  # [S, N, 13, 16] A, B
    gap: np.ndarray  # [S, N, 13]
    moves: np.ndarray  # [S, N, 3] scaled, as they are
    before: np.ndarray  # [3] scaled moves in force
    low: np.ndarray  # [N, 3] scaled bounds
    high: np.ndarray  # [N, 3]
    most: float  # largest change that the step may make to a scaled move
    step: float  # largest change of scaled perfusion from one move to the next
    volume: float  # medium of one stage per unit of scaled perfusion [vessel volumes]
    beyond: np.ndarray  # [S, N, 9] path violations
    beyond_by: np.ndarray  # [S, N, 9, 13]
    slack: np.ndarray  # [S, N, 9] price of a slack
    slack_square: np.ndarray  # [S, N, 9] price of its square
    closing: np.ndarray  # [S, T + 3] rows at the last node
    closing_by: np.ndarray  # [S, T + 3, 13]
    missed: np.ndarray  # [S, T + 3] their prices
    left: np.ndarray  # [S] medium left [vessel volumes]


class Step(NamedTuple):
    """The solution of the programme."""

    moves: np.ndarray  # [S, N, 3] changes
    nodes: np.ndarray  # [S, N, 13] changes
    slacks: np.ndarray  # [S, N, 9]
    missed: np.ndarray  # [S, T + 3]
    path: np.ndarray  # [S, N, 9] multipliers of the path limits
    closing: np.ndarray  # [S, T + 3] multipliers of targets and closing terms
    held: np.ndarray  # [S, N, 3] which moves are kept at a bound
    stepped: np.ndarray  # [S, N] where the largest change of perfusion binds
    slow: bool  # its last digits did not come: a step, but no proof of an optimum
    iterations: int


@dataclass(frozen=True, slots=True, eq=False)
class Pattern:
    """Where the elements of one size of programme stand."""

    n: int  # variables
    p: Any
    p_at: np.ndarray
    a: Any
    a_at: np.ndarray
    g: Any
    g_at: np.ndarray


@cache
def pattern(scenarios: int, stages: int, closing: int, shared: int) -> Pattern:
    """Sparsity of P (upper part), A and G, with the order in which `_fill` writes their elements."""
    s, n, t = scenarios, stages, closing
    width = n * BLOCK + t
    total = s * width + (N_MOVE * shared if s > 1 else 0)
    start = np.arange(s)[:, None] * width + np.arange(n) * BLOCK  # [s, n]
    u = start[..., None] + np.arange(N_MOVE)
    x = start[..., None] + N_MOVE + np.arange(N_X)
    sigma = start + N_MOVE + N_X
    slack = start[..., None] + N_MOVE + N_X + 1 + np.arange(N_PATH)
    missed = np.arange(s)[:, None] * width + n * BLOCK + np.arange(t)
    common = s * width + np.arange(N_MOVE * shared).reshape(shared, N_MOVE)
    return Pattern(
        total, *_matrix(_hessian_entries(u, x, slack), (total, total)),
        *_matrix(_equation_entries(u, x, sigma, common if s > 1 else common[:0]), (0, total)),
        *_matrix(_limit_entries(u, x, sigma, slack, missed), (0, total)),
    )  # fmt: skip


Entries = list[tuple[np.ndarray, np.ndarray]]


def _hessian_entries(u: np.ndarray, x: np.ndarray, slack: np.ndarray) -> Entries:
    variables = np.concatenate([u[:, :-1], x[:, :-1], u[:, 1:]], axis=2)  # of the stages from the second on
    i, j = _CORNER
    k, m = np.triu_indices(N_MOVE)
    return [(variables[..., i], variables[..., j]), (u[..., k], u[..., m]), (slack, slack)]


def _corner() -> tuple[np.ndarray, np.ndarray]:
    """Upper part of a stage's quadratic form without its two diagonal blocks of moves, which neighbours share."""
    i, j = np.triu_indices(N_STAGE)
    own = (j < N_MOVE) | (i >= N_MOVE + N_X)
    return i[~own], j[~own]


_CORNER = _corner()


def _equation_entries(u: np.ndarray, x: np.ndarray, sigma: np.ndarray, common: np.ndarray) -> Entries:
    s, n = sigma.shape
    rows = np.arange(s * n * N_X).reshape(s, n, N_X)
    spent = s * n * N_X + np.arange(s * n).reshape(s, n)
    entries: Entries = [
        (rows, x),
        (*np.broadcast_arrays(rows[:, 1:, :, None], x[:, :-1, None, :]),),  # pyright: ignore[reportAssignmentType]
        (*np.broadcast_arrays(rows[..., None], u[:, :, None, :]),),  # pyright: ignore[reportAssignmentType]
        (spent, sigma),
        (spent[:, 1:], sigma[:, :-1]),
        (spent, u[..., 0]),
    ]
    r = len(common)
    tied = s * n * (N_X + 1) + np.arange(s * r * N_MOVE).reshape(s, r, N_MOVE)
    return [*entries, (tied, u[:, :r]), (tied, np.broadcast_to(common, tied.shape))]


def _limit_entries(u: np.ndarray, x: np.ndarray, sigma: np.ndarray, slack: np.ndarray, missed: np.ndarray) -> Entries:
    s, n = sigma.shape
    t = missed.shape[1]
    path = np.arange(s * n * N_PATH).reshape(s, n, N_PATH)
    step = path.size + np.arange(s * n).reshape(s, n)
    closing = path.size + step.size + np.arange(s * t).reshape(s, t)
    budget = closing[:, t - N_CLOSING]
    return [
        (*np.broadcast_arrays(path[..., None], x[:, :, None, :]),),  # pyright: ignore[reportReturnType]
        (path, slack),
        (step, u[..., 0]),
        (step[:, 1:], u[:, :-1, 0]),
        (*np.broadcast_arrays(closing[..., None], x[:, -1, None, :]),),  # pyright: ignore[reportReturnType]
        (budget, sigma[:, -1]),
        (closing, missed),
    ]


def _matrix(entries: Entries, shape: tuple[int, int]) -> tuple[Any, np.ndarray]:
    """A CSC matrix of these elements and the places of their values in its data."""
    rows, cols = (np.concatenate([e[i].ravel() for e in entries]) for i in (0, 1))
    height = shape[0] or int(rows.max()) + 1
    m = sp.csc_matrix((np.arange(1.0, rows.size + 1.0), (rows, cols)), shape=(height, shape[1]))
    if m.nnz != rows.size:
        raise ValueError("an element is written twice")
    return m, m.data.astype(int) - 1


def _written(at: np.ndarray, values: list[np.ndarray]) -> np.ndarray:
    """The data of a matrix from its elements in the order of its entries."""
    return np.concatenate([v.ravel() for v in values])[at]


class _Kept(NamedTuple):
    """The rows and columns of a matrix that are kept, and which of its data they are."""

    matrix: Any
    places: np.ndarray

    def filled(self, data: np.ndarray) -> Any:
        self.matrix.data[:] = data[self.places]
        return self.matrix


def _kept(m: Any, rows: np.ndarray, columns: np.ndarray) -> _Kept:
    chosen = rows[m.indices] & np.repeat(columns, np.diff(m.indptr))
    place = np.cumsum(rows) - 1
    counts = np.concatenate([[0], np.cumsum(chosen)])[m.indptr]
    starts = np.concatenate([[0], np.diff(counts)[columns].cumsum()])
    (places,) = chosen.nonzero()
    shape = (int(rows.sum()), int(columns.sum()))
    return _Kept(sp.csc_matrix((np.zeros(places.size), place[m.indices[places]], starts), shape=shape), places)


Workspace = dict[bytes, Any]
"""Solvers that were set up within one solve, by what is kept of the programme."""


def held_moves(d: Data, moves: np.ndarray, pressed: np.ndarray) -> np.ndarray:
    """Which moves stay at a bound of theirs, by its multiplier; the bound of the step's length is none."""
    return (pressed > HELD) & (np.abs(moves) < 0.999 * d.most) | (d.high <= d.low)


def solve_quadratic(d: Data, shared: int, exact: bool = True, workspace: Workspace | None = None) -> Step | str:
    """The step, or the solver's word for why there is none."""
    s, n = d.beyond.shape[:2]
    t = d.closing.shape[1]
    shared = shared if s > 1 else 0
    pat = pattern(s, n, t, shared)
    m = N_MOVE + N_X
    ones = np.ones
    corner = d.hessians[:, 1:, _CORNER[0], _CORNER[1]]
    moves = d.hessians[:, :, m:, m:].copy()
    moves[:, :-1] += d.hessians[:, 1:, :N_MOVE, :N_MOVE]
    i, j = np.triu_indices(N_MOVE)
    p = _written(pat.p_at, [corner, moves[..., i, j], 2.0 * d.slack_square])
    a = _written(pat.a_at, [
        ones((s, n, N_X)), -d.by[:, 1:, :, :N_X], -d.by[..., N_X:], ones((s, n)), -ones((s, n - 1)), np.full((s, n), -d.volume),
        ones((s, shared, N_MOVE)), -ones((s, shared, N_MOVE)),
    ])  # fmt: skip
    g = _written(pat.g_at, [
        d.beyond_by, -ones((s, n, N_PATH)), ones((s, n)), -ones((s, n - 1)), d.closing_by, ones(s), -ones((s, t)),
    ])  # fmt: skip
    c = np.zeros((s, n * BLOCK + t))
    by_stage = c[:, : n * BLOCK].reshape(s, n, BLOCK)
    by_stage[..., :N_MOVE] = d.gradients[..., m:]
    by_stage[:, :-1, :m] += d.gradients[:, 1:, :m]
    by_stage[..., m + 1 :] = d.slack
    c[:, n * BLOCK :] = d.missed
    common = np.zeros(pat.n - c.size)
    perfusion = d.moves[..., 0]
    b = np.concatenate([d.gap.ravel(), (d.volume * perfusion).ravel(), np.zeros(s * shared * N_MOVE)])
    previous = np.concatenate([np.full((s, 1), d.before[0]), perfusion[:, :-1]], axis=1)
    change = perfusion - previous
    infinite = np.full(s * n * N_PATH, -np.inf), np.full(s * t, -np.inf)
    closing = -d.closing
    closing[:, t - N_CLOSING] += d.left
    low = np.concatenate([infinite[0], (-d.step - change).ravel(), infinite[1]])
    high = np.concatenate([-d.beyond.ravel(), (d.step - change).ravel(), closing.ravel()])
    x_low, x_high = np.full(c.shape, -np.inf), np.full(c.shape, np.inf)
    stage_low = x_low[:, : n * BLOCK].reshape(s, n, BLOCK)
    stage_low[..., :N_MOVE] = np.clip(d.low - d.moves, -d.most, 0.0)
    x_high[:, : n * BLOCK].reshape(s, n, BLOCK)[..., :N_MOVE] = np.clip(d.high - d.moves, 0.0, d.most)
    stage_low[..., m + 1 :] = 0.0
    x_low[:, n * BLOCK :] = 0.0
    cost = np.concatenate([c.ravel(), common])
    x_low = np.concatenate([x_low.ravel(), np.full(common.size, -np.inf)])
    x_high = np.concatenate([x_high.ravel(), np.full(common.size, np.inf)])
    rows = d.beyond > (-NEARBY if exact else -FAR)
    phase = b"near" if exact else b"far"
    if workspace is not None:  # rows once looked at stay: what is kept of the programme changes less
        rows |= workspace.get(phase, False)
    while True:
        columns, limits = np.ones(pat.n, bool), np.ones(pat.g.shape[0], bool)
        stage_kept = columns[: c.size].reshape(s, -1)[:, : n * BLOCK].reshape(s, n, BLOCK)
        stage_kept[..., m + 1 :] = rows
        stage_kept[..., :N_MOVE] = d.high.max(axis=0) > d.low.min(axis=0)
        limits[: rows.size] = rows.ravel()
        if shared:
            columns[c.size :] = np.tile(stage_kept[0, 0, :N_MOVE], shared)
        equations = np.ones(pat.a.shape[0], bool)
        equations[s * n * (N_X + 1) :] = np.tile(stage_kept[0, 0, :N_MOVE], s * shared)
        key = columns.tobytes() + limits.tobytes()
        known = workspace is not None and key in workspace
        if workspace is not None and known:
            solver, *kept = workspace[key]
        else:
            kept = [_kept(pat.p, columns, columns), _kept(pat.a, equations, columns), _kept(pat.g, limits, columns)]
            solver = piqp.SparseSolver()
            solver.settings.kkt_solver = piqp.sparse_multistage
            solver.settings.eps_abs = TOLERANCE
            solver.settings.check_duality_gap = False
            solver.settings.max_iter = 30
        solver.settings.eps_rel = 0.0 if exact else 1e-8
        (solver.update if known else solver.setup)(
            kept[0].filled(p), cost[columns], kept[1].filled(a), b[equations], kept[2].filled(g),
            low[limits], high[limits], x_low[columns], x_high[columns],
        )  # fmt: skip
        if workspace is not None:
            workspace[key] = (solver, *kept)
        status = solver.solve()
        r = solver.result
        slow = status == piqp.PIQP_MAX_ITER_REACHED and r.info.primal_res <= SLOPPY and np.isfinite(r.x).all()
        if status != piqp.PIQP_SOLVED and not slow:
            return str(getattr(status, "name", status)).removeprefix("PIQP_").lower()
        x, pressed, z, both = np.zeros(pat.n), np.zeros(pat.n), np.zeros(pat.g.shape[0]), np.zeros(pat.g.shape[0])
        x[columns], pressed[columns], z[limits] = r.x, r.z_bl + r.z_bu, r.z_u
        both[limits] = r.z_l + r.z_u
        own = x[: c.size].reshape(s, -1)
        stage = own[:, : n * BLOCK].reshape(s, n, BLOCK)
        left_out = (d.beyond + (d.beyond_by @ stage[..., N_MOVE:m, None])[..., 0] > 0.0) & ~rows
        if not left_out.any():
            break
        rows |= left_out
    if workspace is not None:
        workspace[phase] = rows
    pressed = pressed[: c.size].reshape(s, -1)[:, : n * BLOCK].reshape(s, n, BLOCK)[..., :N_MOVE]
    stepped = both[s * n * N_PATH : s * n * (N_PATH + 1)].reshape(s, n) > HELD
    held = held_moves(d, stage[..., :N_MOVE], pressed)
    return Step(
        stage[..., :N_MOVE], stage[..., N_MOVE:m], stage[..., m + 1 :], own[:, n * BLOCK :],
        z[: s * n * N_PATH].reshape(s, n, N_PATH), z[s * n * (N_PATH + 1) :].reshape(s, t),
        held, stepped, bool(slow), int(r.info.iter),
    )  # fmt: skip
