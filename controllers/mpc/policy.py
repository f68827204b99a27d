"""The MPC as a policy: what to solve, from where, and until when.

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

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from controllers.mpc.objective import attribute
from controllers.mpc.settings import MpcSettings
from controllers.mpc.solver import compiled, size_for, solve
from controllers.mpc.sqp import Found, Late, Step
from controllers.mpc.task import (
    STEP,
    Course,
    Task,
    bounds,
    ceilings,
    cost_now,
    dose_spread,
    make_task,
    move_bounds,
    parameters,
    rollout,
    starting_point,
    strict_targets,
)
from controllers.mpc.tree import belief_scenarios, price, solve_scenarios
from controllers.plan import Plan, Situation
from controllers.policies import RecipePolicy, limited
from twin.bioreactor import Control, State
from twin.process import Limits, Process
from twin.transition import advance_many, flat

FAR = 12
FAR_EVERY = 4
"""With the harvest more than FAR moves ahead, other harvest steps are looked at every FAR_EVERY moves only."""

STRIDES = (8, 2, 1)
"""Strides of the search for a harvest step when there is no earlier plan to start from."""

PATIENCE = 3
"""Harvest steps tried before the search gives up where none can be solved."""

SHARES = (1.0, 0.5, 0.25)
"""Lengths of a real-time step that are looked at: where a limit comes to bind, a full one may overshoot."""

WORSE = 1e-3
"""Share of 1 + its cost by which a real-time iteration may be dearer than the moves that it began from."""


class Outcome(NamedTuple):
    """The optimum for a harvest `moves` ahead."""

    moves: int
    total: float  # cost with the price of time
    course: Course
    memory: Step | None  # its multipliers, for neighbouring harvests
    words: str  # the rung of the ladder, and the solver's own words


@dataclass(frozen=True, slots=True)
class Mpc:
    """MPC over perfusion, feed and cytokine dosing; see the module. Pure: the previous plan is its only memory."""

    process: Process
    settings: MpcSettings
    name: str = "mpc"
    clock: Callable[[], float] | None = None  # [s] what a deadline is measured by; None: there is none

    def __call__(self, situation: Situation, previous: Plan | None) -> Plan:
        task = make_task(situation, self.process, self.settings)
        if task.latest < 1:
            return self._harvest_now(task, "the latest day of the recipe")
        late = self._late()
        best, words = search(task, previous, late)
        if best is None and (self.settings.scenarios > 1 or task.foreseen is not None):  # better than no plan
            task = replace(task, settings=replace(self.settings, scenarios=1, chance=None), foreseen=None)
            best, again = search(task, previous, late)
            words = f"{words}; for one future with the usual margins: {again}"
            best = None if best is None else best._replace(words=words)
        if best is None:
            return Plan(task.now, STEP, (), (), "failed", float("inf"), None, self.name, words)
        short = out_of_reach(task, best)
        if short > self.settings.give_up:  # as far as a search near the last plan has looked
            last, _ = optimum(task, task.latest, None, late)
            if last is not None and out_of_reach(task, last) < short:
                best, short = last, out_of_reach(task, last)
        if short > self.settings.give_up:
            return self._given_up(situation, self._plan(task, best), short)
        if (now := waiting(task)) <= best.total:
            return self._harvest_now(task, "waiting costs more than it brings", now)
        return self._plan(task, best)

    def _late(self) -> Late | None:
        clock, allowed = self.clock, self.settings.deadline
        if clock is None or allowed is None:
            return None
        end = clock() + allowed
        return lambda: clock() > end

    def _given_up(self, situation: Situation, best: Plan, short: float) -> Plan:
        """What the recipe would do, for medium beyond it buys no dose: unless that strains the culture more than `best` does.

        Asked anew at every decision.
        """
        why = f"the dose is out of reach: {_expected(best.states[-1])} at best, {short:.1f} sd short"
        plan = RecipePolicy(self.process.recipe)(situation, None)
        if _strain(plan, self.process.limits) > max(1.0, _strain(best, self.process.limits)):
            return replace(best, detail=f"{why}; {best.detail}")
        return replace(plan, policy=self.name, detail=f"{why}; the recipe's rates")

    def _harvest_now(self, task: Task, why: str, cost: float | None = None) -> Plan:
        """Harvest; until the vessel is emptied, perfuse as much as one step allows: a dense culture does not keep."""
        top = ceilings(task, task.x0[None, :])[0]
        up = min(top[0], task.before[0] + self.process.limits.perfusion_step)
        wanted = Control(up, 0.0, 0.0, min(top[2], self.process.recipe.cytokine_dose))
        u = limited(wanted, float(task.before[0]), self.process.limits)
        after = advance_many()(task.x0[:, None], np.array(u), flat(task.theta)[:, None], STEP)[:, 0]
        states = (State(*task.x0.tolist()), State(*after.tolist()))
        detail = f"harvest now: {why}; {_expected(states[0])}"
        cost = cost_now(task) if cost is None else cost
        return Plan(task.now, STEP, (u,), states, "solved", cost, task.now, self.name, detail)

    def _plan(self, task: Task, best: Outcome) -> Plan:
        limits = self.process.limits
        moves = np.clip(best.course.moves, 0.0, (limits.perfusion_max, limits.feed_max, limits.cytokine_dose_max))
        controls = tuple(Control(float(p), float(f), 0.0, float(d)) for p, f, d in moves)
        states = tuple(State(*row.tolist()) for row in np.vstack([task.x0, np.maximum(best.course.ends, 0.0)]))
        harvest_at = task.now + best.moves * STEP
        medium = float(moves[:, 0].sum()) * STEP
        detail = (
            f"perfusion {controls[0].perfusion:.2f} VVD, dosing {controls[0].cytokine_dose:.0f} IU/mL/d; harvest on day "
            f"{harvest_at:.2f}: {_expected(states[-1])}, {medium:.1f} more volumes of medium; {best.words}"
        )
        return Plan(task.now, STEP, controls, states, "solved", best.total, harvest_at, self.name, detail)


def waiting(task: Task) -> float:
    """What harvesting now costs, over the same futures as the plans: `cost_now`."""
    if task.settings.scenarios == 1:
        return cost_now(task)
    return sum(s.weight * cost_now(task, s.x0, s.targets) for s in belief_scenarios(task, 0, task.settings.scenarios))


def out_of_reach(task: Task, best: Outcome) -> float:
    """By how many standard deviations of what is expected the best plan falls short of the dose of viable cells."""
    dose = max((t.value for t in task.targets if t.cqa == "viable_cells" and t.sense == "at_least"), default=0.0)
    expected = float(attribute("viable_cells", State(*best.course.ends[best.moves - 1])))
    if dose <= 0.0:
        return -np.inf
    return float(np.log(dose / max(expected, 1e-9))) / dose_spread(task, best.moves)


def search(task: Task, previous: Plan | None, late: Late | None = None) -> tuple[Outcome | None, str]:
    """The best harvest step by local descent, and the solver's words where no step could be solved."""
    tried: dict[int, Outcome | None] = {}
    words = ""
    moves = remaining_moves(task, previous)
    start, strides, looks = task.latest, STRIDES, task.latest
    if moves is not None and previous is not None and previous.harvest_at is not None:
        start = int(np.clip(round((previous.harvest_at - task.now) / STEP), 1, task.latest))
        strides, looks = (1,), task.settings.search
    if task.settings.real_time and moves is not None:
        outcome = iterated(task, start, moves, late)
        if outcome is not None:
            return outcome, outcome.words
    tried[start], words = optimum(task, start, moves, late)
    best = tried[start]
    if strides == (1,) and best is not None and start > FAR and round(task.now / STEP) % FAR_EVERY:
        return best, words
    for stride in strides:
        for direction in (-1, 1):
            for _ in range(looks):
                if best is None and len(tried) >= PATIENCE:
                    return None, words
                h = (best.moves if best else start) + direction * stride
                if not 1 <= h <= task.latest or h in tried or (late is not None and late()):
                    break
                tried[h], words = optimum(task, h, best.course if best else moves, late, best.memory if best else None)
                other = tried[h]
                if other is None or (best is not None and other.total >= best.total):
                    break
                best = other
    return best, words


def iterated(task: Task, h: int, moves: np.ndarray, late: Late | None) -> Outcome | None:
    """A real-time iteration: one step from the last plan's course, of the length in `SHARES` whose moves are cheapest.

    Moves are judged by what they cost simulated, every scenario under its own, the last plan's among them. None where the step
    failed, or all lengths of it cost more than the last plan by `WORSE`: then the ladder is climbed down as usual.
    """
    found, _ = by_sqp(task, h, moves, late, once=True)
    if found.status != "solved" or found.at is None:
        return None
    scenarios = belief_scenarios(task, h, task.settings.scenarios)
    start = rollout(task, moves, h, h)
    begun = np.clip(start.moves, *move_bounds(task, start))
    tried = [begun + share * (found.at.moves - begun) for share in SHARES]  # of every scenario
    costs = [price(task, h, scenarios, m) for m in tried]
    best, before = int(np.argmin(costs)), price(task, h, scenarios, begun)
    if not costs[best] <= before + WORSE * (1.0 + abs(before)):
        return None
    words = f"SQP near: {found.detail}" if best == 0 else f"SQP near: {SHARES[best]:g} of a {found.detail}"
    course = rollout(task, tried[best][0], h, h)
    return Outcome(h, costs[best] + task.settings.prices.day * h * STEP, course, None, words)


def remaining_moves(task: Task, previous: Plan | None) -> np.ndarray | None:
    """What is left of the last plan [k, 3]; None where there is none, it did not solve, or it is used up."""
    if previous is None or previous.status not in ("solved", "shifted"):
        return None
    done = round((task.now - previous.issued_at) / STEP)
    rest = previous.controls[done:] if done >= 0 else ()
    return np.array([[u.perfusion, u.feed, u.cytokine_dose] for u in rest]) if rest else None


def optimum(
    task: Task,
    h: int,
    near: Course | np.ndarray | None,
    late: Late | None = None,
    memory: Step | None = None,
) -> tuple[Outcome | None, str]:
    """The optimum for a harvest `h` moves ahead, down the ladder of solvers and starts, and the last solver's words.

    SQP from the course under `near` (a neighbour's, or the last plan's moves), SQP from the recipe's course, then IPOPT over
    the same ladder of starts: of one future without back-offs, for it knows no more. A failed solve leaves nothing behind.
    """
    words = ""
    if task.settings.solver == "sqp":
        for rung, start in (("SQP near", near), ("SQP cold", None)):
            if rung == "SQP near" and start is None:
                continue
            found, course = by_sqp(task, h, start, late, memory=memory if rung == "SQP near" else None)
            words = f"{rung}: {found.detail}"
            if found.status == "solved" and course is not None:
                return Outcome(h, found.cost + task.settings.prices.day * h * STEP, course, found.memory, words), words
    if task.settings.scenarios > 1 or task.foreseen is not None:
        return None, f"{words}; IPOPT plans for one future, without back-offs"
    if late is not None and late():
        return None, f"{words}; no time for IPOPT"
    outcome, said = by_ipopt(task, h, near.moves if isinstance(near, Course) else near, late)
    return outcome, f"{words}; {said}" if words else said


def by_sqp(
    task: Task,
    h: int,
    near: Course | np.ndarray | None,
    late: Late | None = None,
    once: bool = False,
    memory: Step | None = None,
) -> tuple[Found, Course | None]:
    """SQP from a course, or from the course under moves (None: the recipe's); the plan of the first scenario."""
    start = adapted(task, near, h) if isinstance(near, Course) else rollout(task, near, h, h)
    s = task.settings
    scenarios = belief_scenarios(task, h, s.scenarios)
    found = solve_scenarios(
        task, h, scenarios, start, robust=s.robust, late=late, once=once, warm=near is not None, memory=memory
    )
    at = found.at
    return found, None if at is None else Course(at.moves[0], at.middles[0], at.ends[0])


def adapted(task: Task, course: Course, h: int) -> Course:
    """A course cut to `h` moves, or continued with its last move."""
    n = len(course.moves)
    if h <= n:
        return Course(course.moves[:h], course.middles[:h], course.ends[:h])
    rest = rollout(replace(task, x0=course.ends[-1], before=course.moves[-1]), course.moves[-1:], h - n, h - n)
    return Course(*(np.concatenate([a, b]) for a, b in zip(course, rest, strict=True)))


def by_ipopt(task: Task, h: int, moves: np.ndarray | None, late: Late | None = None) -> tuple[Outcome | None, str]:
    """IPOPT from the course under `moves`, from the recipe's course, then patiently from a middling constant one."""
    n, limits = size_for(h), task.process.limits
    targets = strict_targets(task, h)
    kinds = tuple((t.cqa, t.sense) for t in targets)
    p = parameters(task, n, h, targets)
    middling = np.array([[min(0.5, limits.perfusion_max), 0.0, task.process.recipe.cytokine_dose]])
    words = ""
    for rung, start in (("near", moves), ("recipe", None), ("patient", middling)):
        if rung == "near" and start is None:
            continue
        if late is not None and late():
            return None, f"{words}; out of time"
        course = rollout(task, start, h, n)
        low, high = bounds(task, course)
        program = compiled(n, kinds, task.settings.max_iter, rung == "patient")
        solution = solve(program, starting_point(task, course, h, targets), p, low, high)
        words = solution.detail
        if solution.status == "solved":
            found, middles, ends, _, _ = solution.blocks(n)
            total = solution.cost + task.settings.prices.day * h * STEP
            return Outcome(h, total, Course(found[:h], middles[:h], ends[:h]), None, words), words
    return None, words


def _strain(plan: Plan, limits: Limits) -> float:
    """How near a plan comes to the hard limits of lactate and ammonia: 1 at a limit. That of ammonia is twice the operating one."""
    return max(max(x.lactate / limits.lactate_hard, x.ammonia / (2.0 * limits.ammonia_max)) for x in plan.states)


def _expected(x: State) -> str:
    return f"{attribute('viable_cells', x):.1f}e9 viable cells, viability {attribute('viability', x):.2f}"
