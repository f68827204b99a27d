"""A recipe as a policy: its formula decides, the model shows what comes of it. And a user's own policy, by name."""

from __future__ import annotations

from dataclasses import dataclass, replace
from importlib import import_module
from inspect import signature
from typing import Any, cast

import numpy as np

from controllers.plan import Plan, Policy, Situation
from controllers.recipes import harvest_due, recipe_control, recipe_schedule
from controllers.rollout import resimulate
from twin.bioreactor import Control, State
from twin.config import ConfigError
from twin.estimation.belief import split
from twin.process import Limits, Process, Recipe
from twin.transition import advance_many, flat

STEP = 0.25
"""Length of a plan's step [d]."""

HORIZON = 56
"""Most steps of a plan: 14 days."""


@dataclass(frozen=True, slots=True)
class RecipePolicy:
    """Proposes what `recipe` asks at the last readings, then what it would ask along the expected course of the batch.

    The proposal keeps to the operating limits: ceilings, and the largest change of perfusion from one decision to the next.
    The harvest is due by the recipe's rule on counted cells now, or where the expected course reaches it.
    """

    recipe: Recipe

    @property
    def name(self) -> str:
        return self.recipe.name

    def __call__(self, situation: Situation, previous: Plan | None) -> Plan:
        s, recipe, limits = situation, self.recipe, situation.process.limits
        x, cell, _ = split(s.belief.mean, s.layout, s.process.theta.cell)
        theta = s.process.theta._replace(cell=cell)
        schedule, parameters = recipe_schedule(recipe), flat(theta)[:, None]
        x = State(*(float(v) for v in x))
        wanted = recipe_control(recipe, s.now, s.readings)
        harvest_at = s.now if harvest_due(recipe, s.now, s.readings, float(x.volume)) else None
        controls: list[Control] = []
        states = [x]
        before = float(s.applied.perfusion)
        for k in range(min(max(1, round((recipe.harvest_latest - s.now) / STEP)), HORIZON)):
            t = s.now + k * STEP
            if k:
                if harvest_at is None and float(x.viable_cells) >= recipe.harvest_cells:
                    harvest_at = t
                if harvest_at is not None:
                    break
                wanted = Control(*(float(v) for v in schedule(t, x)))
            controls.append(limited(wanted, before, limits))
            before = float(controls[-1].perfusion)
            column = advance_many()(np.array(x)[:, None], np.array(controls[-1]), parameters, STEP)
            states.append(x := State(*column[:, 0].tolist()))
        if harvest_at is None and s.now + len(controls) * STEP >= recipe.harvest_latest - 1e-9:
            harvest_at = s.now + len(controls) * STEP
        detail = f"{recipe.name}: {controls[0].perfusion:.2f} VVD by the last readings"
        return Plan(s.now, STEP, tuple(controls), tuple(states), "solved", 0.0, harvest_at, recipe.name, detail)


def find_policy(reference: str, process: Process, **settings: Any) -> Policy:
    """A user's policy by ``module:name``: a class, made with `settings` and, where it takes one, the process; or a function.

    Raises ConfigError in one line for what cannot be imported, found, made or called.
    """
    module, _, name = reference.partition(":")
    if not (module and name.isidentifier()):
        raise ConfigError(f"policy {reference!r}: module:Class is expected")
    try:
        found = getattr(import_module(module), name)
    except AttributeError:
        raise ConfigError(f"policy {reference}: module {module} has no {name}") from None
    except (Exception, SystemExit) as error:  # noqa: BLE001 - a user's module may raise anything
        raise ConfigError(f"policy {reference}: {module} cannot be imported: {type(error).__name__}: {error}") from None
    if isinstance(found, type):
        try:
            wants = "process" in signature(found).parameters
            found = found(process=process, **settings) if wants else found(**settings)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - and so may a user's class
            raise ConfigError(f"policy {reference}: {name} cannot be made: {type(error).__name__}: {error}") from None
    elif settings:
        raise ConfigError(f"policy {reference}: {name} is no class and takes no settings, not {sorted(settings)}")
    if not callable(found):
        raise ConfigError(
            f"policy {reference}: {name} cannot be called with (situation, previous), see controllers.plan"
        )
    return cast("Policy", found)


def proposed(
    situation: Situation, control: Control, policy: str, *, harvest: bool | None = None, detail: str = ""
) -> Plan:
    """A plan of one step, as the guard asks for one: `control` within the operating limits, and what the model expects of it.

    `control` in VVD (IU/mL/d for the cytokine dose); `harvest` now or not, None: as the recipe's rule has it on counted cells.
    """
    s = situation
    if harvest is None:
        volume = float(split(s.belief.mean, s.layout, s.process.theta.cell)[0].volume)
        harvest = harvest_due(s.process.recipe, s.now, s.readings, volume)
    first = limited(control, float(s.applied.perfusion), s.process.limits)
    plan = Plan(s.now, STEP, (first,), (), "solved", 0.0, s.now if harvest else None, policy, detail)
    return replace(plan, states=tuple(resimulate(s, plan)))


def limited(u: Control, before: float, limits: Limits) -> Control:
    """`u` within the operating limits, its perfusion within one step of `before` [VVD]."""
    low = max(0.0, before - limits.perfusion_step)
    high = min(limits.perfusion_max, before + limits.perfusion_step)
    return Control(
        float(np.clip(u.perfusion, min(low, high), high)),
        float(np.clip(u.feed, 0.0, limits.feed_max)),
        float(np.clip(u.bleed, 0.0, limits.bleed_max)),
        float(np.clip(u.cytokine_dose, 0.0, limits.cytokine_dose_max)),
    )
