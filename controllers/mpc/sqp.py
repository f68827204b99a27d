"""Sequential quadratic programming over the stages of one plan, or of several scenarios that share their first moves.

Each iteration solves one convex quadratic programme (`quadratic`) with the exact curvature of the Lagrangian, made convex by
`convex.convexify`: where it is convex along the equations, without moving the step. Soft limits and targets enter with their
slacks, so every programme has a solution, whatever the start; the same exact penalties make the merit by which a step's length
is accepted.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from controllers.mpc.condensed import solve_condensed
from controllers.mpc.convex import N_STAGE, STEEPEST, convexify
from controllers.mpc.objective import LOGARITHMIC, PATH_SCALE, path_prices
from controllers.mpc.points import (
    SPENT,
    Closing,
    Slopes,
    closing_at,
    closing_curvature,
    curvature_at,
    slopes_at,
    values_at,
)
from controllers.mpc.problem import Found, Iterate, Problem, carried
from controllers.mpc.quadratic import Data, Step, Workspace, solve_quadratic
from controllers.mpc.solver import SolveStatus
from controllers.mpc.stages import Stages, closed, costates, eliminate, quadratics, residuals
from controllers.mpc.transcription import DEGREE, MOVE_SCALE, N_MOVE, SCALE
from twin.transition import N_X

Late = Callable[[], bool]
"""Whether the time allowed for a decision is over; whoever asks for a plan brings the clock."""

DESCENT = 1e-5
"""Solved where the programme promises a smaller change than this share of 1 + the merit, gaps included ..."""

GAP = 1e-6
"""... and its last step, quadratically convergent, leaves no equation further from 0 than this."""

MEMORY = 4
"""A step is held to the worst of so many last merits: strict descent would cut steps along curved equations."""

STRICT_AFTER = 20
"""From this iteration on, every step descends: what cycles is cut short."""

FORGET = 0.3
"""Share of a price of the equations' gaps that outlives an iteration: early multipliers are far too high."""

NEAR = 0.4
"""Largest change of a scaled move after which the limits that bind are taken to be the right ones ..."""

TRUST = 0.2
"""... and the largest that is allowed where the next step shows that they were not, though the curvature was convex ..."""

TIMID = 2
"""... which is done so often only: from far away, wild steps lead out of regions in which careful ones crawl."""

FIRM = 10.0
"""Price of the square of a row that binds, in the curvature."""

BINDING = 1e-4
"""A row binds where its multiplier lies between this share of its price and as much below it."""

IDLE = 1e-6
"""A price up to which a row is not looked at so: its multiplier drowns in the tolerance of the quadratic programme."""

DAMPING, MOST_DAMPING = 0.1, 1e5
"""Curvature [cost per scaled move squared] that moves are given where no step descends, and the most of it."""

STEEP = 1000.0
"""`convex.STEEPEST` once the limits that bind are taken to be the right ones."""

SEEKING = 10.0
"""The same while only multipliers are sought."""

CORRECTIONS = 2
"""How often a step that is not accepted is brought closer to the equations before it is cut."""

SHORTEST = 2.0**-7
KEPT = 0.1
"""Least share of a state that a step leaves: concentrations stay positive."""


class _Scaled(NamedTuple):
    u: np.ndarray
    z: np.ndarray
    x: np.ndarray


class _Worth(NamedTuple):
    cost: float
    gaps: np.ndarray  # [S, N, 2, 13] |c|, weighted
    c: np.ndarray  # [S, N, 2, 13]

    @property
    def unclosed(self) -> float:
        """How far the equations are from 0, whatever their scenario weighs."""
        return float(np.abs(self.c).max())

    def merit(self, nu: np.ndarray) -> float:
        return self.cost + float((self.gaps * nu).sum())


def solve_sqp(
    problem: Problem,
    start: Iterate,
    max_iter: int = 60,
    late: Late | None = None,
    once: bool = False,
    warm: bool = False,
    memory: Step | None = None,
) -> Found:
    """Solve from `start`; every way to fail becomes a status.

    Args:
        problem: what to solve.
        start: moves within their largest steps, any states.
        max_iter: iterations allowed.
        late: no iteration begins once it says so; None: results do not depend on the clock.
        once: a real-time iteration: one full step, whatever it brings.
        warm: `start` is close to a solution: the multipliers are sought there before the first step, or taken from `memory`.
        memory: `Found.memory` of a neighbouring problem that was solved, see `carried`.
    """
    given = (*start, problem.x0, problem.theta, problem.values, problem.before, problem.low, problem.high)
    if not all(np.isfinite(a).all() for a in given) or not np.isfinite(problem.left):
        return Found("not_finite", "start or parameters are not finite", float("nan"), None, 0)
    try:
        with np.errstate(all="ignore"):
            return _Solver(problem).run(start, max_iter, late, once, warm or once, memory)
    except np.linalg.LinAlgError as error:
        return Found("error", f"SQP: {error}", float("nan"), None, 0)


def priced(problem: Problem, at: Iterate) -> float:
    """What a course costs, slacks and misses included, as it stands: for one that obeys the model, the objective."""
    scaled = _Scaled(at.moves / MOVE_SCALE, at.middles / SCALE, at.ends / SCALE)
    with np.errstate(all="ignore"):
        return _Solver(problem).worth(scaled).cost


def _short(step: Step | None) -> bool:
    return step is not None and float(np.abs(step.moves).max()) < NEAR


class _Solver:
    """One solve; its arrays are what does not change from iteration to iteration."""

    def __init__(self, p: Problem) -> None:
        self.p = p
        self.s, self.n, self.h = p.scenarios, p.stages, p.length
        self.theta = np.ascontiguousarray(np.repeat(p.theta, self.n * DEGREE, axis=0).T)
        self.x0 = p.x0 / SCALE
        self.w = p.weights
        prices = p.prices
        unit = (self.h * np.array(path_prices(prices)) + 1e-6) * np.array(PATH_SCALE)
        self.slack, self.square = unit, unit * prices.quadratic
        targets = [prices.target_ln if cqa in LOGARITHMIC else prices.target for cqa, _ in p.kinds]
        self.missed = np.array([*targets, prices.budget, prices.end_lactate, prices.end_ammonia])
        self.rate = np.array([prices.move_perfusion, prices.move_dose, prices.move_dose])
        self.running = self.h * np.array([prices.medium, prices.feed, prices.dose]) * MOVE_SCALE
        self.before, self.low, self.high = p.before / MOVE_SCALE, p.low / MOVE_SCALE, p.high / MOVE_SCALE
        weight = p.weights[:, None, None]
        paths = np.zeros((self.s, self.n, unit.size))
        self.priced = (paths + self.slack) * weight, (paths + self.square) * weight, self.missed * weight[..., 0]
        self.left = np.full(self.s, p.left)
        self.volume = self.h * MOVE_SCALE[0]
        self.damping, self.turned = 0.0, 0
        self.workspace: Workspace = {}
        self.budget = len(p.kinds) + SPENT

    # ---------------------------------------------------------------------------------------------------- evaluation
    def _points(self, at: _Scaled) -> tuple[np.ndarray, np.ndarray]:
        """States and moves at all points, [S N 2, 13] and [S N 2, 3]."""
        return np.stack([at.z, at.x], axis=2).reshape(-1, N_X), np.repeat(at.u.reshape(-1, N_MOVE), DEGREE, axis=0)

    def _beyond(self, rows: np.ndarray) -> np.ndarray:
        g = rows.reshape(self.s, self.n, DEGREE, -1)[:, :, 1]
        return g if self.p.tightened is None else g + self.p.tightened

    def _spent(self, u: np.ndarray) -> np.ndarray:
        return self.volume * u[..., 0].sum(axis=1) - self.p.left

    def _changes(self, u: np.ndarray) -> np.ndarray:
        changes = u.copy()
        changes[:, 1:] -= u[:, :-1]
        changes[:, 0] -= self.before
        return changes

    def _cost(self, u: np.ndarray, slacks: np.ndarray, missed: np.ndarray) -> float:
        by_scenario = (
            (u @ self.running).sum(axis=1)
            + (self._changes(u) ** 2 @ self.rate).sum(axis=1)
            + (slacks @ self.slack + slacks**2 @ self.square).sum(axis=1)
            + missed @ self.missed
        )
        return float(self.w @ by_scenario)

    def worth(self, at: _Scaled) -> _Worth:
        f, g = values_at(*self._points(at), self.theta, self.p.limits)
        t = closing_at(self.p.kinds, at.x[:, -1], self.p.values, self.p.limits).rows
        t[:, self.budget] = self._spent(at.u)
        c = residuals(self.x0, at.z, at.x, f.reshape(self.s, self.n, DEGREE, N_X), self.h)
        cost = self._cost(at.u, np.maximum(self._beyond(g), 0.0), np.maximum(t, 0.0))
        return _Worth(cost, np.abs(c) * self.w[:, None, None, None], c)

    # -------------------------------------------------------------------------------------------------------- search
    def run(
        self, start: Iterate, max_iter: int, late: Late | None, once: bool, warm: bool, memory: Step | None
    ) -> Found:
        moves = np.clip(start.moves, self.p.low, self.p.high)
        moves[:, : self.p.shared] = np.tensordot(self.w, moves[:, : self.p.shared], axes=1)  # in common from the start
        at = _Scaled(moves / MOVE_SCALE, start.middles / SCALE, start.ends / SCALE)
        last = memory
        nu = np.full(N_X, 1e-3)
        past: list[_Worth] = []
        timid = 0
        for k in range(max_iter):
            if late is not None and late():
                return self._failed("iteration_limit", f"out of time after {k} iterations", k)
            slopes = slopes_at(*self._points(at), self.theta, self.p.limits)
            if not np.isfinite(slopes.by).all():
                return self._failed("not_finite", f"the model is not finite at iteration {k}", k)
            if k == 0 and warm and last is None:
                seen, *_ = self._direction(at, slopes, None, False, flat=True)
                last = None if isinstance(seen, str) else seen
            near = _short(last)
            step, worth, costate = self._direction(at, slopes, last, near)
            if near and not self.turned and not isinstance(step, str) and not _short(step) and timid < TIMID:
                again = self._direction(at, slopes, last, False, TRUST)
                if not isinstance(again[0], str):
                    step, worth, costate = again
                timid += 1
            if isinstance(step, str):
                return self._failed("error", f"quadratic programme of iteration {k}: {step}", k)
            last = step
            if once and step.slow:
                return self._failed(
                    "error", "the quadratic programme of the real-time iteration did not come to an end", 1
                )
            if once:
                return self._found("solved", self._moved(at, step, self.stages, 1.0), 1, "real-time iteration", step)
            nu = np.maximum(nu * (FORGET if k < STRICT_AFTER else 1.0), 1.5 * np.abs(costate).max(axis=(0, 1, 2)))
            merit = worth.merit(nu)
            promised = merit - self._cost(at.u + step.moves, step.slacks, step.missed)
            done = abs(promised) <= DESCENT * (1.0 + abs(merit)) and not step.slow
            past = [*past[1 - MEMORY :], worth] if k < STRICT_AFTER else [worth]
            ceiling = max(w.merit(nu) for w in past)
            alpha = 1.0
            while True:
                trial = self._moved(at, step, self.stages, alpha)
                now = self.worth(trial)
                for _ in range(CORRECTIONS):
                    if now.merit(nu) <= ceiling - 1e-4 * alpha * promised and not (done and now.unclosed > GAP):
                        break
                    trial = self._closed(trial, now.c)  # along the curved equations, moves held
                    now = self.worth(trial)
                new = now.merit(nu)
                if done and now.unclosed <= GAP and new <= merit + DESCENT * (1.0 + abs(merit)):
                    return self._found("solved", trial, k + 1, "SQP", step)
                accepted = new <= ceiling - 1e-4 * alpha * promised
                if accepted:
                    break
                if done and worth.unclosed <= GAP:
                    return self._found("solved", at, k + 1, "SQP", step)
                alpha *= 0.5
                if alpha < SHORTEST:
                    break
            if alpha < SHORTEST:
                self.damping = max(10.0 * self.damping, DAMPING)
                if self.damping > MOST_DAMPING:
                    return self._failed("diverged", f"no descent at iteration {k}", k)
                continue
            self.damping = 0.1 * self.damping if self.damping > DAMPING else 0.0
            at = trial
        return self._failed("iteration_limit", f"{max_iter} iterations", max_iter)

    def _direction(
        self, at: _Scaled, slopes: Slopes, last: Step | None, near: bool, most: float = np.inf, flat: bool = False
    ) -> tuple[Step | str, _Worth, np.ndarray]:
        """The step from `at`, what `at` is worth, and the multipliers of its equations.

        `near`: the limits that bind are those of `last`. `most`: largest change of a scaled move.
        """
        p, s, n = self.p, self.s, self.n
        beyond = self._beyond(slopes.beyond)
        beyond_by = slopes.beyond_by.reshape(s, n, DEGREE, -1, N_X)[:, :, 1]
        end = closing_at(p.kinds, at.x[:, -1], p.values, p.limits)
        t = end.rows.copy()
        t[:, self.budget] = self._spent(at.u)
        if last is None:  # what the penalties say where they are not 0
            path = np.where(beyond > 0.0, self.slack + 2.0 * self.square * beyond, 0.0)
            closing = np.where(t > 0.0, self.missed, 0.0)
            held, stepped = np.zeros(at.u.shape, bool), np.zeros(at.u.shape[:2], bool)
        else:
            path, closing, held = last.path / self.w[:, None, None], last.closing / self.w[:, None], last.held
            stepped = last.stepped
        held = held & near
        f = slopes.rates.reshape(s, n, DEGREE, N_X)
        c = residuals(self.x0, at.z, at.x, f, self.h)
        stages = eliminate(slopes, c, self.h)
        self.stages = stages
        gradient = (closing[:, None] @ end.by)[:, 0], (path[:, :, None] @ beyond_by)[:, :, 0]
        mu, _ = costates(stages, *gradient)
        hessians, gradients = (
            self._flat()
            if flat
            else self._curvature(
                at, stages, mu, path, closing, held, beyond, beyond_by, end, FIRM if near else 0.0, stepped
            )
        )
        changes = self._changes(at.u)
        gradients[..., -N_MOVE:] += self.running + 2.0 * self.rate * changes
        gradients[..., :N_MOVE] -= 2.0 * self.rate * changes
        w = self.w[:, None, None]
        slack, square, missed = self.priced
        data = Data(
            hessians * w[..., None], gradients * w, stages.by, stages.gap, at.u, self.before, self.low, self.high, most,
            float(p.limits[-1]), float(self.volume), beyond, beyond_by, slack, square, end.rows, end.by, missed, self.left,
        )  # fmt: skip
        step = solve_condensed(data, p.shared, near)
        if step is None or isinstance(step, str):
            step = solve_quadratic(data, p.shared, exact=near, workspace=self.workspace)
        cost = self._cost(at.u, np.maximum(beyond, 0.0), np.maximum(t, 0.0))
        return step, _Worth(cost, np.abs(c) * w[..., None], c), mu

    def _curvature(
        self, at: _Scaled, stages: Stages, mu: np.ndarray, path: np.ndarray, closing: np.ndarray, held: np.ndarray,
        beyond: np.ndarray, beyond_by: np.ndarray, end: Closing, firmness: float, stepped: np.ndarray,
    ) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
        p, s, n = self.p, self.s, self.n
        pi = np.zeros((s, n, DEGREE, path.shape[-1]))
        pi[:, :, 1] = path
        by_point = curvature_at(
            *self._points(at), self.theta, p.limits, -self.h * mu.reshape(-1, N_X), pi.reshape(-1, pi.shape[-1])
        )
        # where a limit binds, its row is 0 whatever the step, and so is its square
        firm = firmness * ((path > BINDING * self.slack) & (path < (1.0 - BINDING) * self.slack))
        nodes = np.swapaxes(beyond_by, -1, -2) @ (firm[..., None] * beyond_by)
        pull = ((firm * beyond)[:, :, None] @ beyond_by)[:, :, 0]
        firm = firmness * ((closing > BINDING * self.missed) & (closing < (1.0 - BINDING) * self.missed))
        firm[:, self.budget] = 0.0
        firm *= self.missed > IDLE
        nodes[:, -1] += closing_curvature(p.kinds, at.x[:, -1], p.values, p.limits, closing)
        nodes[:, -1] += np.swapaxes(end.by, -1, -2) @ (firm[..., None] * end.by)
        pull[:, -1] += ((firm * end.rows)[:, None] @ end.by)[:, 0]
        h, g = quadratics(stages, by_point.reshape(s, n, DEGREE, *by_point.shape[1:]), nodes, pull)
        near = firmness > 0.0
        rates = np.tile(self.rate, (s, n, 1))
        rates[..., 0] += firmness * stepped
        h, g, self.turned = convexify(stages, h, g, rates, held, self.damping, STEEP if near else STEEPEST)
        return h, g

    def _flat(self) -> tuple[np.ndarray, np.ndarray]:
        """No curvature but damping: the multipliers of a programme that barely moves."""
        hessians = np.zeros((self.s, self.n, N_STAGE, N_STAGE))
        i = np.arange(N_STAGE - N_MOVE, N_STAGE)
        hessians[:, :, i, i] = 2.0 * self.rate + SEEKING
        return hessians, np.zeros((self.s, self.n, N_STAGE))

    def _closed(self, at: _Scaled, c: np.ndarray) -> _Scaled:
        z, x = closed(self.stages, c)
        return _Scaled(at.u, np.maximum(at.z + z, KEPT * at.z), np.maximum(at.x + x, KEPT * at.x))

    def _moved(self, at: _Scaled, step: Step, stages: Stages, alpha: float) -> _Scaled:
        start = np.concatenate([np.zeros((self.s, 1, N_X)), step.nodes[:, :-1]], axis=1)
        both = np.concatenate([start, step.moves], axis=2)
        inner = (stages.inner_by @ both[..., None])[..., 0] + stages.inner_gap
        return _Scaled(
            np.clip(at.u + alpha * step.moves, np.minimum(self.low, at.u), np.maximum(self.high, at.u)),
            np.maximum(at.z + alpha * inner, KEPT * at.z),
            np.maximum(at.x + alpha * step.nodes, KEPT * at.x),
        )

    # --------------------------------------------------------------------------------------------------------- words
    def _found(self, status: SolveStatus, at: _Scaled, iterations: int, by: str, step: Step) -> Found:
        worth = self.worth(at)
        if not (np.isfinite(worth.cost) and np.isfinite(worth.gaps).all()):
            return self._failed("not_finite", "the plan is not finite", iterations)
        words = f"{by}, {iterations} iteration{'s' if iterations != 1 else ''}"
        return Found(
            status, words, worth.cost, Iterate(at.u * MOVE_SCALE, at.z * SCALE, at.x * SCALE), iterations, step
        )

    def _failed(self, status: SolveStatus, why: str, iterations: int) -> Found:
        return Found(status, f"SQP: {why}", float("nan"), None, iterations)


__all__ = ["Found", "Iterate", "Problem", "Step", "carried", "priced", "solve_sqp"]
