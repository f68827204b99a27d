"""What a plan declares before it runs: the chance of every CQA, and of all together, for this donor as believed now.

Futures of the belief run under the planned controls, the last of them held on. A future is harvested when its own cells are
counted a margin above the dose, or on the recipe's latest day: as the loop will, which plans anew as it learns. The plan's own
day is not imposed on every future, because no donor is harvested short of a dose that another day would bring. What the loop will
yet change about the perfusion is not foreseen.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from controllers.plan import Plan
from controllers.recipes import recipe_schedule
from twin.batch import Batch
from twin.bioreactor import Control, State
from twin.futures import Forecast, Schedule, forecast
from twin.process import Process

SURE = 0.1
"""ln by which a count must exceed the dose before a future is harvested: noise of counts, and what a belief has besides."""


def schedule_of(plan: Plan | None, process: Process) -> Schedule:
    """What the pumps are expected to do: the plan and its last move held on, or without one the recipe."""
    if plan is None or not plan.controls:
        return recipe_schedule(process.recipe)

    def schedule(t: float, x: State) -> Control:
        k = min(max(math.floor((t - plan.issued_at) / plan.step + 1e-6), 0), len(plan.controls) - 1)
        like = np.zeros(np.shape(x.volume))
        return Control(*(like + float(v) for v in plan.controls[k]))

    return schedule


def in_force(batch: Batch, plan: Plan | None) -> tuple[Batch, Schedule]:
    """The batch as it will be harvested, and what its pumps are expected to do: under a plan, or without one under the recipe."""
    process = batch.process
    if plan is None or not plan.controls:
        return batch, schedule_of(None, process)
    recipe = replace(process.recipe, harvest_cells=process.dose * math.exp(SURE))
    return replace(batch, process=replace(process, recipe=recipe)), schedule_of(plan, process)


def declared(batch: Batch, now: float, plan: Plan | None, *, n: int = 300, seed: int = 0) -> Forecast:
    """What `plan`, or without one the recipe, declares at `now` [d]: bands, P of every CQA and of release, harvest."""
    aimed, schedule = in_force(batch, plan)
    return forecast(aimed, now, schedule, n=n, seed=seed)
