"""The nominal MPC as a policy: what to solve, from where, and until when.

Harvest time as a decision. The harvest is a whole number h of moves ahead. For a given h the programme is smooth, and
stages beyond h have length 0; its optimum J(h) + price_of_a_day * h is compared over h. Leaving the final time free inside
the programme would scale every stage, break the 6 h grid that the pumps follow and add a non-convex variable; reading the
harvest off a fixed 14-day plan would let the plan spend medium, or spare it, for days that never come. J falls and then
rises with h, so a local descent from the last plan's harvest needs one to three solves a decision. h = 0, harvest now, is
priced by the same targets at the belief itself.

The dose is aimed at with a margin: `confidence` standard deviations of ln cells, from the belief and from the days still to
come. So the plan reaches for more while little is known, and releases the reserve as the donor shows itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from controllers.mpc.objective import attribute
from controllers.mpc.settings import MpcSettings
from controllers.mpc.solver import Solution, compiled, size_for, solve
from controllers.mpc.task import (
    STEP,
    Course,
    Task,
    bounds,
    ceilings,
    cost_now,
    make_task,
    parameters,
    rollout,
    starting_point,
    strict_targets,
)
from controllers.plan import Plan, Situation
from controllers.policies import limited
from twin.bioreactor import Control, State
from twin.process import Process
from twin.transition import advance_many, flat

FAR = 12
FAR_EVERY = 4
"""With the harvest more than FAR moves ahead, other harvest steps are looked at every FAR_EVERY moves only."""

STRIDES = (8, 2, 1)
"""Strides of the search for a harvest step when there is no earlier plan to start from."""

PATIENCE = 3
"""Harvest steps tried before the search gives up where none can be solved."""


class Outcome(NamedTuple):
    """The optimum for a harvest `moves` ahead."""

    moves: int
    total: float  # cost with the price of time
    course: Course
    solution: Solution


@dataclass(frozen=True, slots=True)
class Mpc:
    """Nominal MPC over perfusion, feed and cytokine dosing; see the module. Pure: the previous plan is its only memory."""

    process: Process
    settings: MpcSettings
    name: str = "mpc"

    def __call__(self, situation: Situation, previous: Plan | None) -> Plan:
        task = make_task(situation, self.process, self.settings)
        if task.latest < 1:
            return self._harvest_now(task, "the latest day of the recipe")
        best, words = search(task, previous)
        if best is None:
            return Plan(task.now, STEP, (), (), "failed", float("inf"), None, self.name, words)
        if cost_now(task) <= best.total:
            return self._harvest_now(task, "waiting costs more than it brings")
        return self._plan(task, best)

    def _harvest_now(self, task: Task, why: str) -> Plan:
        """Harvest; until the vessel is emptied, perfuse as much as one step allows: a dense culture does not keep."""
        top = ceilings(task, task.x0[None, :])[0]
        up = min(top[0], task.before[0] + self.process.limits.perfusion_step)
        wanted = Control(up, 0.0, 0.0, min(top[2], self.process.recipe.cytokine_dose))
        u = limited(wanted, float(task.before[0]), self.process.limits)
        after = advance_many()(task.x0[:, None], np.array(u), flat(task.theta)[:, None], STEP)[:, 0]
        states = (State(*task.x0.tolist()), State(*after.tolist()))
        detail = f"harvest now: {why}; {_expected(states[0])}"
        return Plan(task.now, STEP, (u,), states, "solved", cost_now(task), task.now, self.name, detail)

    def _plan(self, task: Task, best: Outcome) -> Plan:
        limits = self.process.limits
        moves = np.clip(best.course.moves, 0.0, (limits.perfusion_max, limits.feed_max, limits.cytokine_dose_max))
        controls = tuple(Control(float(p), float(f), 0.0, float(d)) for p, f, d in moves)
        states = tuple(State(*row.tolist()) for row in np.vstack([task.x0, np.maximum(best.course.ends, 0.0)]))
        harvest_at = task.now + best.moves * STEP
        medium = float(moves[:, 0].sum()) * STEP
        detail = (
            f"perfusion {controls[0].perfusion:.2f} VVD, dosing {controls[0].cytokine_dose:.0f} IU/mL/d; harvest on day "
            f"{harvest_at:.2f}: {_expected(states[-1])}, {medium:.1f} more volumes of medium; {best.solution.detail}"
        )
        return Plan(task.now, STEP, controls, states, "solved", best.total, harvest_at, self.name, detail)


def search(task: Task, previous: Plan | None) -> tuple[Outcome | None, str]:
    """The best harvest step by local descent, and the solver's words where no step could be solved."""
    tried: dict[int, Outcome | None] = {}
    words = ""
    moves = remaining_moves(task, previous)
    start, strides, looks = task.latest, STRIDES, task.latest
    if moves is not None and previous is not None and previous.harvest_at is not None:
        start = int(np.clip(round((previous.harvest_at - task.now) / STEP), 1, task.latest))
        strides, looks = (1,), task.settings.search
    tried[start], words = optimum(task, start, moves)
    best = tried[start]
    if strides == (1,) and best is not None and start > FAR and round(task.now / STEP) % FAR_EVERY:
        return best, words
    for stride in strides:
        for direction in (-1, 1):
            for _ in range(looks):
                if best is None and len(tried) >= PATIENCE:
                    return None, words
                h = (best.moves if best else start) + direction * stride
                if not 1 <= h <= task.latest or h in tried:
                    break
                tried[h], words = optimum(task, h, best.course.moves if best else moves)
                other = tried[h]
                if other is None or (best is not None and other.total >= best.total):
                    break
                best = other
    return best, words


def remaining_moves(task: Task, previous: Plan | None) -> np.ndarray | None:
    """What is left of the last plan [k, 3]; None where there is none, it did not solve, or it is used up."""
    if previous is None or previous.status not in ("solved", "shifted"):
        return None
    done = round((task.now - previous.issued_at) / STEP)
    rest = previous.controls[done:] if done >= 0 else ()
    return np.array([[u.perfusion, u.feed, u.cytokine_dose] for u in rest]) if rest else None


def optimum(task: Task, h: int, moves: np.ndarray | None) -> tuple[Outcome | None, str]:
    """The optimum for a harvest `h` moves ahead, by a ladder of starts, and the solver's words.

    From the course under `moves` (a neighbour's or the last plan's), from the recipe's course, then patiently from a
    middling constant one. A failed solve leaves nothing behind.
    """
    n, limits = size_for(h), task.process.limits
    targets = strict_targets(task, h)
    kinds = tuple((t.cqa, t.sense) for t in targets)
    p = parameters(task, n, h, targets)
    middling = np.array([[min(0.5, limits.perfusion_max), 0.0, task.process.recipe.cytokine_dose]])
    words = ""
    for rung, start in (("near", moves), ("recipe", None), ("patient", middling)):
        if rung == "near" and start is None:
            continue
        course = rollout(task, start, h, n)
        low, high = bounds(task, course)
        program = compiled(n, kinds, task.settings.max_iter, rung == "patient")
        solution = solve(program, starting_point(task, course, h, targets), p, low, high)
        words = solution.detail
        if solution.status == "solved":
            found, middles, ends, _, _ = solution.blocks(n)
            total = solution.cost + task.settings.prices.day * h * STEP
            return Outcome(h, total, Course(found[:h], middles[:h], ends[:h]), solution), words
    return None, words


def _expected(x: State) -> str:
    return f"{attribute('viable_cells', x):.1f}e9 viable cells, viability {attribute('viability', x):.2f}"
