"""One decision as data: where the batch stands, what is asked of the harvest, what the pumps may do, where to start from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from controllers.mpc.chance import Foreseen, foreseen
from controllers.mpc.objective import (
    LOGARITHMIC,
    N_CLOSING,
    N_PATH,
    Economy,
    closing_terms,
    limit_vector,
    path_violations,
    target_shortfall,
)
from controllers.mpc.settings import MpcSettings
from controllers.mpc.solver import SIZES
from controllers.mpc.transcription import DEGREE, MOVE_SCALE, N_MOVE, STAGE, pack
from controllers.plan import Situation
from controllers.policies import limited
from controllers.recipes import recipe_schedule
from twin.bioreactor import Control, State, Theta, physiology
from twin.estimation.belief import N_STATE, Belief, Layout, split
from twin.process import Process, Target
from twin.transition import advance_many, flat

STEP = 0.25
"""Length of a move [d]."""

FIRST_POINT = 1.0 / 3.0
"""Where the first of two Radau points lies in a stage."""

MARGIN_MAX = 0.35
"""Largest margin of the dose [ln]."""


class Course(NamedTuple):
    """A simulated or planned course over N moves."""

    moves: np.ndarray  # [N, 3] perfusion, feed [VVD], cytokine_dose [IU/mL/d]
    middles: np.ndarray  # [N, 13] states at the first Radau point
    ends: np.ndarray  # [N, 13] states at the end of each move


@dataclass(frozen=True, slots=True, eq=False)
class Task:
    """Everything about one decision that does not depend on the harvest step."""

    process: Process
    settings: MpcSettings
    now: float  # [d]
    x0: np.ndarray  # [13] the belief's mean
    theta: Theta  # with the learnt donor parameters
    variance: float  # of ln viable density, by the belief
    before: np.ndarray  # [3] moves in force
    latest: int  # moves until the latest harvest
    budget: float  # medium left to plan with [vessel volumes]
    targets: tuple[Target, ...]
    belief: Belief
    layout: Layout
    foreseen: Foreseen | None = None  # with `MpcSettings.chance`: what the belief spreads along the recipe's course


def make_task(s: Situation, process: Process, settings: MpcSettings) -> Task:
    """The task at `s.now`: the process's own targets, and the recipe's dose where it names none for viable cells."""
    x, cell, _ = split(s.belief.mean, s.layout, s.process.theta.cell)
    viable = s.layout.index("viable")
    latest = process.recipe.harvest_latest if settings.harvest_latest is None else settings.harvest_latest
    left = process.limits.medium_budget * (1.0 - settings.budget_reserve) - s.medium_used
    task = Task(
        process=process,
        settings=settings,
        now=s.now,
        x0=np.array([float(v) for v in x]),
        theta=s.process.theta._replace(cell=cell),
        variance=max(0.0, float(s.belief.cov[viable, viable])),
        before=np.array([s.applied.perfusion, s.applied.feed, s.applied.cytokine_dose], dtype=float),
        latest=int(np.floor(min((latest - s.now) / STEP + 1e-6, SIZES[-1]))),
        budget=float(np.clip(left, -1e3, 1e6)),
        targets=process.aims,
        belief=s.belief,
        layout=s.layout,
    )
    if settings.chance is None or task.latest < 1:
        return task
    moves = rollout(task, None, task.latest, task.latest).moves
    return replace(task, foreseen=foreseen(s.belief, s.layout, process, task.theta, moves, STEP))


def strict_targets(task: Task, h: int, spread: bool = True) -> tuple[Target, ...]:
    """The targets with their margins for a harvest `h` moves ahead; without `spread`, none for what the belief spreads.

    With `MpcSettings.chance` they are those of `controllers.mpc.chance`.
    """
    s = task.settings
    sd = dose_spread(task, h, task.variance if spread else 0.0)
    ratio, gap = float(np.exp(min(s.confidence * sd, MARGIN_MAX))), s.fraction_margin

    def strict(t: Target) -> float:
        if spread and task.foreseen is not None and s.chance is not None:
            return task.foreseen.strict(t, h, s.chance, s.sd_floor)
        if t.cqa in ("viable_cells", "viable_density"):
            return t.value * ratio if t.sense == "at_least" else t.value / ratio
        if t.cqa in LOGARITHMIC:
            return t.value
        return t.value + gap if t.sense == "at_least" else t.value - gap

    return tuple(Target(t.cqa, t.sense, strict(t), t.unit) for t in task.targets)


def dose_spread(task: Task, h: int, believed: float | None = None) -> float:
    """Standard deviation of ln viable cells at a harvest `h` moves ahead; `believed`: variance of the belief, None: its own."""
    s, now = task.settings, task.variance if believed is None else believed
    return float(np.sqrt(now + s.sd_floor**2 + (s.growth_sd * h * STEP) ** 2))


def cost_now(task: Task, x0: np.ndarray | None = None, targets: Sequence[Target] | None = None) -> float:
    """What harvesting the state `x0` now costs, by the targets it misses; None: the belief's mean, its targets with margins."""
    prices, x = task.settings.prices, State(*(task.x0 if x0 is None else x0))
    economy = Economy(prices, list(limit_vector(task.process.limits, task.settings.hard_reserve)))
    total = sum(float(price) * max(0.0, float(excess)) for excess, price in closing_terms(x, 0.0, task.budget, economy))
    for t in strict_targets(task, 0) if targets is None else targets:
        shortfall, logarithmic = target_shortfall(t.cqa, t.sense, x, t.value)
        total += (prices.target_ln if logarithmic else prices.target) * max(0.0, float(shortfall))
    return total


def rollout(task: Task, moves: np.ndarray | None, h: int, n: int) -> Course:
    """The course under `moves`, cut or continued to `n` (None: under the recipe); states stand still from move `h` on."""
    advance, limits, schedule = advance_many(), task.process.limits, recipe_schedule(task.process.recipe)
    parameters, x = flat(task.theta)[:, None], task.x0[:, None]
    done, middles, ends = np.zeros((n, N_MOVE)), np.zeros((n, N_STATE)), np.zeros((n, N_STATE))
    before = float(task.before[0])
    for k in range(n):
        if moves is None:
            u = Control(*(float(v) for v in schedule(task.now + k * STEP, State(*x[:, 0]))))
        else:
            row = moves[min(k, len(moves) - 1)]
            u = Control(row[0], row[1], 0.0, row[2])
        u = limited(u, before, limits)
        before = u.perfusion
        middle = x
        if k < h:
            middle = advance(x, np.array(u), parameters, STEP * FIRST_POINT)
            x = advance(middle, np.array(u), parameters, STEP * (1.0 - FIRST_POINT))
        done[k], middles[k], ends[k] = (u.perfusion, u.feed, u.cytokine_dose), middle[:, 0], x[:, 0]
    return Course(done, middles, ends)


def largest_rates(process: Process) -> np.ndarray:
    """The largest rates that the recipe can ask: perfusion, feed [VVD], cytokine_dose [IU/mL/d]."""
    numbers = process.recipe.numbers
    perfusion = max((*numbers.get("perfusion", ()), *numbers.get("perfusion_max", ())), default=0.0)
    return np.array([perfusion, process.recipe.feed, process.recipe.cytokine_dose])


def ceilings(task: Task, starts: np.ndarray) -> np.ndarray:
    """Largest moves [N, 3] that pumps, limits and the edge's caps allow from the states `starts` [N, 13] on.

    The recipe's own rate at every step is taken at those states. Where the perfusion in force is above its ceiling it may
    come down at the largest step allowed.
    """
    s, limits, recipe = task.settings, task.process.limits, task.process.recipe
    n, schedule = len(starts), recipe_schedule(recipe)
    top = np.tile(np.array([limits.perfusion_max, limits.feed_max, limits.cytokine_dose_max]), (n, 1))
    if s.k2 is not None:
        now = [schedule(task.now + k * STEP, State(*starts[k])) for k in range(n)]
        own = np.array([[float(u.perfusion), float(u.feed), float(u.cytokine_dose)] for u in now])
        top = np.minimum(top, np.maximum(s.k2 * own, [s.cap_floor, 0.0, 0.0]))
    if s.k1 is not None:
        top = np.minimum(top, s.k1 * largest_rates(task.process))
    reach = task.before[0] - limits.perfusion_step * np.arange(1, n + 1)
    top[:, 0] = np.maximum(top[:, 0], np.minimum(reach, limits.perfusion_max))
    return top


def move_bounds(task: Task, course: Course) -> tuple[np.ndarray, np.ndarray]:
    """Least and largest moves [N, 3] along a course: the floor of dosing, and the ceilings at its states."""
    high = ceilings(task, np.vstack([task.x0, course.ends[:-1]]))
    low = np.zeros_like(high)
    low[:, -1] = np.minimum(high[:, -1], task.settings.dose_floor * task.process.recipe.cytokine_dose)
    return low, high


def bounds(task: Task, course: Course) -> tuple[np.ndarray, np.ndarray]:
    """Hard bounds of the variables: moves between the floor of dosing and their ceilings; the rest by sign."""
    n, missed = len(course.moves), len(task.targets) + N_CLOSING
    low, high = np.zeros((n, STAGE)), np.full((n, STAGE), np.inf)
    least, most = move_bounds(task, course)
    low[:, :N_MOVE], high[:, :N_MOVE] = least / MOVE_SCALE, most / MOVE_SCALE
    low[:, N_MOVE : N_MOVE + DEGREE * N_STATE] = 1e-10
    return np.append(low.ravel(), np.zeros(missed)), np.append(high.ravel(), np.full(missed, np.inf))


def starting_point(task: Task, course: Course, h: int, targets: tuple[Target, ...]) -> np.ndarray:
    """Variables on `course`, with the slacks that make it feasible."""
    economy = Economy(task.settings.prices, list(limit_vector(task.process.limits, task.settings.hard_reserve)))
    ends, last = State(*course.ends.T), State(*course.ends[-1])
    beyond = np.array(path_violations(ends, physiology(ends, task.theta), economy)).reshape(N_PATH, -1).T
    missed = [target_shortfall(t.cqa, t.sense, last, t.value)[0] for t in targets]
    spent = float(course.moves[:h, 0].sum()) * STEP
    missed += [excess for excess, _ in closing_terms(last, spent, task.budget, economy)]
    return pack(course.moves, course.middles, course.ends, np.maximum(beyond, 0.0), np.maximum(missed, 0.0))


def parameters(task: Task, n: int, h: int, targets: tuple[Target, ...]) -> np.ndarray:
    """The parameter vector of the programme of `n` stages, `h` of them with length."""
    lengths = np.where(np.arange(n) < h, STEP, 0.0)
    return np.concatenate([
        task.x0, flat(task.theta), lengths, task.before / MOVE_SCALE, limit_vector(task.process.limits, task.settings.hard_reserve),
        [t.value for t in targets], [task.budget], task.settings.prices,
    ])  # fmt: skip
