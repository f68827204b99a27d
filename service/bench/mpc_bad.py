"""What must not happen to the controller: solves that fail from far starts, and plans that leave from beliefs that cannot be."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from controllers.guard import STATE_RANGE
from controllers.loop import decide
from controllers.mpc import make_mpc
from controllers.mpc.policy import by_sqp
from controllers.mpc.task import make_task
from controllers.plan import Situation
from controllers.recipes import recipe_schedule
from service.bench.mpc_problem import STAGES
from twin.batch import apply, assimilate, start
from twin.bioreactor import Control, State, to_coordinates
from twin.donors.prior import preset_prior
from twin.estimation.belief import Belief, Layout
from twin.evidence import ControlApplied, Measurement
from twin.history import Batch
from twin.process import Process
from twin.transition import advance_many, flat

DAYS = 4


def sound(process: Process, seed: int) -> Batch:
    """A batch of the median donor with read-backs and samples twice a day, in which nothing is wrong."""
    rng, advance, theta = np.random.default_rng([seed, 8]), advance_many(), flat(process.theta)[:, None]
    batch, x = start("bench", process, preset_prior(process)), np.array(process.initial, dtype=float)
    u = Control(0.0, 0.0, 0.0, process.recipe.cytokine_dose)
    for k in range(2 * DAYS + 1):
        t, state = 0.5 * k, State(*x.tolist())
        for name in ("perfusion", "feed", "cytokine_dose"):
            batch = apply(batch, ControlApplied(f"{name}-{k}", t, name, float(getattr(u, name))))
        for channel in ("viable_density", "glucose", "lactate"):
            value = state.viable if channel == "viable_density" else getattr(state, channel)
            read = float(value * np.exp(0.04 * rng.standard_normal()))
            batch = assimilate(batch, Measurement(f"{channel}-{k}", channel, read, t, t))
        u = Control(
            min(process.limits.perfusion_max, 0.1 * float(state.viable)), 0.0, 0.0, process.recipe.cytokine_dose
        )
        x = advance(x[:, None], np.array(u), theta, 0.5)[:, 0]
    return batch


def cold_starts(process: Process, seed: int, n: int) -> int:
    """How many of `n` random states beyond the soft lactate limit the SQP fails from, without any fall-back."""
    rng = np.random.default_rng([seed, 6])
    centre = np.array([6.5, 6.0, 1.2, 14.0, 15.0, 3.5, 2.0, 130.0, 9.0, 0.1, 16.0, 0.99, float(process.initial.volume)])
    policy = make_mpc(process)
    layout = Layout(("mu_max", "Y_LG"), ())
    cell, failed = process.theta.cell, 0
    for _ in range(n):
        values = centre * np.exp(0.3 * rng.standard_normal(13))
        values[4] = rng.uniform(process.limits.lactate_soft, process.limits.lactate_hard)
        values[9:] = centre[9:]
        x, now = State(*values.tolist()), 8.0
        mean = np.log(np.array([*to_coordinates(x), cell.mu_max, cell.Y_LG], dtype=float))
        applied = Control(float(rng.uniform(0.0, process.limits.perfusion_max)), 0.0, 0.0, 300.0)
        recipe = recipe_schedule(process.recipe)(now, x)
        belief = Belief(now, mean, np.eye(mean.size) * 0.03**2)
        s = Situation(now, belief, layout, {}, applied, recipe, process, float(rng.uniform(0.0, 5.0)))
        found, _ = by_sqp(make_task(s, process, policy.settings), STAGES, None)
        failed += found.status != "solved"
    return failed


def bad_states(process: Process, seed: int, n: int) -> tuple[int, int]:
    """Of `n` bad beliefs in a sound batch: from how many a plan leaves, and how many are refused without a reason."""
    batch = sound(process, seed)
    rng = np.random.default_rng([seed, 7])
    policy = make_mpc(process)
    if decide(batch, batch.belief.time, policy, None).control is None:
        raise RuntimeError("bench mpc: no plan leaves from the sound belief either")
    left = silent = 0
    for k in range(n):
        point = batch.checkpoints[-1]
        bad = spoiled(point.belief, batch, rng, k)
        spoilt = replace(batch, checkpoints=(*batch.checkpoints[:-1], replace(point, belief=bad)))
        decision = decide(spoilt, bad.time, policy, None)
        left += decision.control is not None or decision.harvest
        silent += not (
            decision.reasons and len(" ".join(decision.reasons)) > len("no override: the edge keeps to its recipe")
        )
    return left, silent


def spoiled(belief: Belief, batch: Batch, rng: np.random.Generator, k: int) -> Belief:
    """The belief with one thing wrong: no number, infinite, negative (which has no logarithm), impossible, or a unit slip."""
    mean, cov = belief.mean.copy(), belief.cov.copy()
    names = batch.layout.names
    kind = k % 5
    i = int(rng.integers(len(names)))
    state = int(rng.integers(2, 8))  # concentrations
    with np.errstate(all="ignore"):
        if kind == 0:
            mean[i] = np.nan
        elif kind == 1:
            mean[i] = rng.choice([-np.inf, np.inf])
        elif kind == 2:
            mean[state] = np.log(-np.exp(mean[state]))
        elif kind == 3:
            j = int(rng.integers(len(names)))
            beyond = 2.0 * float(np.sqrt(cov[i, i] * cov[j, j])) + 1e-3  # a correlation of 2; a negative variance
            cov[i, j] = cov[j, i] = rng.choice([-beyond, 1e6, np.nan])
        else:
            top = STATE_RANGE[names[state]][1]
            mean[state] += np.log(rng.choice([1e3, 1e6]) * max(1.0, 1.01 * top / (1e3 * np.exp(mean[state]))))
    return Belief(belief.time, mean, cov)
