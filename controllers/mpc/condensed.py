"""The quadratic programme of one iteration in its moves alone, by a primal-dual interior point in machine code.

Nodes are eliminated along the stages (condensing), slacks row by row, so that what is factorised has a row per move: 48 of 24
stages and two pumps, where `quadratic` has several hundred. Scenarios are factorised one by one, with the moves they share
last, and meet in the Schur complement of these (an arrow). Every limit is looked at, near or far.

The programme over a scenario's moves u, weights already in its numbers:

    min  u'Hu/2 + g'u + sum_r (c_r s_r + q_r s_r^2)    with  v_r + a_r'u <= s_r,  s_r >= 0;  l <= u <= h;  |change| <= step

It begins where slacks and multipliers are central for u = 0 (a step of 0 changes nothing) and takes Mehrotra's predictor and
corrector. `quadratic` solves the same programme with PIQP: where no compiler is found, and where this one does not come to an
end; each is the other's oracle in the tests.
"""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from controllers.mpc.objective import N_CLOSING, N_PATH
from controllers.mpc.quadratic import HELD, SLOPPY, TOLERANCE, Data, Step, held_moves
from controllers.mpc.transcription import N_MOVE
from twin.native.build import address, load
from twin.transition import N_X

MOST = 40
"""Interior-point iterations allowed."""

CENTRE = 0.1, 1e-3
"""Complementarity it begins with [cost]: far from a solution, and near one."""

SOURCE = Path(__file__).with_suffix(".c")


@cache
def _entry() -> Any | None:
    sizes = f"#define MOVES {N_MOVE}\n#define STATES {N_X}\n#define PATHS {N_PATH}\n"
    library = load("celltwin_mpc_condensed", sizes + SOURCE.read_text(encoding="utf-8"), vector=True)
    if library is None:
        return None
    entry = library.condensed
    entry.argtypes = [ctypes.c_void_p] * 16 + [ctypes.c_double] * 6 + [ctypes.c_long] * 6 + [ctypes.c_void_p] * 9
    entry.restype = ctypes.c_long
    return entry


def solve_condensed(d: Data, shared: int, near: bool = True) -> Step | str | None:
    """The step, a word for why there is none, or None where no compiler is found; as `quadratic.solve_quadratic`.

    `near`: the step is thought to be short, which only says where the iterations begin.
    """
    entry = _entry()
    if entry is None:
        return None
    s, n = d.beyond.shape[:2]
    t = d.closing.shape[1]
    given = [np.ascontiguousarray(a, dtype=float) for a in (
        d.hessians, d.gradients, d.by, d.gap, d.moves, d.before, d.low, d.high, d.beyond, d.beyond_by, d.slack, d.slack_square,
        d.closing, d.closing_by, d.missed, d.left,
    )]  # fmt: skip
    shapes = ((s, n, N_MOVE), (s, n, N_X), (s, n, N_PATH), (s, t), (s, n, N_PATH), (s, t), (s, n, N_MOVE), (s, n), (1,))
    out = [np.empty(shape) for shape in shapes]
    code = entry(
        *map(address, given), d.most, d.step, d.volume, CENTRE[near], TOLERANCE, SLOPPY,
        s, n, t, shared, t - N_CLOSING, MOST, *map(address, out),
    )  # fmt: skip
    if code == 2:
        return "no step"
    moves, nodes, slacks, missed, path, closing, pressed, stepped, iterations = out
    return Step(
        moves, nodes, slacks, missed, path, closing, held_moves(d, moves, pressed), stepped > HELD, code == 1, int(iterations[0])
    )  # fmt: skip
