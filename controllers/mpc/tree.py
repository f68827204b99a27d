"""One plan for several futures: scenarios of a belief, their first moves in common.

`solve_scenarios` takes any scenarios; `belief_scenarios` makes them from a belief. One scenario at the belief's mean is
exactly the nominal problem. How much of a target to hold back, and which share of scenarios may miss it, is the caller's
business: every scenario carries its own targets and back-offs.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from controllers.mpc.objective import N_PATH, limit_vector
from controllers.mpc.sqp import Found, Iterate, Late, Problem, Step, carried, priced, solve_sqp
from controllers.mpc.task import STEP, Course, Task, move_bounds, rollout, strict_targets
from twin.bioreactor import Control, State
from twin.estimation.belief import split
from twin.process import Target
from twin.transition import advance_many, flat

REACH = float(np.sqrt(3.0))
"""Standard deviations of the outer points of a three-point Gauss-Hermite rule; their weight is 1/6, the middle's 2/3."""

LEVELS = ((-REACH, 1.0 / 6.0), (0.0, 2.0 / 3.0), (REACH, 1.0 / 6.0))


@dataclass(frozen=True, slots=True, eq=False)
class Scenario:
    """One future."""

    x0: np.ndarray  # [13] state
    theta: np.ndarray  # [53] as `twin.transition.flat` gives it
    weight: float
    targets: tuple[Target, ...]  # of one kind and order over all scenarios, values with their margins
    tightened: np.ndarray | None = None  # [N, 9] back-offs of the path limits, in units of `objective.PATH_SCALE`


def nominal(task: Task, h: int) -> tuple[Scenario, ...]:
    """The belief's mean alone, with the targets, margins and back-offs of a harvest `h` moves ahead."""
    back, chance = None, task.settings.chance
    if task.foreseen is not None and chance is not None:
        hard = task.process.limits.lactate_hard * (1.0 - task.settings.hard_reserve)
        back = task.foreseen.back_offs(hard, h, chance)
    return (Scenario(task.x0, flat(task.theta), 1.0, strict_targets(task, h), back),)


def solve_scenarios(
    task: Task,
    h: int,
    scenarios: Sequence[Scenario],
    start: Course,
    *,
    robust: int = 1,
    max_iter: int | None = None,
    late: Late | None = None,
    once: bool = False,
    warm: bool = False,
    memory: Step | None = None,
) -> Found:
    """The moves that serve all scenarios best by weight, the first `robust` of them in common.

    Args:
        task: prices, limits, bounds and medium left.
        h: moves until harvest.
        scenarios: at least one; their weights are divided by their sum.
        start: the course of the first scenario to begin from; the others begin from their own course under its moves.
        robust: first moves that no scenario may choose for itself; `h`: all of them.
        max_iter: iterations allowed; None: the settings'.
        late: see `solve_sqp`.
        once: one real-time iteration.
        warm: `start` is near a solution.
        memory: `Found.memory` of the same scenarios, another harvest.

    Returns moves and states of every scenario, in their order; anything but "solved" may not be used.
    Raises ValueError as `problem_of` does.
    """
    problem = problem_of(task, h, scenarios, start, robust)
    begin = _courses(problem, start)
    return solve_sqp(problem, begin, max_iter or task.settings.sqp_iter, late, once, warm, carried(memory, h))


def price(task: Task, h: int, scenarios: Sequence[Scenario], moves: np.ndarray) -> float:
    """What moves [h, 3], or of every scenario its own [S, h, 3], cost when they are simulated: no equation is open."""
    problem = problem_of(task, h, scenarios, rollout(task, None, h, h), h)
    moves = np.broadcast_to(moves, (problem.scenarios, h, moves.shape[-1]))
    return priced(problem, _simulated(problem, moves))


def problem_of(task: Task, h: int, scenarios: Sequence[Scenario], start: Course, robust: int) -> Problem:
    """The problem of `solve_scenarios`, with the ceilings of moves along `start`.

    Raises ValueError without scenarios, or where their targets differ in kind or a weight is not positive.
    """
    if not scenarios or not all(0.0 < s.weight < np.inf for s in scenarios):
        raise ValueError("scenarios: at least one is needed, each with a positive weight")
    kinds = [tuple((t.cqa, t.sense) for t in s.targets) for s in scenarios]
    if any(k != kinds[0] for k in kinds):
        raise ValueError("scenarios: targets must be of the same kinds in the same order")
    weights = np.array([s.weight for s in scenarios])
    back = [s.tightened for s in scenarios]
    low, high = move_bounds(task, start)
    return Problem(
        x0=np.stack([s.x0 for s in scenarios]), theta=np.stack([s.theta for s in scenarios]), weights=weights / weights.sum(),
        kinds=kinds[0], values=np.array([[t.value for t in s.targets] for s in scenarios]), prices=task.settings.prices,
        limits=limit_vector(task.process.limits, task.settings.hard_reserve), before=task.before, low=low, high=high,
        left=task.budget, length=STEP, shared=min(robust, h),
        tightened=None if all(b is None for b in back) else np.stack([np.zeros((h, N_PATH)) if b is None else b for b in back]),
    )  # fmt: skip


def _courses(problem: Problem, start: Course) -> Iterate:
    """The first scenario on its course, the others simulated under its moves."""
    first = Iterate(start.moves[None], start.middles[None], start.ends[None])
    s = problem.scenarios
    if s == 1:
        return first
    others = _simulated(problem, np.tile(start.moves, (s, 1, 1)))
    return Iterate(others.moves, *(np.concatenate([a, b[1:]]) for a, b in zip(first[1:], others[1:], strict=True)))


def _simulated(problem: Problem, moves: np.ndarray) -> Iterate:
    """Every scenario under its own moves [S, N, 3]."""
    advance, theta, x = advance_many(), np.ascontiguousarray(problem.theta.T), problem.x0.T
    middles, ends = [], []
    for k in range(problem.stages):
        perfusion, feed, dose = moves[:, k].T
        u = np.ascontiguousarray(Control(perfusion, feed, np.zeros_like(feed), dose))
        middles.append(advance(x, u, theta, problem.length / 3.0))
        ends.append(x := advance(middles[-1], u, theta, problem.length * 2.0 / 3.0))
    return Iterate(moves, *(np.stack(rows).transpose(2, 0, 1) for rows in (middles, ends)))


def belief_scenarios(task: Task, h: int, n: int) -> tuple[Scenario, ...]:
    """`n` scenarios (1, 9 or 27) of the belief, states and learnt parameters: 3^d Gauss-Hermite points.

    The d directions are those in which the belief's uncertainty moves most what the recipe would come to on its latest day: ln
    viable cells, lactate (per 5 mM) and viability (per .05). They are the same for every harvest that a decision looks at, so
    that harvests can be compared. Targets carry no margin for what the scenarios spread.
    """
    d = {1: 0, 9: 2, 27: 3}[n]
    if d == 0:
        return nominal(task, h)
    layout, mean = task.layout, task.belief.mean
    k = layout.error_start
    values, vectors = np.linalg.eigh(task.belief.cov[:k, :k])
    root = vectors * np.sqrt(np.maximum(values, 0.0))
    course = rollout(task, None, task.latest, task.latest)
    small = 0.1
    states, thetas = _points(task, mean, np.concatenate([small * root.T, -small * root.T]))
    advance, x = advance_many(), states.T
    theta = np.ascontiguousarray(thetas.T)
    for row in course.moves:
        x = advance(x, np.array(Control(row[0], row[1], 0.0, row[2])), theta, STEP)
    end = State(*x)
    outcome = np.stack([np.log(end.viable_cells), end.lactate / 5.0, end.viability / 0.05])
    effect = (outcome[:, :k] - outcome[:, k:]) / (2.0 * small)  # [3, k]
    directions = np.linalg.svd(effect, full_matrices=False)[2][:d]
    directions = directions * np.sign(directions[np.arange(d), np.abs(directions).argmax(axis=1)])[:, None]
    grid = list(itertools.product(LEVELS, repeat=d))
    grid.sort(key=lambda p: sum(abs(a) for a, _ in p))  # the mean first
    offsets = np.array([[a for a, _ in p] for p in grid]) @ directions @ root.T
    states, thetas = _points(task, mean, offsets)
    targets = strict_targets(task, h, spread=False)
    weights = [float(np.prod([w for _, w in p])) for p in grid]
    return tuple(Scenario(x0, th, w, targets) for x0, th, w in zip(states, thetas, weights, strict=True))


def _points(task: Task, mean: np.ndarray, offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """States [m, 13] and theta [m, 53] at the belief's mean plus offsets [m, k] in ln states and parameters."""
    states, thetas = [], []
    for row in offsets:
        at = mean.copy()
        at[: row.size] += row
        x, cell, _ = split(at, task.layout, task.theta.cell)
        states.append([float(v) for v in x])
        thetas.append(flat(task.theta._replace(cell=cell)))
    return np.array(states), np.stack(thetas)
