"""What the SQP is given and what it gives, as values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from controllers.mpc.quadratic import Step
from controllers.mpc.settings import Prices
from controllers.mpc.solver import SolveStatus


@dataclass(frozen=True, slots=True, eq=False)
class Problem:
    """What is to be solved: S scenarios of N stages. Times [d], medium [vessel volumes]."""

    x0: np.ndarray  # [S, 13] states
    theta: np.ndarray  # [S, 53]
    weights: np.ndarray  # [S], their sum is 1
    kinds: tuple[tuple[str, str], ...]  # targets: (cqa, sense)
    values: np.ndarray  # [S, T] with their margins
    prices: Prices
    limits: np.ndarray  # as `objective.limit_vector` gives them
    before: np.ndarray  # [3] moves in force
    low: np.ndarray  # [N, 3] bounds of the moves
    high: np.ndarray  # [N, 3]
    left: float  # medium left
    length: float  # of a stage
    shared: int = 0  # moves that all scenarios have in common; with one scenario it says nothing
    tightened: np.ndarray | None = None  # [S, N, 9] back-offs of the path limits, in units of `objective.PATH_SCALE`

    @property
    def scenarios(self) -> int:
        return len(self.x0)

    @property
    def stages(self) -> int:
        return len(self.low)


class Iterate(NamedTuple):
    """Moves, interior points and ends of every stage, in physical units."""

    moves: np.ndarray  # [S, N, 3] perfusion, feed [VVD], cytokine_dose [IU/mL/d]
    middles: np.ndarray  # [S, N, 13]
    ends: np.ndarray  # [S, N, 13]


@dataclass(frozen=True, slots=True, eq=False)
class Found:
    """What the solver found: only "solved" may be used; where one iteration was asked for, as a step and not as an optimum."""

    status: SolveStatus
    detail: str
    cost: float  # weighted over the scenarios
    at: Iterate | None
    iterations: int
    memory: Step | None = None  # its last step: whose multipliers a next solve may begin with


def carried(memory: Step | None, stages: int, moves: int = 0) -> Step | None:
    """The multipliers of a solved problem for one that begins `moves` later and has so many stages."""
    if memory is None:
        return None
    at = np.minimum(np.arange(stages) + moves, memory.moves.shape[1] - 1)
    named = ("moves", "nodes", "slacks", "path", "held", "stepped")
    return memory._replace(**{name: getattr(memory, name)[:, at] for name in named})
